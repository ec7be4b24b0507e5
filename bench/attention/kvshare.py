"""kvshare's GroupQueryAttention inside ONNX Runtime: K and V borrowed, and with a cache of its own."""
import ctypes

import numpy as np
from onnx import TensorProto, helper

from bench import ort_session
from bench.ort_session import Bound, ONNX_TYPE

INPUTS = 19  # external_key and external_value are the last


def version():
    library = ctypes.CDLL(ort_session.library())
    library.kvshare_version.restype = ctypes.c_char_p
    return library.kvshare_version().decode()


def _node(inputs, outputs, shape):
    return helper.make_node("GroupQueryAttention", inputs, outputs, domain="kvshare", num_heads=shape.Hq,
                            kv_num_heads=shape.Hkv, do_rotary=0, local_window_size=shape.window or -1)


def _lengths(row):
    return {"seqlens_k": np.array([row.T - 1], np.int32), "total": np.array(row.T, np.int32)}


def _borrowed(row, data):
    shape, kind = row.shape, ONNX_TYPE[row.dtype]
    width, cache = shape.Hq * shape.D, [1, shape.Hkv, row.T, shape.D]
    slots = ["query", "", "", "", "", "seqlens_k", "total"] + [""] * (INPUTS - 9) + ["key", "value"]
    made = ort_session.session(
        [_node(slots, ["output"], shape)],
        [("query", kind, [1, row.S, width]), ("key", kind, cache), ("value", kind, cache),
         ("seqlens_k", TensorProto.INT32, [1]), ("total", TensorProto.INT32, [])],
        [("output", kind, [1, row.S, width])], row.threads, kvshare=True)
    query = data.query.reshape(1, row.S, width)
    result = np.empty_like(query)
    bound = Bound(made, row.S)
    for key, value in data.pairs():
        bound.add({"query": query, "key": key, "value": value, **_lengths(row)}, {"output": result})
    return bound.side([result])


def own_cache(row, data, node, kvshare):
    """GroupQueryAttention that appends S rows to its cache in place, as onnxruntime-genai binds it."""
    shape, kind = row.shape, ONNX_TYPE[row.dtype]
    width, cache = shape.Hq * shape.D, [1, shape.Hkv, row.T, shape.D]
    new = [1, row.S, shape.Hkv * shape.D]
    made = ort_session.session(
        [node(["query", "key", "value", "past_key", "past_value", "seqlens_k", "total"],
              ["output", "present_key", "present_value"], shape)],
        [("query", kind, [1, row.S, width]), ("key", kind, new), ("value", kind, new), ("past_key", kind, cache),
         ("past_value", kind, cache), ("seqlens_k", TensorProto.INT32, [1]), ("total", TensorProto.INT32, [])],
        [("output", kind, [1, row.S, width]), ("present_key", kind, cache), ("present_value", kind, cache)], row.threads,
        kvshare=kvshare)
    query = data.query.reshape(1, row.S, width)
    result = np.empty_like(query)
    bound = Bound(made, row.S)
    for key, value in data.pairs():
        past_key, past_value = ort_session.on(key), ort_session.on(value)
        tails = [np.ascontiguousarray(x[0, :, row.T - row.S:].transpose(1, 0, 2)).reshape(new) for x in (key, value)]
        bound.add({"query": query, "key": tails[0], "value": tails[1], "past_key": past_key, "past_value": past_value,
                   **_lengths(row)}, {"output": result, "present_key": past_key, "present_value": past_value})
    return bound.side([result])


def sides(row, data):
    return {"kvshare": lambda: _borrowed(row, data),
            "kvshare, own cache": lambda: own_cache(row, data, _node, kvshare=True)}
