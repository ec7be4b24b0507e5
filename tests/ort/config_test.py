"""Session entries, the environment, both libraries, the counters, and what registration does to a session."""
import ctypes
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import harness
from gqa_test import Problem
from harness import DROPIN_LIB, ORT_LIB, Counters, attention, gqa

HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.fixture(autouse=True)
def new_sessions():
    """The environment is read when a session is made."""
    harness.kept_session.cache_clear()


def ran(op, domain, call, lib):
    counters = Counters(lib)
    counters.reset()
    call()
    return sum(n["ran"] for n in counters.read()["nodes"] if n["op"] == op and n["domain"] == domain)


def which(lib, **entries):
    """Which built-ins the library replaced."""
    p = Problem(60, S=1, lens=[9], past=8)
    q = np.zeros((1, 2, 2, 8), np.float32)
    replaced = []
    if ran("GroupQueryAttention", "com.microsoft", lambda: gqa(p.inputs, p.attributes, lib=lib, **entries), lib):
        replaced.append("gqa")
    if ran("Attention", "", lambda: attention({"Q": q, "K": q, "V": q}, {}, lib=lib, opset=23, **entries), lib):
        replaced.append("attention")
    return replaced


@pytest.mark.parametrize("lib,entries,want", [
    (ORT_LIB, {}, []),
    (ORT_LIB, {"drop_in": "0"}, []),
    (ORT_LIB, {"drop_in": "1"}, ["gqa", "attention"]),
    (ORT_LIB, {"drop_in": "gqa"}, ["gqa"]),
    (ORT_LIB, {"drop_in": "attention"}, ["attention"]),
    (DROPIN_LIB, {}, ["gqa", "attention"]),
    (DROPIN_LIB, {"drop_in": "1"}, ["gqa", "attention"]),
    (DROPIN_LIB, {"drop_in": "gqa"}, ["gqa"]),
    (DROPIN_LIB, {"drop_in": "attention"}, ["attention"]),
], ids=str)
def test_drop_in_replaces_what_the_entry_names(lib, entries, want):
    assert which(lib, **entries) == want


@pytest.mark.parametrize("lib", [ORT_LIB, DROPIN_LIB])
@pytest.mark.parametrize("entries", [{}, {"drop_in": "1"}, {"drop_in": "gqa"}, {"drop_in": "attention"}], ids=str)
@pytest.mark.parametrize("value,want", [("0", []), ("1", ["gqa", "attention"]), ("gqa", ["gqa"]), ("attention", ["attention"])])
def test_the_environment_counts_before_entry_and_library(value, want, entries, lib, monkeypatch):
    monkeypatch.setenv("KVSHARE_DROP_IN", value)
    assert which(lib, **entries) == want


def test_an_empty_variable_is_none(monkeypatch):
    monkeypatch.setenv("KVSHARE_DROP_IN", "")
    assert which(ORT_LIB, drop_in="gqa") == ["gqa"]


@pytest.mark.parametrize("lib,key,value,text", [
    (ORT_LIB, "drop_in", "yes", "session entry 'kvshare.drop_in' is 'yes'; needs 0, 1, gqa or attention"),
    (DROPIN_LIB, "drop_in", "0", "session entry 'kvshare.drop_in' is '0'; needs 1, gqa or attention"),
    (ORT_LIB, "causal_alignment", "left", "session entry 'kvshare.causal_alignment' is 'left'; needs spec or lower_right"),
])
def test_another_value_is_an_error_that_names_the_accepted_ones(lib, key, value, text):
    p = Problem(61, S=1, lens=[1])
    with pytest.raises(Exception, match="kvshare") as caught:
        gqa(p.inputs, p.attributes, lib=lib, **{key: value})
    assert text in str(caught.value)


def test_another_value_of_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("KVSHARE_DROP_IN", "off")
    with pytest.raises(Exception, match="environment variable 'KVSHARE_DROP_IN' is 'off'; needs 0, 1, gqa or attention"):
        which(ORT_LIB)


def test_an_entry_set_after_registration_is_ignored():
    p = Problem(62, S=1, lens=[9], past=8)
    m = harness.model("GroupQueryAttention", "com.microsoft", harness.GQA_INPUTS, harness.GQA_OUTPUTS, p.inputs,
                      ("output", "present_key", "present_value"), p.attributes)
    options = ort.SessionOptions()
    options.register_custom_ops_library(ORT_LIB)
    options.add_session_config_entry("kvshare.drop_in", "1")
    assert ran("GroupQueryAttention", "com.microsoft", lambda: ort.InferenceSession(m, options).run(None, p.inputs), ORT_LIB) == 0


def test_an_entry_of_another_name_is_ignored():
    assert which(ORT_LIB, dropin="1") == []
    assert which(ORT_LIB, drop_in="gqa", delegate="0") == ["gqa"]  # once an entry


def test_two_registrations_of_one_session_are_an_error_of_ort():
    options = ort.SessionOptions()
    options.register_custom_ops_library(ORT_LIB)
    options.register_custom_ops_library(DROPIN_LIB)
    p = Problem(63, S=1, lens=[9], past=8)
    m = harness.model("GroupQueryAttention", "com.microsoft", harness.GQA_INPUTS, harness.GQA_OUTPUTS, p.inputs,
                      ("output", "present_key", "present_value"), p.attributes)
    with pytest.raises(Exception, match="(?i)already"):
        ort.InferenceSession(m, options)


def matmul_of_two(imports_microsoft):
    """A model with a transposed MatMul, which ORT's optimizer turns into com.microsoft.FusedMatMul."""
    nodes = [helper.make_node("Transpose", ["a"], ["t"], perm=[1, 0]), helper.make_node("MatMul", ["t", "b"], ["y"])]
    f = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4])
    opsets = [helper.make_opsetid("", 21)] + ([helper.make_opsetid("com.microsoft", 1)] if imports_microsoft else [])
    made = helper.make_model(helper.make_graph(nodes, "g", [f("a"), f("b")], [f("y")]), opset_imports=opsets)
    made.ir_version = 10
    return made.SerializeToString()


def test_the_import_condition():
    # Anything added to com.microsoft makes a model that does not import that domain see it at version 1000.
    harness.session(matmul_of_two(True), drop_in="1")
    harness.session(matmul_of_two(False), drop_in="attention")
    with pytest.raises(Exception, match="FusedMatMul"):
        harness.session(matmul_of_two(False), drop_in="gqa")


def gelu_of_microsoft():
    """A model that imports com.microsoft alone, whose op of fp16 ORT writes out as ops of ai.onnx."""
    f = lambda name, *dims: helper.make_tensor_value_info(name, TensorProto.FLOAT16, dims)
    node = helper.make_node("FastGelu", ["x", "b"], ["y"], domain="com.microsoft")
    made = helper.make_model(helper.make_graph([node], "g", [f("x", "N", 8), f("b", 8)], [f("y", "N", 8)]),
                             opset_imports=[helper.make_opsetid("com.microsoft", 1)])
    made.ir_version = 10
    return made.SerializeToString()


def test_the_import_condition_of_ai_onnx():
    harness.session(gelu_of_microsoft(), None)
    harness.session(gelu_of_microsoft())
    harness.session(gelu_of_microsoft(), drop_in="gqa")
    for entry in ("attention", "1"):
        with pytest.raises(Exception, match="No Op registered for Add with domain_version of 1000"):
            harness.session(gelu_of_microsoft(), drop_in=entry)


def test_a_node_may_be_of_a_domain_that_the_model_does_not_import():
    p = Problem(67, S=1, lens=[9], past=8)
    m = onnx.load_from_string(harness.model("GroupQueryAttention", "com.microsoft", harness.GQA_INPUTS, harness.GQA_OUTPUTS,
                                            p.inputs, ("output", "present_key", "present_value"), p.attributes))
    del m.opset_import[1:]
    for entries in ({}, {"drop_in": "gqa"}, {"drop_in": "attention"}, {"drop_in": "1"}):
        np.testing.assert_allclose(harness.session(m.SerializeToString(), **entries).run(None, p.inputs)[0], p.truth()[0], atol=1e-5)


def test_sessions_with_and_without_the_library_live_side_by_side():
    p = Problem(64, S=1, lens=[9], past=8)
    m = harness.model("GroupQueryAttention", "com.microsoft", harness.GQA_INPUTS, harness.GQA_OUTPUTS, p.inputs,
                      ("output", "present_key", "present_value"), p.attributes)
    sessions = [harness.session(m, ORT_LIB, drop_in="1"), harness.session(m, None), harness.session(m, DROPIN_LIB),
                harness.session(m, ORT_LIB)]
    results = [s.run(None, p.inputs) for s in sessions * 2]
    for result in results:
        np.testing.assert_allclose(result[0], results[0][0], atol=1e-5)


def test_concurrent_runs_of_one_session_give_one_answer():
    from concurrent.futures import ThreadPoolExecutor
    p = Problem(65, S=1, lens=[40, 17], past=39, do_rotary=1)
    m = harness.model("GroupQueryAttention", "com.microsoft", harness.GQA_INPUTS, harness.GQA_OUTPUTS, p.inputs, ("output",),
                      p.attributes)
    sess = harness.session(m, drop_in="gqa")
    want = sess.run(None, p.inputs)[0]
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: sess.run(None, p.inputs)[0], range(64)):
            np.testing.assert_array_equal(got, want)


PROGRAM = """
import numpy as np, onnxruntime as ort, harness
from gqa_test import Problem
if {verbose}:
    ort.set_default_logger_severity(1)
p = Problem(66, S=1, lens=[9], past=8)
m = harness.model("GroupQueryAttention", "com.microsoft", harness.GQA_INPUTS, harness.GQA_OUTPUTS, p.inputs, ("output",), p.attributes)
options = ort.SessionOptions()
options.log_severity_level = 1 if {verbose} else 3
options.register_custom_ops_library(harness.DROPIN_LIB)
ort.InferenceSession(m, options).run(None, p.inputs)
"""


def program(verbose, **environment):
    done = subprocess.run([sys.executable, "-c", PROGRAM.format(verbose=verbose)], cwd=HERE, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), HERE]), **environment})
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_counters_are_printed_at_exit_where_asked_for():
    line = next(l for l in program(False, KVSHARE_STATS="1").splitlines() if l.startswith("kvshare: {"))
    stats = json.loads(line.removeprefix("kvshare: "))
    assert stats["ran"] == 1 and stats["nodes"][0]["node"] == "node"
    assert "kvshare" not in program(False)


def test_one_info_line_says_version_mode_and_simd_target():
    lines = [l for l in program(True).splitlines() if "kvshare " in l]
    assert len(lines) == 1
    version = Counters(DROPIN_LIB).lib.kvshare_version().decode()
    assert f"kvshare {version}: drop-in gqa+attention, causal alignment spec, SIMD target " in lines[0]


def test_counters_fit_any_buffer():
    import ctypes
    counters = Counters()
    size = counters.lib.kvshare_stats_json(None, 0)
    buffer = ctypes.create_string_buffer(b"x" * 9, 10)
    assert counters.lib.kvshare_stats_json(buffer, 8) == size
    assert buffer.raw[7:9] == b"\0x"


@pytest.mark.parametrize("lib,provider", [(ORT_LIB, ["CreateEpFactories", "ReleaseEpFactory"]), (DROPIN_LIB, [])], ids=str)
def test_the_library_exports_its_c_functions_and_nothing_else(lib, provider):
    listed = subprocess.run(["nm", "-D", "--defined-only", lib], capture_output=True, text=True, check=True).stdout
    assert sorted(l.split()[-1] for l in listed.splitlines()) == sorted(
        ["RegisterCustomOps", "kvshare_stats_json", "kvshare_stats_reset", "kvshare_version", *provider])
    needed = subprocess.run(["ldd", lib], capture_output=True, text=True, check=True).stdout
    assert not any(name in needed for name in ("onnx", "protobuf"))


@pytest.mark.parametrize("lib", [ORT_LIB, DROPIN_LIB])
def test_an_older_host_gets_a_line_that_names_the_version_it_needs(lib):
    host = harness.OlderHost(17)
    register = ctypes.CDLL(lib).RegisterCustomOps
    register.restype = ctypes.c_void_p
    assert register(None, host.base) == host.STATUS
    message, = host.said
    assert message.endswith(": ONNX Runtime 1.17.2 has no C API version 18; needs ONNX Runtime 1.18 or later")


@pytest.mark.parametrize("target,ok", [("SSE2", True), ("AVX2", True), ("AVX1", False)])
def test_the_simd_target_can_be_limited(target, ok):
    code = f"""
import sys
sys.path.insert(0, {HERE!r})
from gqa_test import Problem, check_against_truth
from harness import Counters, gqa
p = Problem(1, S=3, lens=[9], past=8)
check_against_truth(p, gqa(p.inputs, p.attributes, drop_in="gqa"))
print(Counters().read()["simd"])
"""
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "KVSHARE_SIMD_TARGET": target}, capture_output=True,
                          text=True)
    if ok:
        assert done.stdout.strip() == target, done.stderr
    else:
        assert f"KVSHARE_SIMD_TARGET is '{target}'; have " in done.stderr
