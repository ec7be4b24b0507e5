"""What the tests of src/ort share: sessions with and without the library, one-node models, the counters, a reference."""
import ctypes
import functools
import json
import os

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

ORT_LIB = os.environ["KVSHARE_ORT_LIB"]
DROPIN_LIB = os.environ["KVSHARE_DROPIN_LIB"]
DATA = os.environ["KVSHARE_TEST_DATA"]
ON_DEVICE = os.environ.get("KVSHARE_BACKEND", "cpu") != "cpu"  # the libraries hold CUDA's kernels, emulated, and no others
VERSION = tuple(int(x) for x in ort.__version__.split(".")[:2])
OPSET = 23 if VERSION >= (1, 24) else 21  # the newest that every release knows, for ops of other domains

GQA_INPUTS = ("query key value past_key past_value seqlens_k total_sequence_length cos_cache sin_cache position_ids "
              "attention_bias head_sink k_scale v_scale q_norm_weight k_norm_weight query_seqlens external_key "
              "external_value").split()
GQA_OUTPUTS = ["output", "present_key", "present_value", "output_qk"]
ATTENTION_INPUTS = "Q K V attn_mask past_key past_value nonpad_kv_seqlen key_mask".split()
ATTENTION_OUTPUTS = ["Y", "present_key", "present_value", "qk_matmul_output"]

ONNX_TYPE = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16,
             np.dtype(np.float64): TensorProto.DOUBLE, np.dtype(ml_dtypes.bfloat16): TensorProto.BFLOAT16,
             np.dtype(np.int8): TensorProto.INT8, np.dtype(np.uint8): TensorProto.UINT8,
             np.dtype(np.int16): TensorProto.INT16, np.dtype(np.uint16): TensorProto.UINT16,
             np.dtype(np.int32): TensorProto.INT32, np.dtype(np.int64): TensorProto.INT64,
             np.dtype(np.uint32): TensorProto.UINT32, np.dtype(np.uint64): TensorProto.UINT64,
             np.dtype(bool): TensorProto.BOOL, np.dtype(ml_dtypes.float8_e4m3fn): TensorProto.FLOAT8E4M3FN}


def model(op, domain, names, output_names, inputs, outputs, attributes, opset=OPSET, output_types=None):
    """A one-node model whose node is called 'node'; `inputs` maps input names to arrays (absent ones are "")."""
    used = [n if n in inputs else "" for n in names]
    while used and not used[-1]:
        used.pop()
    outs = [n if n in outputs else "" for n in output_names]
    while not outs[-1]:
        outs.pop()
    query_type = inputs[names[0]].dtype
    cache = next((inputs[n].dtype for n in ("past_key", "external_key") if n in inputs), query_type)
    types = output_types or {}
    node = helper.make_node(op, used, outs, name="node", domain=domain, **attributes)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info(n, ONNX_TYPE[inputs[n].dtype], [f"{n}_{i}" for i in range(inputs[n].ndim)])
         for n in names if n in inputs],
        [helper.make_tensor_value_info(n, ONNX_TYPE[np.dtype(types.get(n, cache if n.startswith("present") else query_type))], None)
         for n in outs if n])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("kvshare", 1)]
    made = helper.make_model(graph, opset_imports=opsets)
    made.ir_version = 10
    return made.SerializeToString()


def skip_on_device(why, where=True):
    """Of what only the CPU promises."""
    if ON_DEVICE and where:
        pytest.skip(why)


def session(bytes_or_path, lib=ORT_LIB, **entries):
    """`entries`: session entries without their prefix, e.g. drop_in="1"."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    for key, value in entries.items():
        options.add_session_config_entry(f"kvshare.{key}", value)
    if lib:
        options.register_custom_ops_library(lib)
    return ort.InferenceSession(bytes_or_path, options, providers=["CPUExecutionProvider"])


@functools.lru_cache(maxsize=32)
def kept_session(model_bytes, lib, entries):
    """session() of the steps of one sequence: the same node again and again."""
    return session(model_bytes, lib, **dict(entries))


# Types that numpy lacks go in and out as OrtValues over an integer of their size.
BY_VALUE = {np.dtype(ml_dtypes.bfloat16): np.uint16, np.dtype(ml_dtypes.float8_e4m3fn): np.uint8}
BY_VALUE_NAMES = {"tensor(bfloat16)": np.dtype(ml_dtypes.bfloat16), "tensor(float8e4m3fn)": np.dtype(ml_dtypes.float8_e4m3fn)}


def run_in_place(sess, inputs, caches):
    """output of one step whose presents are bound onto its pasts, `caches`: OrtValues past_key and past_value."""
    binding = sess.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, caches.get(name) or ort.OrtValue.ortvalue_from_numpy(array))
    binding.bind_output("output", "cpu")
    binding.bind_ortvalue_output("present_key", caches["past_key"])
    binding.bind_ortvalue_output("present_value", caches["past_value"])
    sess.run_with_iobinding(binding)
    return binding.get_outputs()[0].numpy()


def run(sess, inputs):
    """Outputs by name. bfloat16 and float8 go in and out as ml_dtypes'."""
    if not any(a.dtype in BY_VALUE for a in inputs.values()):
        return dict(zip([o.name for o in sess.get_outputs()], sess.run(None, inputs)))
    binding = sess.io_binding()
    values = []  # outlive the run
    for name, array in inputs.items():
        if array.dtype in BY_VALUE:
            bits = np.ascontiguousarray(array).view(BY_VALUE[array.dtype])
            values.append(ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, ONNX_TYPE[array.dtype]))
        else:
            values.append(ort.OrtValue.ortvalue_from_numpy(array))
        binding.bind_ortvalue_input(name, values[-1])
    for out in sess.get_outputs():
        binding.bind_output(out.name, "cpu")
    sess.run_with_iobinding(binding)
    result = {}
    for out, value in zip(sess.get_outputs(), binding.get_outputs()):
        dtype = BY_VALUE_NAMES.get(out.type)
        if dtype is None:
            result[out.name] = value.numpy()
            continue
        if 0 in value.shape():  # has no address
            result[out.name] = np.zeros(value.shape(), dtype)
            continue
        bits = ctypes.c_uint16 if dtype.itemsize == 2 else ctypes.c_uint8
        flat = np.ctypeslib.as_array(ctypes.cast(value.data_ptr(), ctypes.POINTER(bits)), (int(np.prod(value.shape())),))
        result[out.name] = flat.copy().view(dtype).reshape(value.shape())
    return result


def gqa(inputs, attributes, outputs=("output", "present_key", "present_value"), domain="com.microsoft", lib=ORT_LIB,
        output_types=None, **entries):
    m = model("GroupQueryAttention", domain, GQA_INPUTS, GQA_OUTPUTS, inputs, outputs, attributes, output_types=output_types)
    return run(kept_session(m, lib, tuple(sorted(entries.items()))), inputs)


def attention(inputs, attributes, outputs=("Y",), domain="", lib=ORT_LIB, opset=None, **entries):
    opset = opset or (OPSET if domain else 24)
    names = ATTENTION_INPUTS if domain else ATTENTION_INPUTS[:7]
    m = model("Attention", domain, names, ATTENTION_OUTPUTS, inputs, outputs, attributes, opset=opset)
    return run(kept_session(m, lib, tuple(sorted(entries.items()))), inputs)


class OlderHost:
    """The C entry of an ONNX Runtime 1.`newest`.2, whose tables of functions end at version `newest`: all that a library may call
    is the first entry of version 1, CreateStatus. `said` has the messages of the statuses."""
    STATUS = 1  # the address of each status

    def __init__(self, newest):
        self.said = []

        @ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_int, ctypes.c_char_p)
        def create_status(code, message):
            self.said.append(message.decode())
            return self.STATUS

        table = (ctypes.c_void_p * 1)(ctypes.cast(create_status, ctypes.c_void_p))
        get_api = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_uint32)(lambda n: ctypes.addressof(table) if n <= newest else 0)
        version = ctypes.create_string_buffer(f"1.{newest}.2".encode())
        get_version = ctypes.CFUNCTYPE(ctypes.c_size_t)(lambda: ctypes.addressof(version))
        self.kept = (create_status, get_api, get_version)
        self.base = (ctypes.c_void_p * 2)(ctypes.cast(get_api, ctypes.c_void_p), ctypes.cast(get_version, ctypes.c_void_p))


class Counters:
    """The library's own counters, by its exported C functions."""

    def __init__(self, lib=ORT_LIB):
        self.lib = ctypes.CDLL(lib)
        self.lib.kvshare_stats_json.restype = ctypes.c_size_t
        self.lib.kvshare_stats_json.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        self.lib.kvshare_version.restype = ctypes.c_char_p

    def reset(self):
        self.lib.kvshare_stats_reset()

    def read(self):
        size = self.lib.kvshare_stats_json(None, 0)
        buffer = ctypes.create_string_buffer(size)
        self.lib.kvshare_stats_json(buffer, size)
        return json.loads(buffer.value)


def rows(array, lengths):
    """The cache rows that are valid, for comparing presents."""
    return [array[b, :, :n].astype(np.float64) for b, n in enumerate(lengths)]


def rope(x, cos, sin, positions, interleaved=False):
    """x [B, H, S, D] rotated in float64 for positions [B, S]."""
    half = cos.shape[1]
    c, s = cos.astype(np.float64)[positions][:, None], sin.astype(np.float64)[positions][:, None]
    out = x.astype(np.float64).copy()
    a, b = ((slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half)))
    xa, xb = out[..., a].copy(), out[..., b].copy()
    out[..., a], out[..., b] = xa * c - xb * s, xb * c + xa * s
    return out


def reference(q, k, v, visible, scale, softcap=0.0, bias=None, sink=None):
    """q [B, Hq, S, D], k and v [B, Hkv, T, D], visible broadcasts to [B, Hq, S, T]; all in float64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat(group, 1), v.repeat(group, 1)
    visible = np.broadcast_to(visible, q.shape[:3] + k.shape[2:3])
    k = np.where(visible.any((1, 2))[:, None, :, None], k, 0)
    v = np.where(visible.any((1, 2))[:, None, :, None], v, 0)
    x = np.einsum("bhsd,bhtd->bhst", q, k) * scale
    if softcap:
        x = softcap * np.tanh(x / softcap)
    if bias is not None:
        x = x + bias
    x = np.where(visible, x, -np.inf)
    top = x.max(-1, keepdims=True)
    if sink is not None:
        top = np.maximum(top, sink[None, :, None, None])
    top = np.where(np.isfinite(top), top, 0)
    p = np.exp(x - top)
    total = p.sum(-1, keepdims=True) + (0 if sink is None else np.exp(sink[None, :, None, None] - top))
    return np.einsum("bhst,bhtd->bhsd", p / np.where(total == 0, 1, total), v)


def heads(x3, n):
    """[B, S, n*D] -> [B, n, S, D]."""
    return x3.reshape(x3.shape[0], x3.shape[1], n, -1).transpose(0, 2, 1, 3)


def folded(x4):
    """[B, n, S, D] -> [B, S, n*D]."""
    return x4.transpose(0, 2, 1, 3).reshape(x4.shape[0], x4.shape[2], x4.shape[1] * x4.shape[3])


def tables(rng, positions, half, dtype=np.float32):
    angle = rng.uniform(0, 2 * np.pi, (positions, half))
    return np.cos(angle).astype(dtype), np.sin(angle).astype(dtype)


TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float16): 2e-3, np.dtype(ml_dtypes.bfloat16): 1.6e-2,
             np.dtype(np.float64): 1e-12}
# Of caches of integers: few rows of queries and their weights are rounded to 16 bits, where the CPU multiplies integers
# faster.
CODES = 1e-4


def assert_close(got, want, dtype, what="", least=0.0):
    """fp32: absolute; half types: relative to the largest element; no stricter than `least`."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (what, got.shape, want.shape)
    if got.size == 0:
        return
    assert np.isfinite(got).all(), what
    scale = 1.0 if np.dtype(dtype).itemsize >= 4 else max(np.abs(want).max(), 1e-6)
    worst = np.abs(got - want).max() / scale
    assert worst <= max(least, TOLERANCE[np.dtype(dtype)]), f"{what} differs by {worst:.2e}"
