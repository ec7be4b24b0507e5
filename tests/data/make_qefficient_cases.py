"""Makes the qefficient_* cases: a Gemma 4 of random weights as QEfficient exports it for Qualcomm's Cloud AI 100.

    python make_qefficient_cases.py FOLDER        QEfficient in PYTHONPATH

Made with QEfficient 1.23.0.dev0 (quic/efficient-transformers, commit ebf55e8), torch 2.13.0 (CPU), transformers 5.5.4,
onnx 1.23.2, onnxscript 0.7.2. QEFFAutoModelForCausalLM(...).export() writes caches of ctx_len rows through functions
(CtxScatter, CtxGather); attention is MatMul and Softmax. Layers that share write the key and value of their source into caches
of their own. qefficient_gemma4 is its default, qefficient_gemma4_layers has use_onnx_subfunctions=True: a function for each layer.
The default's index of rows that nobody wrote, 2147483647, is 0 here, as in QEfficient's own runner on ONNX Runtime, which
refuses the other. Golden logits are those of transformers' model in PyTorch; decode takes drawn tokens, beyond the window.
"""
import copy
import json
import pathlib
import sys
import tempfile
import types

import numpy as np
import onnx
import torch
import transformers
from onnx import numpy_helper

sys.modules["qwen_vl_utils"] = types.ModuleType("qwen_vl_utils")  # for pictures of other models
sys.modules["qwen_vl_utils"].smart_resize = None
import QEfficient  # noqa: E402

S, F = "sliding_attention", "full_attention"
WINDOW = 32  # QEfficient traces 32 tokens, and smaller windows do not trace
PROMPT, STEPS, VOCABULARY = 24, 16, 48
CONFIG = dict(
    vocab_size=VOCABULARY, vocab_size_per_layer_input=VOCABULARY, hidden_size=32, intermediate_size=16, hidden_size_per_layer_input=4,
    num_hidden_layers=6, layer_types=[S, S, F, S, S, F], num_kv_shared_layers=3, sliding_window=WINDOW, use_double_wide_mlp=True,
    num_attention_heads=4, num_key_value_heads=1, head_dim=16, global_head_dim=16, attention_k_eq_v=False, max_position_embeddings=128,
    final_logit_softcapping=30.0, bos_token_id=2, eos_token_id=1, pad_token_id=0,
    rope_parameters={S: {"rope_type": "default", "rope_theta": 1e4},
                     F: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}})
BORROWS = {3: 1, 4: 1, 5: 2}


def golden(model):
    ids = torch.randint(3, VOCABULARY, (1, PROMPT + STEPS))
    with torch.no_grad():
        logits = model(input_ids=ids).logits.numpy()
    ids, positions = ids.numpy(), np.arange(PROMPT + STEPS)
    return {"input_ids": ids[:, :PROMPT], "position_ids": positions[None, :PROMPT], "lens": np.array([PROMPT]),
            "prefill_logits": logits[:, :PROMPT], "decode_input_ids": ids[0, PROMPT:, None],
            "decode_position_ids": positions[PROMPT:, None], "decode_logits": logits[0, PROMPT:, None]}


def without_descriptions(model):
    """Drops stack traces and paths; no node and no value changes."""
    for item in [*model.graph.node, *model.graph.value_info, *(node for function in model.functions for node in function.node)]:
        item.doc_string = ""
        del item.metadata_props[:]
    return model


def with_indices(model):
    """2147483647 becomes 0."""
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].t.data_type in (onnx.TensorProto.INT32, onnx.TensorProto.INT64):
            value = numpy_helper.to_array(node.attribute[0].t)
            if value.shape == () and value == 2147483647:
                node.attribute[0].t.CopyFrom(numpy_helper.from_array(np.zeros_like(value)))
    return model


def make(folder, name, **options):
    torch.manual_seed(7)
    model = transformers.Gemma4ForCausalLM(transformers.Gemma4TextConfig(**CONFIG)).eval().float()
    for parameter in model.parameters():  # far enough from zero for the attention to matter
        parameter.data.mul_(1 if parameter.dim() < 2 else 3)
    case = pathlib.Path(folder) / name
    case.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(case / "golden.npz", **golden(copy.deepcopy(model)))
    with tempfile.TemporaryDirectory() as exported:
        path = QEfficient.QEFFAutoModelForCausalLM(model).export(export_dir=f"{exported}/model", **options)
        onnx.save(with_indices(without_descriptions(onnx.load(path))), case / "model.onnx")
    (case / "case.json").write_text(json.dumps({
        "model": "gemma4", "producer": f"QEfficient {QEfficient.__version__}, torch.onnx.export {torch.__version__}, "
        f"transformers {transformers.__version__}", "opset": 17, "dtype": "f32", "layer_types": CONFIG["layer_types"],
        "sliding_window": WINDOW, "borrows": BORROWS}, indent=1) + "\n")


if __name__ == "__main__":
    make(sys.argv[1], "qefficient_gemma4")
    make(sys.argv[1], "qefficient_gemma4_layers", use_onnx_subfunctions=True)
