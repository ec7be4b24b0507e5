"""Makes the same model look different: each variant computes what the original does, under another surface.

usage: variants.py VARIANT MODEL OUT_FOLDER        VARIANT: one of NAMES or BODIES below
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


def compared(model):
    """Every comparison with >= or < is one of a difference with 0, the other way round."""
    graph = model.graph
    nodes = []
    turned = {"GreaterOrEqual": "LessOrEqual", "Less": "Greater"}
    for node in graph.node:
        if node.op_type in turned:
            left, right = node.input
            difference = f"{node.output[0]}_difference"
            nodes.append(helper.make_node("Sub", [right, left], [difference], name=difference))
            node.op_type = turned[node.op_type]
            node.input[:] = [difference, "compared_with"]
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(helper.make_tensor("compared_with", onnx.TensorProto.INT64, [], [0]))


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


def borrowers(graph):
    """Attention nodes without presents."""
    return [n for n in graph.node if n.op_type in ("Attention", "GroupQueryAttention") and not any(n.output[1:])]


def branched(model):
    """Each borrowing layer lies in both branches of an If, and captures what it reads."""
    graph = model.graph
    graph.initializer.append(helper.make_tensor("always", onnx.TensorProto.BOOL, [], [True]))
    for node in borrowers(graph):
        inner = onnx.NodeProto()
        inner.CopyFrom(node)
        inner.output[:] = [f"{node.output[0]}_inner"]
        body = helper.make_graph([inner], "body", [], [helper.make_empty_tensor_value_info(inner.output[0])])
        node.CopyFrom(helper.make_node("If", ["always"], [node.output[0]], name=f"{node.name}_if", then_branch=body, else_branch=body))


def in_bodies(model, holder):
    """Each borrowing layer, with the rotary embedding of its query, moves into a body: holder(number, the query that both
    had, the body's nodes, which read `query<number>` instead) gives the nodes in its place; their last output is renamed."""
    graph = model.graph
    rotary = {n.output[0]: n for n in graph.node if n.op_type == "RotaryEmbedding"}
    layers = {n.output[0]: n for n in borrowers(graph)}
    rotated = {n.input[0] for n in layers.values()}
    nodes = []
    for node in graph.node:
        if node.output[0] in layers:
            i, turn = len(nodes), rotary[node.input[0]]
            inner = [onnx.NodeProto(), onnx.NodeProto()]
            for copy, original in zip(inner, (turn, node)):
                copy.CopyFrom(original)
                copy.output[0] += "_inner"
            inner[0].input[0], inner[1].input[0] = f"query{i}", inner[0].output[0]
            nodes += holder(i, turn.input[0], inner)
            nodes[-1].output[0] = node.output[0]
        elif node.output[0] not in rotated:
            nodes.append(node)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def looped(model):
    """Each borrowing layer runs twice in a Loop: its second query is its first output."""
    value = helper.make_tensor_value_info
    model.graph.initializer.append(helper.make_tensor("twice", onnx.TensorProto.INT64, [], [2]))

    def loop(i, query, nodes):
        nodes.append(helper.make_node("Identity", [f"go_on{i}"], [f"go_on_next{i}"]))
        body = helper.make_graph(
            nodes, "body", [value(f"iteration{i}", onnx.TensorProto.INT64, []), value(f"go_on{i}", onnx.TensorProto.BOOL, []),
                            value(f"query{i}", onnx.TensorProto.FLOAT, None)],
            [value(f"go_on_next{i}", onnx.TensorProto.BOOL, []), value(nodes[1].output[0], onnx.TensorProto.FLOAT, None)])
        return [helper.make_node("Loop", ["twice", "", query], [""], name=f"loop{i}", body=body)]

    in_bodies(model, loop)


def scanned(model):
    """Each borrowing layer runs in a Scan over its query and the query's negative; the two outputs are added."""
    value = helper.make_tensor_value_info
    node = helper.make_node
    model.graph.initializer.append(helper.make_tensor("axis0", onnx.TensorProto.INT64, [1], [0]))

    def scan(i, query, nodes):
        body = helper.make_graph(nodes, "body", [value(f"query{i}", onnx.TensorProto.FLOAT, None)],
                                 [value(nodes[1].output[0], onnx.TensorProto.FLOAT, None)])
        return [node("Unsqueeze", [query, "axis0"], [f"first{i}"]), node("Neg", [f"first{i}"], [f"second{i}"]),
                node("Concat", [f"first{i}", f"second{i}"], [f"queries{i}"], axis=0),
                node("Scan", [f"queries{i}"], [f"outputs{i}"], name=f"scan{i}", body=body, num_scan_inputs=1),
                node("ReduceSum", [f"outputs{i}", "axis0"], [""], keepdims=0)]

    in_bodies(model, scan)


BODIES = {"branched": branched, "looped": looped, "scanned": scanned}
NAMES = ["renamed", "inlined", "compared", "constants", "initializers", "shuffled", "external", "all"]


def make(variant, path, out):
    """Writes out/model.onnx (and its weights) and returns its path."""
    path, out = pathlib.Path(path), pathlib.Path(out)
    model = onnx.load(str(path), load_external_data=False)
    if variant in ("inlined", "all"):
        inlined(model, path.parent)
    if variant == "external":
        external(model, path.parent)
    if variant in ("compared", "all"):
        compared(model)
    if variant == "initializers":
        initializers(model)
    if variant in ("constants", "all"):
        constants(model)
    if variant in ("renamed", "all"):
        renamed(model)
    if variant in ("shuffled", "all"):
        shuffled(model)
    if variant in BODIES:
        BODIES[variant](model)
    out.mkdir(parents=True, exist_ok=True)
    target = out / "model.onnx"
    if variant in ("renamed", "compared", "constants", "initializers", "shuffled", *BODIES):
        for name in {e.value for i in model.graph.initializer for e in i.external_data if e.key == "location"}:
            (out / name).write_bytes((path.parent / name).read_bytes())
        target.write_bytes(model.SerializeToString())
    else:
        onnx.save(model, str(target))
    return target


if __name__ == "__main__":
    if len(sys.argv) != 4 or sys.argv[1] not in [*NAMES, *BODIES]:
        sys.exit(__doc__)
    print(make(*sys.argv[1:]))
