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


def test_the_cases_are_onnxs():
    assert len(OP_CASES) == len(EXPANDED) == 93 or onnx.__version__ != "1.23.2"


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


@pytest.mark.parametrize("case", EXPANDED, ids=id_of)
def test_expanded_case_is_left_to_ort(case):
    def outcome(lib, **entries):
        try:
            return [got for _, got, _ in run(case, lib, **entries)]
        except Exception as e:
            return str(e)

    counters = harness.Counters()
    counters.reset()
    got, want = outcome(harness.ORT_LIB, drop_in="attention"), outcome(None)
    assert counters.read()["ran"] == 0
    if isinstance(want, str):  # ORT lacks some op of some type
        assert got == want
        return
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a, b)
