"""ONNX Runtime's own ways: GroupQueryAttention with its own cache, its shared form (key and value of length 0, past is the
borrowed cache) without and with named presents, and Attention-24 with the mask built in the graph, as exporters emit it."""
import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from bench import ort_session
from bench.attention.kvshare import own_cache
from bench.common import Skip
from bench.ort_session import Bound, ONNX_TYPE


def version():
    return onnxruntime.__version__


def _node(inputs, outputs, shape):
    return helper.make_node("GroupQueryAttention", inputs, outputs, domain="com.microsoft", num_heads=shape.Hq,
                            kv_num_heads=shape.Hkv, do_rotary=0, local_window_size=shape.window or -1)


def _shared(row, data, named_presents):
    shape, kind = row.shape, ONNX_TYPE[row.dtype]
    width, cache, nothing = shape.Hq * shape.D, [1, shape.Hkv, row.T, shape.D], [1, 0, shape.Hkv * shape.D]
    made = ort_session.session(
        [_node(["query", "nothing", "nothing", "key", "value", "seqlens_k", "total"],
               ["output"] + (["unused_key", "unused_value"] if named_presents else []), shape)],
        [("query", kind, [1, row.S, width]), ("nothing", kind, nothing), ("key", kind, cache), ("value", kind, cache),
         ("seqlens_k", TensorProto.INT32, [1]), ("total", TensorProto.INT32, [])],
        [("output", kind, [1, row.S, width])], row.threads)
    query = data.query.reshape(1, row.S, width)
    result = np.empty_like(query)
    bound = Bound(made, row.S)
    for key, value in data.pairs():
        bound.add({"query": query, "nothing": np.empty(nothing, query.dtype), "key": key, "value": value,
                   "seqlens_k": np.array([row.T - 1], np.int32), "total": np.array(row.T, np.int32)}, {"output": result})
    return bound.side([result])


def _mask_nodes(window):
    """attention_mask [1, T] of ones -> mask [1, 1, S, T], by positions."""
    constants = {"one": 1, "ax1": [1], "ax2": [2], "zero": 0, "window": window}
    initializers = [helper.make_tensor(n, TensorProto.INT64, np.shape(v), np.ravel(v)) for n, v in constants.items()]
    node = helper.make_node
    nodes = [node("CumSum", ["attention_mask", "one"], ["count"]), node("Unsqueeze", ["count", "ax1"], ["key_position"]),
             node("Shape", ["query"], ["s"], start=2, end=3), node("Shape", ["attention_mask"], ["t"], start=1, end=2),
             node("Sub", ["t", "s"], ["past"]), node("Slice", ["count", "past", "t", "ax1"], ["new"]),
             node("Unsqueeze", ["new", "ax2"], ["query_position"]),
             node("Sub", ["query_position", "key_position"], ["distance"]),
             node("GreaterOrEqual", ["distance", "zero"], ["causal"]),
             node("Cast", ["attention_mask"], ["present"], to=TensorProto.BOOL),
             node("Unsqueeze", ["present", "ax1"], ["present_row"]), node("And", ["causal", "present_row"], ["seen"])]
    if window:
        nodes += [node("Less", ["distance", "window"], ["near"]), node("And", ["seen", "near"], ["seen_near"])]
    nodes.append(node("Unsqueeze", ["seen_near" if window else "seen", "ax1"], ["mask"]))
    return nodes, initializers


def _attention(row, data):
    shape, kind = row.shape, ONNX_TYPE[row.dtype]
    cache = [1, shape.Hkv, row.T, shape.D]
    nodes, initializers = _mask_nodes(shape.window)
    nodes.append(helper.make_node("Attention", ["query", "key", "value", "mask"], ["output"], is_causal=0))
    made = ort_session.session(
        nodes,
        [("query", kind, [1, shape.Hq, row.S, shape.D]), ("attention_mask", TensorProto.INT64, [1, row.T]),
         ("key", kind, cache), ("value", kind, cache)],
        [("output", kind, [1, shape.Hq, row.S, shape.D])], row.threads, initializers)
    query = np.ascontiguousarray(data.query.transpose(1, 0, 2))[None]
    result = np.empty_like(query)
    bound = Bound(made, row.S)
    for key, value in data.pairs():
        bound.add({"query": query, "attention_mask": np.ones((1, row.T), np.int64), "key": key, "value": value},
                  {"output": result})
    call, _ = bound.side([result])
    return call, lambda: result[0].transpose(1, 0, 2).reshape(row.S, -1).astype(np.float32)


def sides(row, data):
    if row.dtype == "bf16":
        raise Skip("has no bf16 attention on CPU")
    return {"ort shared": lambda: _shared(row, data, False), "ort shared, presents": lambda: _shared(row, data, True),
            "ort own cache": lambda: own_cache(row, data, _node, kvshare=False),
            "ort Attention + mask": lambda: _attention(row, data)}
