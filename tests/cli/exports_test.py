"""The program on graphs as exporters write them: onnxruntime-genai's model builder and PyTorch."""
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from conftest import DIFFERS, EQUAL, REFUSED

HEADS, KV_HEADS, D, VOCABULARY = 4, 2, 16, 32
CACHE = ["batch", KV_HEADS, "past", "kv_cache_dim"]


def value(name, shape, element=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, element, shape)


def constant(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def save(path, nodes, inputs, outputs, initializers, value_info=(), microsoft=True):
    opsets = [helper.make_opsetid("", 23)] + [helper.make_opsetid("com.microsoft", 1)] * microsoft
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers, value_info=value_info)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, path)
    return path


def builders_decoder(path, **attributes):
    """One layer of the model builder's: packed, and with a cache whose head size is a name."""
    rng = np.random.default_rng(1)
    weight = lambda name, *shape: constant(name, rng.standard_normal(shape).astype(np.float32))
    packed = (HEADS + 2 * KV_HEADS) * D
    cache = TensorProto.UINT8 if "kv_cache_bit_width" in attributes else TensorProto.FLOAT
    scales = ["", "", "", "scale", "scale"] if cache == TensorProto.UINT8 else []
    angle = rng.uniform(0, 6, (64, D // 2)).astype(np.float32)
    node = helper.make_node
    nodes = [
        node("Gather", ["embedding", "input_ids"], ["x"]), node("MatMul", ["x", "w_qkv"], ["qkv"]),
        node("ReduceSum", ["attention_mask", "one"], ["ones"], keepdims=0), node("Sub", ["ones", "one"], ["last"]),
        node("Cast", ["last"], ["seqlens"], to=TensorProto.INT32), node("Shape", ["attention_mask"], ["extents"]),
        node("Gather", ["extents", "one"], ["total64"]), node("Cast", ["total64"], ["total"], to=TensorProto.INT32),
        node("GroupQueryAttention",
             ["qkv", "", "", "past_key_values.0.key", "past_key_values.0.value", "seqlens", "total", "cos", "sin", *scales],
             ["y", "present.0.key", "present.0.value"], domain="com.microsoft", name="attention", num_heads=HEADS,
             kv_num_heads=KV_HEADS, do_rotary=1, **attributes),
        node("MatMul", ["y", "w_out"], ["logits"])]
    i64 = TensorProto.INT64
    return save(
        path, nodes,
        [value("input_ids", ["batch", "tokens"], i64), value("attention_mask", ["batch", "total"], i64),
         value("past_key_values.0.key", CACHE, cache), value("past_key_values.0.value", CACHE, cache)],
        [value("logits", ["batch", "tokens", VOCABULARY]), value("present.0.key", CACHE, cache),
         value("present.0.value", CACHE, cache)],
        [weight("embedding", VOCABULARY, 8), weight("w_qkv", 8, packed), weight("w_out", HEADS * D, VOCABULARY),
         constant("cos", np.cos(angle)), constant("sin", np.sin(angle)), constant("one", np.array([1], np.int64)),
         constant("scale", np.array([0.25], np.float32))],
        [value("qkv", ["batch", "tokens", packed]), value("y", ["batch", "tokens", HEADS * D])])


@pytest.mark.parametrize("attributes", [
    {}, {"local_window_size": 8, "sliding_window_cache": 1},
    {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 4}], ids=str)
def test_the_model_builders_caches_have_a_head_size_that_only_the_graph_tells(kvshare, tmp_path, attributes):
    model = builders_decoder(tmp_path / "model.onnx", **attributes)
    done = kvshare("verify", model, "--against", model, "--entry", "kvshare.drop_in=1")
    assert done.returncode == EQUAL, done.stdout + done.stderr
    done = kvshare("doctor", model, "--entry", "kvshare.drop_in=1")
    assert done.returncode == EQUAL, done.stdout + done.stderr
    assert "1 node ran in kvshare" in done.stdout
    listed = json.loads(kvshare("inspect", model, "--json").stdout)
    assert listed["layers"][0]["head_size"] == D
    shared = tmp_path / "shared.onnx"
    assert kvshare("rewrite", model, "-o", shared, "--to", "kvshare").returncode == EQUAL
    done = kvshare("verify", shared, "--against", model)
    assert done.returncode == EQUAL, done.stdout + done.stderr


def torchs_sharing_layers(path):
    """Keys are joined outside of Attention, and a layer that shares takes the very same values."""
    bnsh = ["batch", KV_HEADS, "tokens", D]
    nodes = [helper.make_node("Concat", ["past_k", "k"], ["present_k"], axis=2),
             helper.make_node("Concat", ["past_v", "v"], ["present_v"], axis=2),
             helper.make_node("Attention", ["q", "present_k", "present_v"], ["y0"], name="own"),
             helper.make_node("Attention", ["y0", "present_k", "present_v"], ["y1"], name="sharing"),
             helper.make_node("Transpose", ["y1"], ["z"], perm=[0, 1, 3, 2]),
             helper.make_node("MatMul", ["z", "y1"], ["w"])]
    q = ["batch", HEADS, "tokens", D]
    return save(path, nodes, [value("q", q), value("k", bnsh), value("v", bnsh), value("past_k", CACHE[:3] + [D]),
                              value("past_v", CACHE[:3] + [D])],
                [value("w", ["batch", HEADS, D, D])], [],
                [value("present_k", bnsh[:2] + ["total", D]), value("y0", q)], microsoft=False)


def test_layers_that_take_the_same_key_and_value_share_them(kvshare, tmp_path):
    model = torchs_sharing_layers(tmp_path / "model.onnx")
    own, sharing = json.loads(kvshare("inspect", model, "--json").stdout)["layers"]
    assert (own["kind"], own["query_heads"], own["kv_heads"], own["head_size"]) == ("own", HEADS, KV_HEADS, D)
    assert (sharing["kind"], sharing["source"]) == ("shared", 0)
    done = kvshare("rewrite", model, "-o", tmp_path / "out.onnx", "--to", "kvshare")  # GroupQueryAttention counts lengths
    assert done.returncode == EQUAL and "source layer 0 stayed Attention" in done.stdout, done.stdout


def test_a_model_without_com_microsoft_is_told_to_replace_attention_alone(kvshare, tmp_path):
    # ONNX Runtime makes FusedMatMul of com.microsoft from its last two nodes.
    model = torchs_sharing_layers(tmp_path / "model.onnx")
    done = kvshare("doctor", model, "--via", "ops")
    assert done.returncode == DIFFERS and "--entry kvshare.drop_in=attention" in done.stdout, done.stdout + done.stderr
    done = kvshare("doctor", model, "--entry", "kvshare.drop_in=attention")
    assert done.returncode == EQUAL and "2 nodes ran in kvshare" in done.stdout, done.stdout + done.stderr
    done = kvshare("doctor", model, "--entry", "kvshare.drop_in=1")
    assert done.returncode == REFUSED
    assert "does not import com.microsoft" in done.stderr and "kvshare.drop_in=attention" in done.stderr, done.stderr


def test_doctor_gives_no_advice_that_helps_nothing(kvshare, tmp_path):
    x = ["batch", 4]
    model = save(tmp_path / "model.onnx", [helper.make_node("Relu", ["x"], ["y"])], [value("x", x)], [value("y", x)], [])
    done = kvshare("doctor", model)
    assert done.returncode == DIFFERS
    assert "no GroupQueryAttention and no Attention" in done.stdout and "kvshare rewrite" not in done.stdout, done.stdout


def test_a_window_inside_a_mask_that_is_not_understood_is_not_told_as_none(kvshare, tmp_path):
    q = ["batch", HEADS, "tokens", D]
    nodes = [helper.make_node("Neg", ["q"], ["k"]), helper.make_node("Attention", ["q", "k", "k", "mask"], ["y"])]
    model = save(tmp_path / "model.onnx", nodes, [value("q", q), value("mask", ["tokens", "tokens"], TensorProto.BOOL)],
                 [value("y", q)], [])
    assert json.loads(kvshare("inspect", model, "--json").stdout)["layers"][0]["window"] is None
    assert kvshare("inspect", model).stdout.splitlines()[1].split()[:4] == ["0", "own", "-", "?"]


def test_doctor_decodes_only_with_a_cache(kvshare, tmp_path):
    # Its mask has as many columns as tokens are given: a prefill.
    nodes = [helper.make_node("Gather", ["embedding", "input_ids"], ["x"]),
             helper.make_node("Add", ["x", "x"], ["twice"]),
             helper.make_node("Cast", ["attention_mask"], ["keys"], to=TensorProto.BOOL),
             helper.make_node("Unsqueeze", ["keys", "axes"], ["mask"]),
             helper.make_node("Attention", ["twice", "x", "x", "mask"], ["logits"], q_num_heads=1, kv_num_heads=1)]
    ids = ["batch", "tokens"]
    model = save(tmp_path / "model.onnx", nodes,
                 [value("input_ids", ids, TensorProto.INT64), value("attention_mask", ids, TensorProto.INT64)],
                 [value("logits", ids + [8])],
                 [constant("embedding", np.ones((4, 8), np.float32)), constant("axes", np.array([1, 2], np.int64))])
    done = kvshare("doctor", model, "--entry", "kvshare.drop_in=attention")
    assert done.returncode == EQUAL and "one run with random inputs" in done.stdout, done.stdout + done.stderr
