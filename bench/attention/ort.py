"""ONNX Runtime's own ways: GroupQueryAttention with its own cache, its shared form (key and value of length 0, past is the
borrowed cache) without and with named presents, and Attention-24 with the mask built in the graph."""
import onnxruntime

from bench.attention.kvshare import own_cache, shared
from bench.attention.masked import masked
from bench.common import Skip


def version():
    return onnxruntime.__version__


def sides(row, data):
    if row.dtype == "bf16":
        raise Skip("has no bf16 attention on CPU")
    found = {"ort shared": lambda: shared(row, data), "ort shared, presents": lambda: shared(row, data, named_presents=True),
             "ort own cache": lambda: own_cache(row, data, "com.microsoft")}
    if row.dtype != "int8" and row.batch == 1:
        found["ort Attention + mask"] = lambda: masked(row, data)
    return found
