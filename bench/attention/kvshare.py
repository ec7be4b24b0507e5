"""kvshare inside ONNX Runtime: GroupQueryAttention with K and V borrowed, and with a cache of its own; an unchanged graph."""
import ctypes
import json

import numpy as np
from onnx import TensorProto, helper

from bench import common, ort_session
from bench.attention.masked import masked
from bench.ort_session import Bound, ONNX_TYPE

SLOTS = ("query key value past_key past_value seqlens_k total cos sin position_ids bias sink k_scale v_scale q_norm k_norm "
         "query_seqlens external_key external_value").split()


def version():
    """With the SIMD target that its kernels are of."""
    library = ctypes.CDLL(ort_session.library())
    library.kvshare_version.restype = ctypes.c_char_p
    text = ctypes.create_string_buffer(library.kvshare_stats_json(None, ctypes.c_size_t()))
    library.kvshare_stats_json(text, ctypes.c_size_t(len(text)))
    return f"{library.kvshare_version().decode()} on {json.loads(text.value)['simd']}"


def node(domain, row, given, outputs, **attributes):
    """A GroupQueryAttention that is given these inputs."""
    slots = [name if name in given else "" for name in SLOTS]
    while not slots[-1]:
        slots.pop()
    if row.dtype == "int8":
        attributes.update(k_quant_type="PER_TENSOR", v_quant_type="PER_TENSOR", kv_cache_bit_width=8)
    return helper.make_node("GroupQueryAttention", slots, outputs, domain=domain, num_heads=row.shape.Hq,
                            kv_num_heads=row.shape.Hkv, do_rotary=int("cos" in given),
                            local_window_size=row.shape.window or -1, **attributes)


def lengths(row):
    """The inputs that tell lengths and scales."""
    scales = {"k_scale": np.array([common.INT8_SCALE]), "v_scale": np.array([common.INT8_SCALE])}
    return {"seqlens_k": np.array(row.lengths, np.int32) - 1, "total": np.array(row.T, np.int32),
            **(scales if row.dtype == "int8" else {})}


def values(named):
    """(name, ONNX type, shape) of each array."""
    kinds = {np.dtype(np.int32): TensorProto.INT32, np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int8): TensorProto.INT8,
             np.dtype(np.float16): TensorProto.FLOAT16, np.dtype(np.uint16): TensorProto.BFLOAT16, np.dtype(bool): TensorProto.BOOL}
    return [(name, kinds[array.dtype], list(array.shape)) for name, array in named.items()]


def borrowed(row, data, extra=None, **attributes):
    """K/V through external_key and external_value; `extra` inputs by slot name."""
    query = data.query.reshape(row.batch, row.S, -1)
    fixed = {"query": query, **lengths(row), **(extra or {})}
    pair = dict(zip(("external_key", "external_value"), data.pairs()[0]))
    made = ort_session.session([node("kvshare", row, {**fixed, **pair}, ["output"], **attributes)], values({**fixed, **pair}),
                               [("output", ONNX_TYPE[row.query_dtype], list(query.shape))], row.threads, kvshare={})
    result = np.empty_like(query)
    bound = Bound(made, row.batch * row.S)
    for key, value in data.pairs():
        bound.add({**fixed, "external_key": key, "external_value": value}, {"output": result})
    return bound.side([result])


def own_cache(row, data, domain, extra=None):
    """GroupQueryAttention that appends S rows to its cache in place, as onnxruntime-genai binds it; `extra` inputs by slot
    name."""
    query = data.query.reshape(row.batch, row.S, -1)
    kind, cache = ONNX_TYPE[row.query_dtype], ONNX_TYPE[row.dtype]
    fixed = {"query": query, **lengths(row), **(extra or {})}

    def tail(pair):
        """The rows of the new tokens, as key or value input."""
        rows = [common.as_float(pair[b, :, n - row.S:n]).transpose(1, 0, 2) for b, n in enumerate(row.lengths)]
        return common.stored(np.ascontiguousarray(rows), row.query_dtype).reshape(row.batch, row.S, -1)

    key, value = data.pairs()[0]
    named = {**fixed, "key": tail(key), "value": tail(value), "past_key": key, "past_value": value}
    made = ort_session.session([node(domain, row, named, ["output", "present_key", "present_value"])], values(named),
                               [("output", kind, list(query.shape)), ("present_key", cache, list(key.shape)),
                                ("present_value", cache, list(value.shape))], row.threads,
                               kvshare={} if domain == "kvshare" else None)
    result = np.empty_like(query)
    bound = Bound(made, row.batch * row.S)
    for key, value in data.pairs():
        past_key, past_value = ort_session.on(key), ort_session.on(value)
        bound.add({**fixed, "key": tail(key), "value": tail(value), "past_key": past_key, "past_value": past_value},
                  {"output": result, "present_key": past_key, "present_value": past_value})
    return bound.side([result])


def shared(row, data, named_presents=False, provider=False):
    """Upstream's shared form: a key and a value of length 0, past is the borrowed cache. provider: in kvshare's."""
    query = data.query.reshape(row.batch, row.S, -1)
    nothing = np.empty((row.batch, 0, row.shape.Hkv * row.shape.D), query.dtype)
    fixed = {"query": query, "key": nothing, "value": nothing, **lengths(row)}
    pair = dict(zip(("past_key", "past_value"), data.pairs()[0]))
    outputs = ["output"] + (["unused_key", "unused_value"] if named_presents else [])
    made = ort_session.session([node("com.microsoft", row, {**fixed, **pair}, outputs)], values({**fixed, **pair}),
                               [("output", ONNX_TYPE[row.query_dtype], list(query.shape))], row.threads, provider=provider)
    result = np.empty_like(query)
    bound = Bound(made, row.batch * row.S)
    for key, value in data.pairs():
        bound.add({**fixed, "past_key": key, "past_value": value}, {"output": result})
    return bound.side([result])


def sides(row, data):
    found = {"kvshare": lambda: borrowed(row, data), "kvshare, own cache": lambda: own_cache(row, data, "kvshare"),
             "kvshare EP, unchanged": lambda: shared(row, data, provider=True)}
    if row.dtype != "int8" and row.batch == 1:
        found["kvshare, Attention + mask"] = lambda: masked(row, data, drop_in=True)
        found["kvshare EP, masked"] = lambda: masked(row, data, provider=True)
    return found
