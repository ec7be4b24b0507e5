"""How long `kvshare rewrite --dry-run` takes on a graph of many nodes: dry_run.py [--nodes 20000] [--runs 5] [--keep FILE]

The graph is a chain of blocks as mobius exports them: a layer that owns its cache (GroupQueryAttention), and layers that
borrow it through Transpose, Reshape, a mask of their own and a rotary embedding (Attention). Each layer is followed by
single operators, as a decoder's projections and norms are. Prints the median of the runs for each target; one thread.
"""
import argparse
import pathlib
import statistics
import subprocess
import tempfile
import time

import onnx
from onnx import TensorProto, helper

KVSHARE = pathlib.Path(__file__).resolve().parents[2] / "build/bin/kvshare"
BORROWERS = 3  # layers that borrow from one source
OTHERS = 30  # nodes of a layer that are no attention
F32, I64 = TensorProto.FLOAT, TensorProto.INT64

CONSTANTS = {"projection": (F32, [32, 8]), "cos_table": (F32, [64, 4]), "sin_table": (F32, [64, 4])}
INTS = {"one": [1], "two": [2], "fold": [0, 0, -1]}
LENGTHS = [
    ("ReduceSum", ["attention_mask", "one"], "ones", {"keepdims": 0}), ("Sub", ["ones", "one"], "last", {}),
    ("Cast", ["last"], "seqlens", {"to": TensorProto.INT32}), ("Shape", ["attention_mask"], "extents", {}),
    ("Gather", ["extents", "one"], "total64", {}), ("Cast", ["total64"], "total", {"to": TensorProto.INT32}),
    ("CumSum", ["attention_mask", "one"], "count", {}), ("Unsqueeze", ["count", "one"], "kv", {}),
    ("Shape", ["input_ids"], "S", {"start": 1, "end": 2}), ("Shape", ["attention_mask"], "T", {"start": 1, "end": 2}),
    ("Sub", ["T", "S"], "begin", {}), ("Slice", ["count", "begin", "T", "one"], "new", {}),
    ("Unsqueeze", ["new", "two"], "q", {}), ("Unsqueeze", ["attention_mask", "one"], "wide", {}),
    ("Cast", ["wide"], "kept", {"to": TensorProto.BOOL}), ("Gather", ["cos_table", "position_ids"], "cos", {}),
    ("Gather", ["sin_table", "position_ids"], "sin", {})]


def make(count):
    """A model of at least `count` nodes."""
    nodes, inputs, outputs = [], [], []

    def value(name, shape, kind=F32):
        return helper.make_tensor_value_info(name, kind, shape)

    def add(op, reads, makes, domain="", **attributes):
        makes = [makes] if isinstance(makes, str) else makes
        nodes.append(helper.make_node(op, reads, makes, name=f"{op}_{len(nodes)}", domain=domain, **attributes))
        return makes[0]

    def others(x):
        for _ in range(OTHERS):
            x = add("Relu", [x], f"x{len(nodes)}")
        return x

    def source(x, index):
        past, present = [[f"{kind}.{index}.{part}" for part in ("key", "value")] for kind in ("past_key_values", "present")]
        inputs.extend(value(name, ["B", 1, "P", 8]) for name in past)
        outputs.extend(value(name, ["B", 1, "T", 8]) for name in present)
        k = add("MatMul", [x, "projection"], f"k{index}")
        return present, add("GroupQueryAttention", [x, k, k, *past, "seqlens", "total", "cos_table", "sin_table"],
                            [f"own{index}", *present], domain="com.microsoft", num_heads=4, kv_num_heads=1, scale=1.0, do_rotary=1,
                            local_window_size=4)

    def borrower(x, present):
        tag = f"_{len(nodes)}"
        causal = add("GreaterOrEqual", ["q", "kv"], "causal" + tag)
        near = add("Less", [add("Sub", ["q", "kv"], "distance" + tag), "window"], "near" + tag)
        both = add("And", ["kept", add("And", [causal, near], "visible" + tag)], "both" + tag)
        bias = add("Unsqueeze", [add("Where", [both, "zero", "hidden"], "bias3" + tag), "one"], "bias" + tag)
        turned = [add("Reshape", [add("Transpose", [name], name + "_t" + tag, perm=[0, 2, 1, 3]), "fold"], name + "_r" + tag)
                  for name in present]
        rotated = add("RotaryEmbedding", [x, "cos", "sin"], "rotated" + tag, num_heads=4)
        return add("Attention", [rotated, *turned, bias], "y" + tag, q_num_heads=4, kv_num_heads=1, scale=1.0, is_causal=1)

    for op, reads, makes, attributes in LENGTHS:
        add(op, reads, makes, **attributes)
    x, index = add("Gather", ["embedding", "input_ids"], "x"), 0
    while len(nodes) < count:
        present, x = source(x, index)
        for _ in range(BORROWERS):
            x = borrower(others(x), present)
        index += 1
    outputs.append(value(x, ["B", "S", 32]))
    ids = [value("input_ids", ["B", "S"], I64), value("attention_mask", ["B", "T"], I64), value("position_ids", ["B", "S"], I64)]
    initializers = [helper.make_tensor(name, kind, shape, [0.5] * (shape[0] * shape[1])) for name, (kind, shape) in CONSTANTS.items()]
    initializers += [helper.make_tensor(name, I64, [len(values)], values) for name, values in INTS.items()]
    initializers += [helper.make_tensor("embedding", F32, [16, 32], [1.0] * 512), helper.make_tensor("window", I64, [], [4]),
                     helper.make_tensor("zero", F32, [], [0.0]), helper.make_tensor("hidden", F32, [], [-3.4e38])]
    graph = helper.make_graph(nodes, "decoder", ids + inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)], ir_version=10)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=20000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--keep", help="where to leave the model")
    parser.add_argument("--kvshare", default=KVSHARE)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.keep or f"{folder}/model.onnx"
        model = make(arguments.nodes)
        onnx.save(model, path)
        layers = sum(node.op_type in ("Attention", "GroupQueryAttention") for node in model.graph.node)
        print(f"{len(model.graph.node)} nodes, {layers} attention layers")
        for target in ("kvshare", "kvshare-attention", "ort"):
            times = []
            for _ in range(arguments.runs):
                start = time.perf_counter()
                subprocess.run([arguments.kvshare, "rewrite", path, "--dry-run", "--to", target], check=True, capture_output=True)
                times.append(time.perf_counter() - start)
            print(f"--to {target:18} {statistics.median(times):6.2f} s")


if __name__ == "__main__":
    main()
