"""Shared by the tests of rewritten real models: the cases, the command line, and a run against the goldens."""

import collections
import json
import pathlib
import subprocess

import numpy as np
import onnx
import onnxruntime as ort

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
MIXED = ["mixed_bias_asis", "mixed_bool_asis", "mixed_bias_causal0", "mixed_bias_b2_ragged_causal0",
         "e2b35_mixed_bias_asis", "mixed_bias_fp16_asis"]
HEAD = ["head_shared_gqa", "head_b2_ragged", "e2b35_head_shared_gqa", "head_shared_gqa_fp16"]
LEFT_ALONE = ["default_attention", "webgpu_constant_empty"]
TARGETS = ["kvshare", "kvshare-attention", "ort"]
MASK_OPS = ["CumSum", "GreaterOrEqual", "Less", "And", "Where"]


def tolerance(case):
    return 0.1 if "fp16" in case or "webgpu" in case else 1e-4


def shared_layers(case):
    return json.loads((DATA / case / "case.json").read_text())["borrows"]


def run(binary, *arguments):
    return subprocess.run([str(binary), *map(str, arguments)], capture_output=True, text=True, errors="replace", check=False)


def rewrite(binary, model, out, *options):
    result = run(binary, "rewrite", model, "-o", out, *options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def inspect(binary, model):
    result = run(binary, "inspect", model, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def load(model):
    return onnx.load(str(model), load_external_data=False)


def operators(model):
    return collections.Counter((n.domain, n.op_type) for n in load(model).graph.node)


def differences(model, case, library=None):
    """max |logit - golden| of prefill and of each decode step."""
    golden = np.load(DATA / case / "golden.npz")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if library:
        options.register_custom_ops_library(str(library))
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    inputs = {i.name: i for i in session.get_inputs()}
    outputs = [o.name for o in session.get_outputs()]
    batch = golden["input_ids"].shape[0]
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    past = {n: np.zeros((batch, i.shape[1], 0, i.shape[3]), types[i.type])
            for n, i in inputs.items() if n.startswith("past_key_values")}

    def step(ids, mask, positions):
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **past}
        results = dict(zip(outputs, session.run(None, {k: v for k, v in feeds.items() if k in inputs})))
        for name in past:
            past[name] = results[name.replace("past_key_values", "present")]
        return results["logits"].astype(np.float32)

    logits = step(golden["input_ids"], golden["attention_mask"], golden["position_ids"])
    valid = np.arange(logits.shape[1])[None, :] < golden["lens"][:, None]
    found = [float(np.abs(logits - golden["prefill_logits"])[valid].max())]
    for t in range(len(golden["decode_input_ids"])):
        logits = step(golden["decode_input_ids"][t][:, None], golden[f"decode_attention_mask_{t}"],
                      golden["decode_position_ids"][t][:, None])
        found.append(float(np.abs(logits[:, 0] - golden["decode_logits"][t]).max()))
    return found
