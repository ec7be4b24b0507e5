"""Models that are odd and legal: whatever ONNX Runtime loads, the graph tool reads."""

import cases
import numpy as np
import onnxruntime as ort
import pytest
from files import node, refuse, tiny
from onnx import TensorProto, helper


def stock_loads(model):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except Exception:  # its errors are no class of Python's
        return False
    return True


def save(path, model, imports=None):
    model.ir_version = 10
    if imports is not None:
        del model.opset_import[:]
        model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in imports)
    path.write_bytes(model.SerializeToString())
    return path


def grouped_query_attention():
    def value(name, shape, kind=TensorProto.FLOAT):
        return helper.make_tensor_value_info(name, kind, shape)

    rows, cache = ["B", "S", 32], ["B", 2, "P", 8]
    layer = helper.make_node("GroupQueryAttention", ["q", "k", "v", "past_k", "past_v", "seqlens", "total"], ["y", "pk", "pv"], name="gqa",
                             domain="com.microsoft", num_heads=4, kv_num_heads=2)
    graph = helper.make_graph(
        [layer], "g",
        [value("q", rows), value("k", ["B", "S", 16]), value("v", ["B", "S", 16]), value("past_k", cache), value("past_v", cache),
         value("seqlens", ["B"], TensorProto.INT32), value("total", [], TensorProto.INT32)],
        [value("y", rows), value("pk", ["B", 2, "T", 8]), value("pv", ["B", 2, "T", 8])])
    return helper.make_model(graph)


WITHOUT_IMPORT = {
    "com.microsoft": (tiny([node("Gelu", ["x"], ["y"], domain="com.microsoft")]), [("", 21)]),
    "com.microsoft attention": (grouped_query_attention(), [("", 21)]),
    "ai.onnx.ml": (tiny([node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])]), [("", 21)]),
    "ai.onnx": (tiny([node("Relu", ["x"], ["y"])]), [("com.microsoft", 1)]),
    "ai.onnx by its long name": (tiny([node("Relu", ["x"], ["y"], domain="ai.onnx")]), [("com.microsoft", 1)]),
}


@pytest.mark.parametrize("name", WITHOUT_IMPORT)
def test_the_domains_that_every_session_has_need_no_import(kvshare, tmp_path, name):
    model = save(tmp_path / "model.onnx", *WITHOUT_IMPORT[name])
    assert stock_loads(model)
    assert cases.inspect(kvshare, model)["nodes"] == 1
    cases.rewrite(kvshare, model, tmp_path / "out.onnx", "--to", "ort")
    assert stock_loads(tmp_path / "out.onnx")


@pytest.mark.parametrize("domain", ["nobody", "kvshare", "com.microsoft.extensions", "ai.onnx.contrib"])
def test_other_domains_need_one(kvshare, tmp_path, domain):
    model = save(tmp_path / "model.onnx", tiny([node("Op", ["x"], ["y"], domain=domain)]), [("", 21)])
    assert not stock_loads(model)
    refuse(kvshare, model, f"Op 'y': domain '{domain}' is not imported; needs an opset_import")


def test_a_layer_without_an_import_is_rewritten(kvshare, library, tmp_path):
    model = save(tmp_path / "model.onnx", grouped_query_attention(), [("", 21)])
    cases.rewrite(kvshare, model, tmp_path / "out.onnx", "--to", "kvshare")
    assert cases.operators(tmp_path / "out.onnx") == {("kvshare", "GroupQueryAttention"): 1}
    random = np.random.default_rng(1)
    feeds = {name: random.standard_normal(shape).astype(np.float32) for name, shape in
             {"q": (1, 3, 32), "k": (1, 3, 16), "v": (1, 3, 16), "past_k": (1, 2, 0, 8), "past_v": (1, 2, 0, 8)}.items()}
    feeds |= {"seqlens": np.array([2], np.int32), "total": np.array(3, np.int32)}
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(library))
    found = ort.InferenceSession(str(tmp_path / "out.onnx"), options, providers=["CPUExecutionProvider"]).run(None, feeds)
    wanted = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).run(None, feeds)
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-6)


WITHOUT_NODES = {
    "an input is the output": tiny([], outputs=["x"]),
    "an initializer is the output": tiny([], outputs=["w"], initializers=[helper.make_tensor("w", TensorProto.FLOAT, [4], [0.0] * 4)]),
}


@pytest.mark.parametrize("name", WITHOUT_NODES)
def test_a_graph_without_nodes_is_a_model(kvshare, tmp_path, name):
    model = save(tmp_path / "model.onnx", WITHOUT_NODES[name])
    assert stock_loads(model)
    assert cases.inspect(kvshare, model)["nodes"] == 0
    assert "no attention layer" in cases.rewrite(kvshare, model, tmp_path / "out.onnx", "--to", "ort")
    assert stock_loads(tmp_path / "out.onnx")
