"""The provider among other sessions and libraries: threads, registrations, the end of a registration."""
import ctypes
import os
import subprocess
import sys
import threading

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import ep_harness
import golden_cases
import golden_in_ep
import harness
from gqa_test import Problem
from harness import assert_close

THREADS = 8
CALLS = 10
CASES = ["head_b2_ragged", "mixed_bias_asis"]


def prefill(name):
    golden = np.load(os.path.join(harness.DATA, name, "golden.npz"))
    sess = harness.session(golden_in_ep.path(name), lib=None)
    batch = golden["input_ids"].shape[0]
    return {i.name: golden[i.name] if i.name in golden.files else np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32)
            for i in sess.get_inputs()}


@pytest.mark.parametrize("mode", golden_in_ep.MODES)
@pytest.mark.parametrize("name", CASES)
def test_eight_threads_on_one_session_give_the_bits_of_one(name, mode):
    sess, feed = ep_harness.session(golden_in_ep.path(name), mode=mode), prefill(name)
    alone = sess.run(None, feed)
    wrong = []

    def work():
        for _ in range(CALLS):
            wrong.extend(1 for got, want in zip(sess.run(None, feed), alone) if not np.array_equal(got, want, equal_nan=True))

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("mode", golden_in_ep.MODES)
def test_parallel_execution_gives_the_golden_logits(mode):
    sess = ep_harness.session(golden_in_ep.path("mixed_bias_asis"), mode=mode, execution_mode=ort.ExecutionMode.ORT_PARALLEL)
    prefill_worst, decode, tolerance, _ = golden_cases.differences("mixed_bias_asis", harness.ORT_LIB, session=sess)
    assert max(prefill_worst, decode) <= tolerance


def test_sessions_with_and_without_live_side_by_side():
    name = "mixed_bias_causal0"
    feed = prefill(name)
    with_provider, without = ep_harness.session(golden_in_ep.path(name)), harness.session(golden_in_ep.path(name), lib=None)
    counters = harness.Counters()
    counters.reset()
    want = without.run(None, feed)
    assert counters.read()["ran"] == 0
    for got, stock in zip(with_provider.run(None, feed), want):
        assert_close(got, stock, np.float32, least=1e-4)
    assert counters.read()["ran"] > 0


def test_a_rewritten_and_a_dropped_in_node_live_beside_it():
    """One session with the provider in front, and the custom ops of both libraries registered."""
    name = "mixed_bias_asis"
    for lib in (harness.ORT_LIB, harness.DROPIN_LIB):
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.register_custom_ops_library(lib)
        options.add_provider_for_devices(ep_harness.devices(), {})
        sess = ort.InferenceSession(golden_in_ep.path(name), options)
        assert not ep_harness.attention_elsewhere(sess)
        worst, decode, tolerance, _ = golden_cases.differences(name, harness.ORT_LIB, session=sess)
        assert max(worst, decode) <= tolerance


def python(script):
    """A process of its own: registrations are the process's."""
    done = subprocess.run([sys.executable, "-c", f"import sys\nsys.path[:0] = {sys.path!r}\n{script}"], capture_output=True, text=True)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


def test_unregistering_under_a_live_session_leaves_it_right():
    python("""
import onnxruntime as ort, ep_harness, golden_cases, golden_in_ep, harness
sess = ep_harness.session(golden_in_ep.path("mixed_bias_asis"))
ort.unregister_execution_provider_library("kvshare")
assert not [d for d in ort.get_ep_devices() if d.ep_name == ep_harness.NAME]
worst, decode, tolerance, stats = golden_cases.differences("mixed_bias_asis", harness.ORT_LIB, session=sess)
assert max(worst, decode) <= tolerance and stats["ran"], (worst, decode)
del sess
ort.register_execution_provider_library("kvshare", harness.ORT_LIB)
sess = ep_harness.session(golden_in_ep.path("mixed_bias_asis"))
worst, decode, tolerance, stats = golden_cases.differences("mixed_bias_asis", harness.ORT_LIB, session=sess)
assert max(worst, decode) <= tolerance and stats["ran"]
""")


def test_registering_twice_is_refused_and_under_two_names_works():
    out = python("""
import onnxruntime as ort, ep_harness, golden_in_ep, harness
ep_harness.register()
try:
    ort.register_execution_provider_library("kvshare", harness.ORT_LIB)
except Exception as e:
    print(e)
ort.register_execution_provider_library("again", harness.ORT_LIB)
sess = ep_harness.session(golden_in_ep.path("mixed_bias_asis"))
assert ep_harness.assigned(sess)
ort.unregister_execution_provider_library("again")
sess = ep_harness.session(golden_in_ep.path("mixed_bias_asis"))
assert ep_harness.assigned(sess)
""")
    assert "already" in out


FAKE = "FakeDeviceExecutionProvider"


@pytest.mark.parametrize("takes", [True, False])
def test_it_stands_aside_where_another_provider_has_nodes(takes, capfd):
    """The other provider, first in the list, takes every Neg."""
    ort.register_execution_provider_library("fake", os.environ["KVSHARE_FAKE_DEVICE"])
    try:
        p = Problem(9, S=1, lens=[9], past=8)
        model = onnx.load_from_string(harness.model("GroupQueryAttention", "com.microsoft", harness.GQA_INPUTS, harness.GQA_OUTPUTS,
                                                    p.inputs, ("output", "present_key", "present_value"), p.attributes))
        if takes:
            model.graph.node.append(helper.make_node("Neg", ["output"], ["negative"]))
            model.graph.output.append(helper.make_tensor_value_info("negative", TensorProto.FLOAT, None))
        options = ort.SessionOptions()
        options.log_severity_level = 1
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        for name in (FAKE, ep_harness.NAME):
            options.add_provider_for_devices([d for d in (*ort.get_ep_devices(), *ep_harness.devices()) if d.ep_name == name][:1], {})
        sess = ort.InferenceSession(model.SerializeToString(), options)
        assert len(ep_harness.assigned(sess)) == (0 if takes else 1)
        assert (f"stands aside; {FAKE} has nodes" in capfd.readouterr().err) == takes
        outputs = sess.run(None, p.inputs)
        if takes:
            np.testing.assert_array_equal(outputs[-1], -outputs[0])
        del sess, options
    finally:
        ort.unregister_execution_provider_library("fake")


def test_a_plain_session_never_takes_it():
    ep_harness.register()
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    sess = ort.InferenceSession(golden_in_ep.path("mixed_bias_causal0"), options)
    assert ep_harness.assigned(sess) == []


def test_many_sessions_leave_nothing_behind():
    def resident():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

    def once():
        ep_harness.session(golden_in_ep.path("mixed_bias_causal0"))

    for _ in range(10):
        once()
    before = resident()
    for _ in range(30):
        once()
    assert resident() - before < 15_000  # KiB; a session takes more than a thousand


def test_an_older_host_gets_a_line_that_names_the_version_it_needs():
    host = harness.OlderHost(23)
    create = ctypes.CDLL(harness.ORT_LIB).CreateEpFactories
    create.restype = ctypes.c_void_p
    count, factories = ctypes.c_size_t(7), (ctypes.c_void_p * 1)()
    assert create(b"kvshare", host.base, None, factories, ctypes.c_size_t(1), ctypes.byref(count)) == host.STATUS
    assert count.value == 0
    message, = host.said
    assert message.endswith(": ONNX Runtime 1.23.2 has no C API version 24; the execution provider needs ONNX Runtime 1.24 or "
                            "later, custom ops and drop-in serve 1.18 and later")
