"""ONNX's own test cases of Attention, through the override: right by ONNX's tolerances, and run by the kernels here."""
import warnings

import numpy as np
import onnx
import pytest
from onnx.backend.test.case.node import collect_testcases

import harness

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of other ops' cases, which are made on the way
    np.random.seed(0)  # the cases draw their inputs
    CASES = collect_testcases("Attention")
OP_CASES = [c for c in CASES if any(n.op_type == "Attention" for n in c.model.graph.node)]
EXPANDED = [c for c in CASES if c not in OP_CASES]  # the same as graphs of simple ops


def id_of(case):
    return case.name.removeprefix("test_")


def run(case, lib, **entries):
    """[(output, got, want)] of all data sets."""
    session = harness.session(case.model.SerializeToString(), lib, **entries)
    result = []
    for inputs, outputs in case.data_sets:
        got = harness.run(session, {v.name: np.asarray(a) for v, a in zip(case.model.graph.input, inputs)})
        result += [(v.name, got[v.name], np.asarray(a)) for v, a in zip(case.model.graph.output, outputs)]
    return result


def test_every_case_of_the_pinned_onnx_is_here():
    assert (onnx.__version__, len(OP_CASES), len(EXPANDED)) == ("1.23.2", 93, 93)


@pytest.mark.parametrize("case", OP_CASES, ids=id_of)
def test_op_case_passes_in_the_kernels_here(case):
    counters = harness.Counters()
    counters.reset()
    for name, got, want in run(case, harness.ORT_LIB, drop_in="attention"):
        assert got.dtype == want.dtype and got.shape == want.shape, name
        rtol = max(case.rtol, 2**-6) if got.dtype.name == "bfloat16" else case.rtol  # as ONNX's runner has it
        np.testing.assert_allclose(got.astype(np.float64), want.astype(np.float64), rtol, case.atol, err_msg=name)
    stats = counters.read()
    assert stats["ran"] == len(case.data_sets)


@pytest.mark.parametrize("name", ["attention_4d_causal_expanded", "attention_4d_with_past_and_present_expanded",
                                  "attention_4d_attn_mask_4d_expanded"])
def test_the_same_in_simple_ops_is_left_to_ort(name):
    [case] = [c for c in EXPANDED if id_of(c) == name]
    counters = harness.Counters()
    counters.reset()
    got, want = run(case, harness.ORT_LIB, drop_in="attention"), run(case, None)
    assert counters.read()["ran"] == 0
    for (output, a, _), (_, b, _) in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=output)
