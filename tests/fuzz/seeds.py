"""Writes small seeds for the fuzz targets: seeds.py FOLDER

Models are cut from tests/data: one shared layer, its source and what computes their masks and lengths; what lies further
up becomes a graph input. Texts are those of the C++ tests. Arrays are cut from the golden files.
"""
import pathlib
import re
import sys

import numpy as np
import onnx
from onnx import helper

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE.parent / "data"
ATTENTION = ("Attention", "GroupQueryAttention")
KEPT = {"Transpose", "Reshape", "Unsqueeze", "Cast", "Where", "And", "GreaterOrEqual", "Less", "Sub", "Slice", "CumSum", "Shape",
        "Gather", "ReduceSum", "Concat", "Expand", "ConstantOfShape", "Constant", "RotaryEmbedding", *ATTENTION}


def small(model):
    """The last attention layer of `model` and what leads to it, of the operators that rules look at. None: it has no layer."""
    maker = {out: node for node in model.graph.node for out in node.output if out}
    initializers = {i.name: i for i in model.graph.initializer}
    inputs = {i.name: i for i in model.graph.input}
    layers = [n for n in model.graph.node if n.op_type in ATTENTION]
    if not layers:
        return None
    nodes, values, open_ = [], {}, [n for n in layers[-1:]]
    seen = set()
    while open_:
        node = open_.pop()
        if node.output[0] in seen:
            continue
        seen.add(node.output[0])
        nodes.append(node)
        for name in node.input:
            if name in maker and maker[name].op_type in KEPT:
                open_.append(maker[name])
            elif name:
                values[name] = inputs.get(name)
    tensors = [initializers[n] for n in values if n in initializers and initializers[n].data_location != onnx.TensorProto.EXTERNAL]
    inside = {t.name for t in tensors}
    infos = {v.name: v for v in model.graph.value_info}
    feeds = [inputs.get(n) or infos.get(n) or helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None)
             for n in values if n not in inside]
    out = layers[-1].output[0]
    keep = {id(n) for n in nodes}
    graph = helper.make_graph([n for n in model.graph.node if id(n) in keep], "g", feeds,
                              [helper.make_tensor_value_info(out, onnx.TensorProto.FLOAT, None)], tensors)
    return helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)


def main():
    out = pathlib.Path(sys.argv[1])
    for name in ("model", "text_graph", "npz", "attention"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for case in sorted(DATA.iterdir()):
        if not (case / "model.onnx").exists():
            continue
        model = small(onnx.load(str(case / "model.onnx"), load_external_data=False))
        if model is not None:
            (out / "model" / case.name).write_bytes(model.SerializeToString())
        if not (case / "golden.npz").exists():  # a graph that is only read
            continue
        golden = np.load(case / "golden.npz")
        np.savez(out / "npz" / f"{case.name}.npz", **{k: golden[k].ravel()[:6] for k in list(golden)[:4]})
    for descr in ("<f4", "<f2", "<i8", "<i4", "|b1"):
        np.save(out / "npz" / f"{descr[1:]}.npy", np.zeros((2, 3), descr))
    header = (HERE.parent / "graph" / "two_layers.h").read_text()
    for i, text in enumerate(re.findall(r'R"\((.*?)\)"', header, re.DOTALL)):
        (out / "text_graph" / f"two_layers_{i}").write_text(text)
    rng = np.random.default_rng(1)
    for i in range(64):
        (out / "attention" / f"random_{i}").write_bytes(rng.integers(0, 256, 256, np.uint8).tobytes())


if __name__ == "__main__":
    main()
