"""Decoders whose cache holds codes: int8, and uint8 with two int4 in each."""
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import DIFFERS, EQUAL

F32, I64 = TensorProto.FLOAT, TensorProto.INT64
VOCABULARY, HEADS, D = 32, 2, 8
CODES = {"int8": (TensorProto.INT8, D, 8, 0.03), "uint8": (TensorProto.UINT8, D // 2, 4, 0.5)}


@pytest.fixture(params=CODES)
def decoder(request, tmp_path):
    """One layer; keys and values are the queries' own numbers, all logits the layer's."""
    kind, width, bits, scale = CODES[request.param]
    rng = np.random.default_rng(3)
    constants = {"embedding": rng.standard_normal((VOCABULARY, HEADS * D)).astype(np.float32),
                 "head": rng.standard_normal((HEADS * D, VOCABULARY)).astype(np.float32),
                 "scale": np.array([scale], np.float32), "one": np.array([1], np.int64), "at": np.array(1, np.int64)}
    node = helper.make_node
    nodes = [
        node("Gather", ["embedding", "input_ids"], ["q"]),
        node("ReduceSum", ["attention_mask", "one"], ["ones"], keepdims=0),
        node("Sub", ["ones", "one"], ["last"]),
        node("Cast", ["last"], ["seqlens"], to=TensorProto.INT32),
        node("Shape", ["attention_mask"], ["extents"]),
        node("Gather", ["extents", "at"], ["total64"]),
        node("Cast", ["total64"], ["total"], to=TensorProto.INT32),
        node("GroupQueryAttention",
             ["q", "q", "q", "past_key_values.0.key", "past_key_values.0.value", "seqlens", "total", *[""] * 5, "scale", "scale"],
             ["y", "present.0.key", "present.0.value"], domain="com.microsoft", name="attention", num_heads=HEADS,
             kv_num_heads=HEADS, k_quant_type="PER_TENSOR", v_quant_type="PER_TENSOR", kv_cache_bit_width=bits),
        node("MatMul", ["y", "head"], ["logits"]),
    ]
    value = helper.make_tensor_value_info
    cache = lambda name, tokens: [value(f"{name}.0.{side}", kind, ["B", HEADS, tokens, width]) for side in ("key", "value")]
    graph = helper.make_graph(
        nodes, "g", [value("input_ids", I64, ["B", "S"]), value("attention_mask", I64, ["B", "T"]), *cache("past_key_values", "P")],
        [value("logits", F32, ["B", "S", VOCABULARY]), *cache("present", "T")],
        [numpy_helper.from_array(array, name) for name, array in constants.items()])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_verify_compares_kvshares_kernel_with_onnx_runtimes(kvshare, decoder):
    done = kvshare("verify", decoder, "--against", decoder, "--entry", "kvshare.drop_in=gqa", "--tol", "0.2")
    assert done.returncode == EQUAL, done.stdout + done.stderr
    assert "decode 7" in done.stdout


def test_verify_sees_another_scale(kvshare, decoder, tmp_path):
    model = onnx.load(decoder)
    next(i for i in model.graph.initializer if i.name == "scale").CopyFrom(numpy_helper.from_array(np.array([0.01], np.float32), "scale"))
    onnx.save(model, tmp_path / "other.onnx")
    done = kvshare("verify", tmp_path / "other.onnx", "--against", decoder, "--tol", "0.2")
    assert done.returncode == DIFFERS, done.stdout + done.stderr


def test_doctor_runs_it(kvshare, decoder):
    done = kvshare("doctor", decoder, "--entry", "kvshare.drop_in=1")
    assert done.returncode == EQUAL, done.stdout + done.stderr
    assert "1 node ran in kvshare" in done.stdout


@pytest.mark.parametrize("kind", [TensorProto.INT8, TensorProto.UINT8], ids=["int8", "uint8"])
def test_doctor_invents_codes(kvshare, tmp_path, kind):
    """Codes far from 0, or the model would fail: it gathers where none is."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Cast", ["x"], ["wide"], to=F32), helper.make_node("Abs", ["wide"], ["size"]),
             helper.make_node("ReduceMax", ["size"], ["largest"], keepdims=0), helper.make_node("Constant", [], ["many"], value_float=100.0),
             helper.make_node("Less", ["largest", "many"], ["small"]), helper.make_node("Cast", ["small"], ["row"], to=I64),
             helper.make_node("Constant", [], ["table"], value_floats=[1.0]), helper.make_node("Gather", ["table", "row"], ["y"])]
    graph = helper.make_graph(nodes, "g", [value("x", kind, ["N", 64])], [value("y", F32, None)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    done = kvshare("doctor", tmp_path / "m.onnx")
    assert done.returncode == DIFFERS and "No node ran in kvshare" in done.stdout, done.stdout + done.stderr
