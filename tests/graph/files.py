"""Small models and folders for tests of what the graph tool reads and writes."""

import cases
from onnx import TensorProto, helper


def refuse(kvshare, model, text):
    """Both verbs: exit code 2, one line, that text; nothing written."""
    before = sorted(model.parent.iterdir())
    out = model.parent / "out.onnx"
    for arguments in (["inspect", model], ["rewrite", model, "-o", out, "--to", "ort"]):
        result = cases.run(kvshare, *arguments)
        assert result.returncode == 2, (result.returncode, result.stderr)
        assert result.stdout == ""
        assert len(result.stderr.strip().splitlines()) == 1
        assert text in result.stderr
    assert sorted(model.parent.iterdir()) == before


def tiny(nodes, inputs=("x",), outputs=("y",), initializers=()):
    def value(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])

    graph = helper.make_graph(nodes, "g", [value(i) for i in inputs], [value(o) for o in outputs], list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])


def node(op, inputs, outputs, **attributes):
    return helper.make_node(op, inputs, outputs, name="_".join(outputs), **attributes)


def with_weight(location, offset="0", length="16"):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    return tiny([node("Add", ["x", "w"], ["y"])], initializers=[tensor])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
