"""Models that are odd and legal: whatever ONNX Runtime loads, the graph tool reads."""

import json

import cases
import numpy as np
import onnx
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


def spelled(model):
    """The same model with ONNX's default domain by its other name."""
    for one in [*model.graph.node, *(n for function in model.functions for n in function.node)]:
        one.domain = one.domain or "ai.onnx"
    for one in [*model.opset_import, *(o for function in model.functions for o in function.opset_import)]:
        one.domain = one.domain or "ai.onnx"
    return model


@pytest.mark.parametrize("case", ["default_attention", "mixed_bias_causal0", "head_shared_gqa"])
def test_the_default_domain_has_two_names(kvshare, tmp_path, case):
    model = cases.DATA / case / "model.onnx"
    other = model.with_name("spelled.onnx")
    other.write_bytes(spelled(cases.load(model)).SerializeToString())
    assert cases.inspect(kvshare, other) == cases.inspect(kvshare, model)
    for target in cases.TARGETS:
        reports = [json.loads(cases.rewrite(kvshare, source, tmp_path / "out.onnx", "--to", target, "--json", "--dry-run"))
                   for source in (model, other)]
        assert reports[0] == reports[1]


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_a_misspelt_attribute_is_named_in_both_names_of_the_domain(kvshare, tmp_path, domain):
    layer = helper.make_node("Attention", ["q", "k", "v"], ["y"], name="a", domain=domain, sclae=1.0)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, "S", 8]) for name in "qkvy"]
    graph = helper.make_graph([layer], "g", values[:3], values[3:])
    model = save(tmp_path / "model.onnx", helper.make_model(graph), [("", 24)])
    [warning] = cases.inspect(kvshare, model)["warnings"]
    assert warning == "Attention 'a': attribute 'sclae' is not one of its operator's and has no effect; 'scale' is meant?"
    report = json.loads(cases.rewrite(kvshare, model, tmp_path / "out.onnx", "--to", "kvshare", "--json", "--dry-run"))
    assert report["after"]["layers"][0]["domain"] == ""


def legal_corners():
    """Absent inputs in the middle, names that bodies capture, shadow or hand through, unused and sparse initializers."""
    def value(name, shape=(4,)):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))

    flag = helper.make_tensor("flag", TensorProto.BOOL, [], [True])
    one = helper.make_tensor("one", TensorProto.FLOAT, [4], [1.0] * 4)

    def body(*nodes, output, initializers=()):
        return helper.make_graph(list(nodes), "body", [], [value(output)], list(initializers))

    def model(nodes, **more):
        return helper.make_model(helper.make_graph(nodes, "g", [value("x")], [value("y")], **more), functions=more.pop("functions", []))

    limits = helper.make_tensor("high", TensorProto.FLOAT, [], [1.0])
    yield "an absent input in the middle", model([node("Clip", ["x", "", "high"], ["y"])], initializer=[limits])
    yield "absent inputs at the end", model([node("Clip", ["x", "", ""], ["y"])])
    yield "an absent output", model([node("Dropout", ["x"], ["y", ""])])
    yield "a body that captures", model(
        [node("If", ["flag"], ["y"], then_branch=body(node("Neg", ["x"], ["a"]), output="a"),
              else_branch=body(node("Identity", ["x"], ["b"]), output="b"))], initializer=[flag])
    inner = node("If", ["flag"], ["c"], then_branch=body(node("Add", ["x", "a"], ["d"]), output="d"),
                 else_branch=body(node("Sub", ["x", "a"], ["e"]), output="e"))
    yield "a body that captures through another", model(
        [node("If", ["flag"], ["y"], then_branch=body(node("Neg", ["x"], ["a"]), inner, output="c"),
              else_branch=body(node("Abs", ["x"], ["f"]), output="f"))], initializer=[flag])
    yield "bodies that use one name twice", model(
        [node("If", ["flag"], ["y"], then_branch=body(node("Neg", ["x"], ["same"]), output="same"),
              else_branch=body(node("Abs", ["x"], ["same"]), output="same"))], initializer=[flag])
    yield "a body with its own initializer", model(
        [node("If", ["flag"], ["y"], then_branch=body(node("Add", ["x", "one"], ["a"]), output="a", initializers=[one]),
              else_branch=body(node("Abs", ["x"], ["b"]), output="b"))], initializer=[flag])
    yield "an initializer that nothing reads", model([node("Neg", ["x"], ["y"])], initializer=[one])
    yield "nodes that nothing reads", model([node("Neg", ["x"], ["y"]), node("Abs", ["x"], ["z"])])
    sparse = helper.make_sparse_tensor(helper.make_tensor("s", TensorProto.FLOAT, [1], [2.0]),
                                       helper.make_tensor("at", TensorProto.INT64, [1], [3]), [4])
    yield "a sparse initializer", model([node("Add", ["x", "s"], ["y"])], sparse_initializer=[sparse])
    function = helper.make_function("mine", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 21)])
    calling = helper.make_model(helper.make_graph([node("Twice", ["x"], ["y"], domain="mine")], "g", [value("x")], [value("y")]),
                                functions=[function], opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("mine", 1)])
    yield "a function of the model", calling


@pytest.mark.parametrize("name,model", legal_corners())
def test_what_onnx_allows_is_read_and_written_again(kvshare, tmp_path, name, model):
    path = save(tmp_path / "model.onnx", model, None if model.functions else [("", 21)])
    onnx.checker.check_model(str(path))
    assert stock_loads(path), name
    assert cases.inspect(kvshare, path)["layers"] == []
    cases.rewrite(kvshare, path, tmp_path / "out.onnx", "--to", "kvshare")
    assert (tmp_path / "out.onnx").read_bytes() == path.read_bytes()
