"""Makes the torch_* cases: Hugging Face decoders of random weights as torch.onnx.export writes them, opset 24 unless
another is named; and the cut_torch_* cases, whose layers with windows keep the last window - 1 keys.

    python make_torch_cases.py FOLDER [[cut_]NAME[@OPSET] ...]

Made with torch 2.13.0 (CPU), transformers 5.6.2, onnx 1.23.2 and onnxscript 0.7.2. Past and new keys are joined by Concat,
key-value heads are repeated for the query heads of their group, and masks compare columns. Golden logits are those of
the very model in PyTorch; decode takes its own greedy tokens. cut_torch_gemma4 has none: the export is not the model.
"""
import json
import pathlib
import sys

import numpy as np
import onnx
import torch
import transformers

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "support"))
from torch_export import export  # noqa: E402

S, F = "sliding_attention", "full_attention"
WINDOW = 5
VOCABULARY = 48
SMALL = dict(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, bos_token_id=2, eos_token_id=1, pad_token_id=0)
HEADS = dict(SMALL, head_dim=16)
ROPE = {S: {"rope_type": "default", "rope_theta": 1e4},
        F: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}}
# The last `shared` layers borrow from the last layer of their type before them.
SHARING = dict(HEADS, vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=4, sliding_window=WINDOW)


def gemma4():
    return transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**{
        **SHARING, "num_hidden_layers": 5, "layer_types": [S, S, F, S, F], "num_kv_shared_layers": 2,
        "num_key_value_heads": 1, "global_head_dim": 32, "intermediate_size": 16, "use_double_wide_mlp": True, "final_logit_softcapping": 30.0,
        "attention_k_eq_v": False, "rope_parameters": ROPE}))


def gemma3n():
    return transformers.Gemma3nForCausalLM(transformers.Gemma3nTextConfig(**{
        **SHARING, "num_hidden_layers": 4, "layer_types": [S, F, S, F], "num_kv_shared_layers": 2, "laurel_rank": 4,
        "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [32] * 4}))


MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**HEADS)),
    "qwen3": lambda: transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**HEADS)),
    "mistral": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**HEADS, sliding_window=WINDOW)),
    "phi3": lambda: transformers.Phi3ForCausalLM(transformers.Phi3Config(**SMALL, sliding_window=WINDOW)),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(
        **HEADS, sliding_window=WINDOW, layer_types=[S, F], query_pre_attn_scalar=16)),
    "gemma3n": gemma3n,
    "gemma4": gemma4,
}
PROMPT, STEPS = 13, 5


def golden(model):
    """A prompt and the greedy tokens after it."""
    ids = torch.randint(3, VOCABULARY, (1, PROMPT))
    arrays = {"input_ids": ids.numpy(), "attention_mask": np.ones((1, PROMPT), np.int64),
              "position_ids": np.arange(PROMPT)[None], "lens": np.array([PROMPT])}
    tokens, logits = [], []
    arrays["prefill_logits"] = model(input_ids=ids).logits.numpy()
    for step in range(STEPS):
        tokens.append(int((arrays["prefill_logits"] if step == 0 else logits[-1])[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([[tokens[-1]]])], 1)
        logits.append(model(input_ids=ids).logits.numpy())
        arrays[f"decode_attention_mask_{step}"] = np.ones((1, PROMPT + step + 1), np.int64)
    arrays["decode_input_ids"] = np.array(tokens)[:, None]
    arrays["decode_position_ids"] = np.arange(PROMPT, PROMPT + STEPS)[:, None]
    arrays["decode_logits"] = np.stack([step[:, -1] for step in logits])
    return arrays


def strip(path):
    """Drops what describes the export, stack traces and paths among it; no node and no value changes."""
    model = onnx.load(path)
    del model.metadata_props[:]
    model.graph.doc_string, model.graph.name = "", "main_graph"
    for group in (model.graph.node, model.graph.value_info, model.graph.input, model.graph.output, model.graph.initializer):
        for item in group:
            item.doc_string = ""
            del item.metadata_props[:]
    onnx.save(model, path)


def make(folder, name, opset=24, cuts=False):
    torch.manual_seed(7)
    model = MODELS[name]().eval().float()
    model.set_attn_implementation("sdpa")
    for parameter in model.parameters():  # far enough from zero for the attention to matter
        parameter.data.mul_(1 if parameter.dim() < 2 else 3 if name == "gemma4" else 6)
    case = pathlib.Path(folder) / (("cut_" if cuts else "") + (f"torch_{name}" if opset == 24 else f"torch_{name}_o{opset}"))
    case.mkdir(parents=True, exist_ok=True)
    config = model.config
    types = getattr(config, "layer_types", None) or [S if getattr(config, "sliding_window", None) else F] * config.num_hidden_layers
    with torch.no_grad():
        if not (cuts and F in types):  # such an export leaves PyTorch's logits past the window
            np.savez_compressed(case / "golden.npz", **golden(model))
        export(model, case / "model.onnx", opset, external_data=False, cuts=cuts)
    strip(str(case / "model.onnx"))
    own = config.num_hidden_layers - (getattr(config, "num_kv_shared_layers", 0) or 0)
    borrows = {i: own - 1 - types[own - 1::-1].index(types[i]) for i in range(own, len(types))}
    (case / "case.json").write_text(json.dumps({
        "model": name, "producer": f"torch.onnx.export {torch.__version__}, transformers {transformers.__version__}",
        "opset": opset, "dtype": "f32", "layer_types": types, "sliding_window": WINDOW if S in types else None,
        "borrows": borrows}, indent=1) + "\n")


if __name__ == "__main__":
    for wanted in sys.argv[2:] or MODELS:
        name, _, version = wanted.partition("@")
        make(sys.argv[1], name.removeprefix("cut_"), int(version or 24), name.startswith("cut_"))
