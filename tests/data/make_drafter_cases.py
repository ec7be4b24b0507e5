"""Makes the mobius_drafter_* cases: Gemma 4's assistant, a drafter whose layers read the caches of the model it drafts for.

    python make_drafter_cases.py FOLDER

Made with mobius-onnx 0.1.0, of random weights. Key and value of every layer are graph inputs, one pair for sliding layers and
one for full ones. The default form has Attention, whose mask is the first columns of attention_mask; the form for the CPU has
GroupQueryAttention with a key of length 0. Truth is the original's own answer.
"""
import dataclasses
import pathlib
import sys
from types import SimpleNamespace

import mobius
import numpy as np
import onnx_ir as ir
from mobius._configs import Gemma4AssistantConfig
from mobius.models.gemma4_assistant import Gemma4AssistantCausalLMModel

S, F = "sliding_attention", "full_attention"
TEXT = dict(model_type="gemma4_text", vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=1, num_kv_shared_layers=3, head_dim=16, global_head_dim=32, layer_types=[S, S, F], sliding_window=8,
            max_position_embeddings=64, rms_norm_eps=1e-6, hidden_activation="gelu_pytorch_tanh", pad_token_id=0, bos_token_id=2,
            eos_token_id=1, tie_word_embeddings=True, attention_dropout=0.0, attention_bias=False, enable_moe_block=False,
            use_double_wide_mlp=False, hidden_size_per_layer_input=0, vocab_size_per_layer_input=0,
            rope_parameters={S: {"rope_theta": 1e4, "rope_type": "default"},
                             F: {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"}})


def weights(model, rng):
    for name, value in model.graph.initializers.items():
        if value.const_value is None:
            shape = [int(extent) for extent in value.shape]
            array = rng.standard_normal(shape) / shape[-1] ** 0.5 if len(shape) > 1 else rng.uniform(0.7, 1.2, shape)
            value.const_value = ir.tensor(array.astype(np.float32), name=name)


def make(folder, provider):
    config = SimpleNamespace(model_type="gemma4_assistant", text_config=SimpleNamespace(**TEXT), backbone_hidden_size=24,
                             use_ordered_embeddings=False, num_centroids=16, centroid_intermediate_top_k=4,
                             tie_word_embeddings=True, architectures=["Gemma4AssistantForCausalLM"])
    small = dataclasses.replace(Gemma4AssistantConfig.from_transformers(config, parent_config=config), dtype=ir.DataType.FLOAT)
    package = mobius.build_from_module(Gemma4AssistantCausalLMModel(small), small, "gemma4-assistant",
                                       execution_provider=provider)
    model = next(iter(package.values()))
    weights(model, np.random.default_rng(5))
    case = pathlib.Path(folder) / f"mobius_drafter_{provider}"
    case.mkdir(parents=True, exist_ok=True)
    ir.save(model, case / "model.onnx")


if __name__ == "__main__":
    for wanted in ("default", "cpu"):
        make(sys.argv[1], wanted)
