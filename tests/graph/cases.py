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
HEAD = ["head_shared_gqa", "head_b2_ragged", "e2b35_head_shared_gqa", "head_shared_gqa_fp16", "e2b_heads"]
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


class Decoder:
    """A model in ONNX Runtime with its cache."""

    def __init__(self, model, batch, library=None):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        if library:
            options.register_custom_ops_library(str(library))
        self.session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self.inputs = {i.name: i for i in self.session.get_inputs()}
        self.outputs = [o.name for o in self.session.get_outputs()]
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self.past = {n: np.zeros((batch, i.shape[1], 0, i.shape[3]), types[i.type])
                     for n, i in self.inputs.items() if n.startswith("past_key_values")}

    def step(self, ids, mask, positions):
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, **self.past}
        results = dict(zip(self.outputs, self.session.run(None, {k: v for k, v in feeds.items() if k in self.inputs})))
        for name in self.past:
            self.past[name] = results[name.replace("past_key_values", "present")]
        return results["logits"].astype(np.float32)


def prefill(model, ids, library=None):
    """The logits of prompts of one length."""
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return Decoder(model, len(ids), library).step(ids, np.ones_like(ids), np.ascontiguousarray(positions))


def logits_of(model, case, library=None):
    """The logits of the case's tokens: of the prompt's that are no padding, and of each decode step's."""
    golden = np.load(DATA / case / "golden.npz")
    decoder = Decoder(model, golden["input_ids"].shape[0], library)
    logits = decoder.step(golden["input_ids"], golden["attention_mask"], golden["position_ids"])
    valid = np.arange(logits.shape[1])[None, :] < golden["lens"][:, None]
    found = [logits[valid]]
    for t in range(len(golden["decode_input_ids"])):
        logits = decoder.step(golden["decode_input_ids"][t][:, None], golden[f"decode_attention_mask_{t}"],
                              golden["decode_position_ids"][t][:, None])
        found.append(logits[:, 0])
    return found


def differences(model, case, library=None):
    """max |logit - golden| of prefill and of each decode step."""
    golden = np.load(DATA / case / "golden.npz")
    valid = np.arange(golden["input_ids"].shape[1])[None, :] < golden["lens"][:, None]
    wanted = [golden["prefill_logits"][valid], *golden["decode_logits"]]
    return [float(np.abs(got - want).max()) for got, want in zip(logits_of(model, case, library), wanted, strict=True)]
