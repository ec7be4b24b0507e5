"""Sessions under load: many threads on one session, thread counts, thousands of sessions, other libraries beside ours."""
import json
import os
import subprocess
import sys
import threading

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import golden_cases
import harness
from gqa_quantized_test import Quantized
from gqa_test import Problem

HERE = os.path.dirname(os.path.abspath(__file__))
THREADS = 8
CALLS = 25


def prefill_feed(name):
    golden = np.load(os.path.join(harness.DATA, name, "golden.npz"))
    path = os.path.join(harness.DATA, name, "model.onnx")
    sess = harness.session(path, harness.DROPIN_LIB, causal_alignment=golden_cases.alignment(name))
    feed = {}
    for i in sess.get_inputs():
        if i.name in golden.files:
            feed[i.name] = golden[i.name]
        else:
            dtype = np.float16 if "float16" in i.type else np.float32
            feed[i.name] = np.zeros((golden["input_ids"].shape[0], i.shape[1], 0, i.shape[3]), dtype)
    return sess, feed


def one_node(problem, domain="com.microsoft"):
    m = harness.model("GroupQueryAttention", domain, harness.GQA_INPUTS, harness.GQA_OUTPUTS, problem.inputs,
                      ("output", "present_key", "present_value"), problem.attributes)
    return harness.session(m, drop_in="gqa"), problem.inputs


SESSIONS = {
    "decoder": lambda: prefill_feed("head_b2_ragged"),
    "decoder_with_masks": lambda: prefill_feed("mixed_bias_asis"),
    "long_decode": lambda: one_node(Problem(1, S=1, lens=[3000, 1700], past=2999, do_rotary=0)),
    "prefill": lambda: one_node(Problem(2, S=60, lens=[60, 31], do_rotary=1, softcap=3.0)),
    "int8": lambda: one_node(Quantized("int8", True, 3, S=1, lens=[900], past=899)),
}


@pytest.mark.parametrize("make", SESSIONS.values(), ids=SESSIONS.keys())
def test_eight_threads_on_one_session_give_the_bits_of_one(make):
    sess, feed = make()
    alone = sess.run(None, feed)
    wrong = []

    def work():
        for _ in range(CALLS):
            for got, want in zip(sess.run(None, feed), alone):
                if not np.array_equal(got, want, equal_nan=True):
                    wrong.append(np.abs(got.astype(np.float64) - want).max())

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("problem", [Problem(1, S=1, lens=[3000, 1700], past=2999), Problem(2, S=60, lens=[60, 31], do_rotary=1)],
                         ids=["decode", "prefill"])
def test_bits_do_not_depend_on_the_number_of_threads(problem):
    m = harness.model("GroupQueryAttention", "com.microsoft", harness.GQA_INPUTS, harness.GQA_OUTPUTS, problem.inputs,
                      ("output", "present_key", "present_value"), problem.attributes)
    results = []
    for threads in (1, 2, 3, 5):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("kvshare.drop_in", "gqa")
        options.register_custom_ops_library(harness.ORT_LIB)
        results.append(ort.InferenceSession(m, options, providers=["CPUExecutionProvider"]).run(None, problem.inputs))
    for other in results[1:]:
        for got, want in zip(other, results[0]):
            np.testing.assert_array_equal(got, want)


# In a process of its own, so that nothing else's memory is measured: what the allocator has given out after so many
# sessions, of ONNX Runtime alone and with the library.
CYCLES = """
import ctypes, gc, json, sys
sys.path.insert(0, {here!r})
import harness
from gqa_test import Problem
problem = Problem(1, S=1, lens=[9], past=8)
model = harness.model("GroupQueryAttention", "com.microsoft", harness.GQA_INPUTS, harness.GQA_OUTPUTS, problem.inputs,
                      ("output", "present_key", "present_value"), problem.attributes)
class Info(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in "arena ordblks smblks hblks hblkhd usmblks fsmblks used free keepcost".split()]
libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Info
def used():
    gc.collect()
    info = libc.mallinfo2()
    return info.used + info.hblkhd
def grown(cycles, lib, **entries):
    def cycle(n):
        for _ in range(n):
            harness.session(model, lib, **entries).run(None, problem.inputs)
    cycle(300)
    before = used()
    cycle(cycles)
    return used() - before
print(json.dumps({{"ort": grown(500, None) / 500, "kvshare": grown({cycles}, harness.ORT_LIB, drop_in="1") / {cycles}}}))
"""


def test_sessions_come_and_go_without_a_trace():
    # 1,000 in `make test`; `make ci-full` asks for 10,000.
    cycles = int(os.environ.get("KVSHARE_TEST_CYCLES", 1000))
    code = CYCLES.format(here=os.path.dirname(os.path.abspath(__file__)), cycles=cycles)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    bytes_each = json.loads(done.stdout)
    # ONNX Runtime alone grows by some 50 bytes a session; a kernel, an op table or a workspace would be hundreds more.
    assert bytes_each["kvshare"] <= bytes_each["ort"] + 128, bytes_each


def test_onnxruntime_extensions_in_the_same_session():
    extensions = pytest.importorskip("onnxruntime_extensions")
    p = Problem(5, S=1, lens=[9], past=8)
    names = [n if n in p.inputs else "" for n in harness.GQA_INPUTS]
    while not names[-1]:
        names.pop()
    nodes = [helper.make_node("GroupQueryAttention", names, ["output"], domain="com.microsoft", **p.attributes),
             helper.make_node("StringUpper", ["text"], ["upper"], domain="ai.onnx.contrib")]
    value = lambda n: helper.make_tensor_value_info(n, harness.ONNX_TYPE[p.inputs[n].dtype], p.inputs[n].shape)
    graph = helper.make_graph(nodes, "g", [*map(value, p.inputs), helper.make_tensor_value_info("text", TensorProto.STRING, [1])],
                              [helper.make_tensor_value_info("output", TensorProto.FLOAT, None),
                               helper.make_tensor_value_info("upper", TensorProto.STRING, [1])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1),
                                                    helper.make_opsetid("ai.onnx.contrib", 1)])
    model.ir_version = 10
    for ours_first in (True, False):
        options = ort.SessionOptions()
        options.add_session_config_entry("kvshare.drop_in", "gqa")
        libraries = [harness.ORT_LIB, extensions.get_library_path()]
        for lib in libraries if ours_first else libraries[::-1]:
            options.register_custom_ops_library(lib)
        sess = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        counters = harness.Counters()
        counters.reset()
        output, upper = sess.run(["output", "upper"], {**p.inputs, "text": np.array(["kv"], object)})
        assert upper.tolist() == ["KV"] and counters.read()["ran"] == 1
        harness.assert_close(output, p.truth()[0], np.float32)


# Gemma 4 E2B's map: which layers see everything (D 512), the others within a window of 512 (D 256); the last 20 borrow.
E2B_FULL = {4, 9, 14, 19, 24, 29, 34}


def e2b_map(tokens, presents):
    """35 nodes side by side over inputs they share; own layers with presents or without."""
    nodes, inputs, outputs = [], [], []
    info = lambda name, type, shape: helper.make_tensor_value_info(name, type, shape)
    for D in (256, 512):
        inputs += [info(f"query{D}", TensorProto.FLOAT, [1, tokens, 8 * D]), info(f"key{D}", TensorProto.FLOAT, [1, tokens, D]),
                   info(f"past{D}", TensorProto.FLOAT, [1, 1, tokens, D])]
    inputs += [info("seqlens_k", TensorProto.INT32, [1]), info("total", TensorProto.INT32, [])]
    for i in range(35):
        D = 512 if i in E2B_FULL else 256
        own = [f"query{D}", f"key{D}", f"key{D}", "", "", "seqlens_k", "total"]
        borrowed = [f"query{D}", "", "", "", "", "seqlens_k", "total"] + [""] * 10 + [f"past{D}", f"past{D}"]
        outs = [f"output{i}"] + ([f"present_key{i}", f"present_value{i}"] if presents and i < 15 else [])
        nodes.append(helper.make_node("GroupQueryAttention", own if i < 15 else borrowed, outs, name=f"layer{i}", domain="kvshare",
                                      num_heads=8, kv_num_heads=1, **({} if D == 512 else {"local_window_size": 512})))
        outputs.append(info(f"output{i}", TensorProto.FLOAT, None))
    made = helper.make_model(helper.make_graph(nodes, "g", inputs, outputs),
                             opset_imports=[helper.make_opsetid("", harness.OPSET), helper.make_opsetid("kvshare", 1)])
    made.ir_version = 10
    feeds = {i.name: np.full([d.dim_value for d in i.type.tensor_type.shape.dim], 0.01, np.float32) for i in inputs[:6]}
    return made.SerializeToString(), {**feeds, "seqlens_k": np.array([tokens - 1], np.int32), "total": np.array(tokens, np.int32)}


SCRATCH = """
import gc, sys, numpy as np, onnxruntime as ort, harness
from sessions_test import e2b_map
counters = harness.Counters()
model, feeds = e2b_map(int(sys.argv[1]), sys.argv[2] == "1")
options = ort.SessionOptions()
options.intra_op_num_threads = 16
options.register_custom_ops_library(harness.ORT_LIB)
sessions = [ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]) for _ in range(2)]
sessions[0].run(["output0"], feeds)
one = counters.read()["scratch_bytes"]
for session in sessions:
    session.run([f"output{i}" for i in range(35)], feeds)
print(one, counters.read()["scratch_bytes"])
del session, sessions[0]
gc.collect()
print(counters.read()["scratch_bytes"])
del sessions
gc.collect()
print(counters.read()["scratch_bytes"])
"""


@pytest.mark.parametrize("presents", [True, False])
def test_scratch_is_kept_once_and_given_back_with_the_last_session(presents):
    done = subprocess.run([sys.executable, "-c", SCRATCH, "640", str(int(presents))], cwd=HERE, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), HERE])})
    assert done.returncode == 0, done.stderr
    one, all, with_one_session, at_the_end = map(int, done.stdout.split())
    assert 0 < one <= all <= 64_000_000
    assert with_one_session == all
    assert at_the_end == 0
