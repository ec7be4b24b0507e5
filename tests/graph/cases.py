"""Shared by the tests of rewritten real models: the cases, the command line, and a run against the goldens."""

import collections
import json
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests" / "support")]
import logits  # noqa: E402
from kvshare.decoder import Decoder, golden_steps  # noqa: E402

DATA = pathlib.Path(__file__).resolve().parents[1] / "data"
MIXED = ["mixed_bias_asis", "mixed_bool_asis", "mixed_bias_causal0", "mixed_bias_b2_ragged_causal0",
         "e2b35_mixed_bias_asis", "mixed_bias_fp16_asis"]
HEAD = ["head_shared_gqa", "head_b2_ragged", "e2b35_head_shared_gqa", "head_shared_gqa_fp16", "e2b_heads"]
TARGETS = ["kvshare", "kvshare-attention", "ort"]
MASK_OPS = ["CumSum", "GreaterOrEqual", "Less", "And", "Where"]


def element(case):
    return "float16" if "fp16" in case or "webgpu" in case else "float32"


def tolerance(case):
    return logits.TOLERANCE[element(case)]


def shared_layers(case):
    return json.loads((DATA / case / "case.json").read_text())["borrows"]


def run(binary, *arguments):
    return subprocess.run([str(binary), *map(str, arguments)], capture_output=True, text=True, errors="replace", check=False)


def rewrite(binary, model, out, *options):
    result = run(binary, "rewrite", model, "-o", out, *options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def inspect(binary, model, *options):
    result = run(binary, "inspect", model, "--json", *options)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def load(model):
    return onnx.load(str(model), load_external_data=False)


def operators(model):
    return collections.Counter((n.domain, n.op_type) for n in load(model).graph.node)


def session(model, library=None):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if library:
        options.register_custom_ops_library(str(library))
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def open_decoder(model, batch, library=None):
    return Decoder(session(model, library), batch)


def prefill(model, ids, library=None):
    """The logits of prompts of one length."""
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    return open_decoder(model, len(ids), library).step(ids, np.ones_like(ids), positions)


def steps_of(model, case, library=None):
    golden = np.load(DATA / case / "golden.npz")
    return golden_steps(open_decoder(model, golden["input_ids"].shape[0], library), golden)


def logits_of(model, case, library=None):
    """The logits of the case's tokens: of the prompt's that are no padding, and of each decode step's."""
    return [got for got, _ in steps_of(model, case, library)]


def differences(model, case, library=None):
    """The error of the prefill and of each decode step, by the measure of `tolerance`."""
    return [logits.error(got, want, element(case)) for got, want in steps_of(model, case, library)]
