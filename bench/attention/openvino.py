"""OpenVINO's PagedAttention: blocks of 32 rows, a block table a call. It writes the new rows into their slots. The query is
fp32; the cache has the row's type."""
import numpy as np
import openvino
import openvino.op
from openvino import opset13

from bench.common import Skip

BLOCK = 32


def version():
    return openvino.__version__.split("-")[0]


def _model(row):
    """The op's 28 inputs, as of 2026.4; the ones that are off are empty constants."""
    shape = row.shape

    def parameter(name, dims):
        return opset13.parameter(dims, np.int32, name=name)

    def constant(value, kind, dims=None):
        return opset13.constant(np.array(value, kind) if dims is None else np.zeros(dims, kind))

    rows = [opset13.parameter([-1, heads * shape.D], np.float32, name=name)
            for name, heads in (("query", shape.Hq), ("key", shape.Hkv), ("value", shape.Hkv))]
    caches = [opset13.parameter(openvino.PartialShape([-1] * 4), openvino.Type.dynamic, name=name)
              for name in ("key_cache", "value_cache")]
    tables = [parameter(name, [-1]) for name in ("past_lens", "begins", "blocks", "blocks_begins")]
    longest = parameter("longest", [])
    no_ints, no_floats = constant([], np.int32), constant([], np.float32)
    zero = constant(0, np.int32)
    inputs = [*rows, *caches, *tables, constant(shape.D**-0.5, np.float32), constant(shape.window, np.int32),
              no_floats, longest, zero,                                                           # alibi, scores
              no_ints, constant(0, np.int32, (0, 0)), constant(0, np.float32, (0, 0)),            # rotation
              no_floats, zero, zero, constant(0, np.float32, (0, 0, 0, 0)),                       # xattention, sinks
              zero, no_ints, no_ints, no_ints, no_ints, constant([], np.uint8), no_ints]          # eviction, token types
    op = openvino.op._PagedAttentionExtension([x.output(0) for x in inputs])
    facts = op.get_rt_info()
    for name, value in (("num_k_heads", shape.Hkv), ("k_head_size", shape.D), ("num_v_heads", shape.Hkv),
                        ("v_head_size", shape.D)):
        facts[name] = value
    return openvino.Model([op.output(0)], [*rows, *caches, *tables, longest], "paged_attention")


def _paged(flat, row, count):
    """Blocks [blocks, Hkv, BLOCK, D] of the whole rotation."""
    shape = row.shape
    if shape.Hkv == 1:
        return flat.reshape(-1, 1, BLOCK, shape.D)
    blocks = flat.reshape(count, shape.Hkv, row.T // BLOCK, BLOCK, shape.D).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(blocks).reshape(-1, shape.Hkv, BLOCK, shape.D)


def _side(row, data):
    compiled = openvino.Core().compile_model(_model(row), "CPU", {
        "INFERENCE_NUM_THREADS": row.threads, "INFERENCE_PRECISION_HINT": "f32",
        "KV_CACHE_PRECISION": {"fp32": "f32", "fp16": "f16"}[row.dtype]})
    shape, blocks = row.shape, row.T // BLOCK
    if compiled.input("key_cache").partial_shape[2] != openvino.Dimension(BLOCK):
        raise Skip(f"its cache has no blocks of {BLOCK} rows")
    request = compiled.create_infer_request()
    tails = [np.ascontiguousarray(x[0, :, row.T - row.S:].transpose(1, 0, 2), np.float32).reshape(row.S, -1)
             for x in (data.key(0), data.value(0))]
    first = {"query": data.query.astype(np.float32).reshape(row.S, -1), "key": tails[0], "value": tails[1],
             "past_lens": np.array([row.T - row.S], np.int32), "begins": np.array([0, row.S], np.int32),
             "blocks_begins": np.array([0, blocks], np.int32), "longest": np.array(row.T, np.int32),
             "key_cache": _paged(data.keys, row, data.count), "value_cache": _paged(data.values, row, data.count)}
    for name, array in first.items():
        request.set_tensor(name, openvino.Tensor(array))  # its own copy
    step = data.step // (shape.Hkv * BLOCK * shape.D)
    tables = [openvino.Tensor(np.arange(i * step, i * step + blocks, dtype=np.int32)) for i in range(data.count)]

    def call(i):
        request.set_tensor("blocks", tables[i])
        request.infer()

    return call, lambda: request.get_output_tensor(0).data.reshape(row.S, -1)


def sides(row, data):
    return {"openvino": lambda: _side(row, data)}
