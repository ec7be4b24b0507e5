"""Makes the same model look different: each variant computes what the original does, under another surface.

usage: variants.py VARIANT MODEL OUT_FOLDER        VARIANT: one of NAMES below, or branched
Graph inputs and outputs keep their names, which callers use.
"""

import pathlib
import random
import sys

import onnx
from onnx import external_data_helper, helper


def renamed(model):
    """Every inner value, node, initializer and symbolic dimension gets a meaningless name."""
    graph = model.graph
    kept = {v.name for v in list(graph.input) + list(graph.output)} | {""}
    names = {}

    def fresh(name):
        return name if name in kept else names.setdefault(name, f"t{len(names)}")

    for initializer in graph.initializer:
        initializer.name = fresh(initializer.name)
    for i, node in enumerate(graph.node):
        node.name = f"n{i}"
        node.input[:] = [fresh(x) for x in node.input]
        node.output[:] = [fresh(x) for x in node.output]
    for info in graph.value_info:
        info.name = fresh(info.name)
    dims = {}
    for info in list(graph.input) + list(graph.output) + list(graph.value_info):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dims.setdefault(dim.dim_param, f"d{len(dims)}")


def inlined(model, folder):
    """All weights inside the model file. (onnx's own loader refuses files that have a second hard link.)"""
    for tensor in model.graph.initializer:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        where = {e.key: e.value for e in tensor.external_data}
        with open(folder / where["location"], "rb") as file:
            file.seek(int(where.get("offset", 0)))
            tensor.raw_data = file.read(int(where["length"]))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def constants(model):
    """Small inline initializers become Constant nodes, each right before its first reader."""
    graph = model.graph
    small = {i.name: i for i in graph.initializer if i.data_location != onnx.TensorProto.EXTERNAL}
    nodes = []
    placed = set()
    for node in graph.node:
        for name in node.input:
            if name in small and name not in placed:
                placed.add(name)
                nodes.append(helper.make_node("Constant", [], [name], name=f"constant_{name}", value=small[name]))
        nodes.append(node)
    kept = [i for i in graph.initializer if i.name not in placed]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)


def initializers(model):
    """The other way round: Constant nodes become initializers."""
    graph = model.graph
    nodes = []
    for node in graph.node:
        if node.op_type != "Constant":
            nodes.append(node)
            continue
        value = helper.get_attribute_value(node.attribute[0])
        if node.attribute[0].name == "value":
            tensor = value
        else:
            many = isinstance(value, (list, tuple)) or node.attribute[0].name.endswith("s")
            kind = onnx.TensorProto.INT64 if "int" in node.attribute[0].name else onnx.TensorProto.FLOAT
            tensor = helper.make_tensor("", kind, [len(value)] if many else [], value if many else [value])
        initializer = graph.initializer.add()
        initializer.CopyFrom(tensor)
        initializer.name = node.output[0]
    del graph.node[:]
    graph.node.extend(nodes)


def external(model, folder):
    """Every initializer that holds bytes, the smallest too, in a file of its own making (written by onnx.save)."""
    inlined(model, folder)
    external_data_helper.convert_model_to_external_data(model, location="w.bin", size_threshold=0)


def shuffled(model):
    """Nodes in any order (seed 7); value_info gone."""
    nodes = list(model.graph.node)
    random.Random(7).shuffle(nodes)
    del model.graph.node[:], model.graph.value_info[:]
    model.graph.node.extend(nodes)


def branched(model):
    """Each attention layer of its own name lies in both branches of an If, and captures what it reads."""
    graph = model.graph
    graph.initializer.append(helper.make_tensor("always", onnx.TensorProto.BOOL, [], [True]))
    for node in graph.node:
        if node.op_type not in ("Attention", "GroupQueryAttention") or any(node.output[1:]):
            continue
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        inner.output[:] = [f"{node.output[0]}_inner"]
        body = helper.make_graph([inner], "body", [], [helper.make_empty_tensor_value_info(inner.output[0])])
        node.CopyFrom(helper.make_node("If", ["always"], [node.output[0]], name=f"{node.name}_if", then_branch=body, else_branch=body))


NAMES = ["renamed", "inlined", "constants", "initializers", "shuffled", "external", "all"]


def make(variant, path, out):
    """Writes out/model.onnx (and its weights) and returns its path."""
    path, out = pathlib.Path(path), pathlib.Path(out)
    model = onnx.load(str(path), load_external_data=False)
    if variant in ("inlined", "all"):
        inlined(model, path.parent)
    if variant == "external":
        external(model, path.parent)
    if variant == "initializers":
        initializers(model)
    if variant in ("constants", "all"):
        constants(model)
    if variant in ("renamed", "all"):
        renamed(model)
    if variant in ("shuffled", "all"):
        shuffled(model)
    if variant == "branched":
        branched(model)
    out.mkdir(parents=True, exist_ok=True)
    target = out / "model.onnx"
    if variant in ("renamed", "constants", "initializers", "shuffled", "branched"):
        for name in {e.value for i in model.graph.initializer for e in i.external_data if e.key == "location"}:
            (out / name).write_bytes((path.parent / name).read_bytes())
        target.write_bytes(model.SerializeToString())
    else:
        onnx.save(model, str(target))
    return target


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in [*NAMES, "branched"]:
        sys.exit(__doc__)
    print(make(*sys.argv[1:]))
