"""ONNX Runtime's own ways: GroupQueryAttention with its own cache, its shared form (key and value of length 0, past is the
borrowed cache) without and with named presents, and Attention-24 with the mask built in the graph."""
import numpy as np
import onnxruntime

from bench import ort_session
from bench.attention.kvshare import lengths, node, own_cache, values
from bench.attention.masked import masked
from bench.common import Skip
from bench.ort_session import Bound, ONNX_TYPE


def version():
    return onnxruntime.__version__


def _shared(row, data, named_presents):
    query = data.query.reshape(row.batch, row.S, -1)
    nothing = np.empty((row.batch, 0, row.shape.Hkv * row.shape.D), query.dtype)
    fixed = {"query": query, "key": nothing, "value": nothing, **lengths(row)}
    pair = dict(zip(("past_key", "past_value"), data.pairs()[0]))
    outputs = ["output"] + (["unused_key", "unused_value"] if named_presents else [])
    made = ort_session.session([node("com.microsoft", row, {**fixed, **pair}, outputs)], values({**fixed, **pair}),
                               [("output", ONNX_TYPE[row.query_dtype], list(query.shape))], row.threads)
    result = np.empty_like(query)
    bound = Bound(made, row.batch * row.S)
    for key, value in data.pairs():
        bound.add({**fixed, "past_key": key, "past_value": value}, {"output": result})
    return bound.side([result])


def sides(row, data):
    if row.dtype == "bf16":
        raise Skip("has no bf16 attention on CPU")
    found = {"ort shared": lambda: _shared(row, data, False), "ort shared, presents": lambda: _shared(row, data, True),
             "ort own cache": lambda: own_cache(row, data, "com.microsoft")}
    if row.dtype != "int8" and row.batch == 1:
        found["ort Attention + mask"] = lambda: masked(row, data)
    return found
