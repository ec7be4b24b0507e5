"""Attention-24 with the mask built in the graph, as exporters emit it: ONNX Runtime's, or the same graph in kvshare."""
import numpy as np
from onnx import TensorProto, helper

from bench import common, ort_session
from bench.ort_session import Bound, ONNX_TYPE


def mask_nodes(window, query, axis):
    """attention_mask [1, T] of ones -> mask [1, 1, S, T], by positions. S is `query`'s extent along `axis`."""
    constants = {"one": 1, "ax1": [1], "ax2": [2], "window": window}
    initializers = [helper.make_tensor(n, TensorProto.INT64, np.shape(v), np.ravel(v)) for n, v in constants.items()]
    node = helper.make_node
    nodes = [node("CumSum", ["attention_mask", "one"], ["count"]), node("Unsqueeze", ["count", "ax1"], ["key_position"]),
             node("Shape", [query], ["s"], start=axis, end=axis + 1), node("Shape", ["attention_mask"], ["t"], start=1, end=2),
             node("Sub", ["t", "s"], ["past"]), node("Slice", ["count", "past", "t", "ax1"], ["new"]),
             node("Unsqueeze", ["new", "ax2"], ["query_position"]),
             node("GreaterOrEqual", ["query_position", "key_position"], ["causal"]),
             node("Cast", ["attention_mask"], ["present"], to=TensorProto.BOOL),
             node("Unsqueeze", ["present", "ax1"], ["present_row"]), node("And", ["causal", "present_row"], ["seen"])]
    if window:
        nodes += [node("Sub", ["query_position", "key_position"], ["distance"]), node("Less", ["distance", "window"], ["near"]),
                  node("And", ["seen", "near"], ["seen_near"])]
    nodes.append(node("Unsqueeze", ["seen_near" if window else "seen", "ax1"], ["mask"]))
    return nodes, initializers


def masked(row, data, drop_in=False, provider=False):
    """(call, output) of the graph; with drop_in or in kvshare's provider, its Attention runs in kvshare."""
    shape, kind = row.shape, ONNX_TYPE[row.dtype]
    cache = [1, shape.Hkv, row.T, shape.D]
    nodes, initializers = mask_nodes(shape.window, "query", 2)
    nodes.append(helper.make_node("Attention", ["query", "key", "value", "mask"], ["output"], is_causal=0))
    made = ort_session.session(
        nodes,
        [("query", kind, [1, shape.Hq, row.S, shape.D]), ("attention_mask", TensorProto.INT64, [1, row.T]),
         ("key", kind, cache), ("value", kind, cache)],
        [("output", kind, [1, shape.Hq, row.S, shape.D])], row.threads, initializers,
        kvshare={"kvshare.drop_in": "attention"} if drop_in else None, provider=provider)
    query = np.ascontiguousarray(data.query.transpose(1, 0, 2))[None]
    result = np.empty_like(query)
    bound = Bound(made, row.S)
    for key, value in data.pairs():
        bound.add({"query": query, "attention_mask": np.ones((1, row.T), np.int64), "key": key, "value": value},
                  {"output": result})
    call, _ = bound.side([result])
    return call, lambda: common.as_float(result[0].transpose(1, 0, 2).reshape(row.S, -1))
