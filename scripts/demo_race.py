"""ONNX Runtime's shared form of GroupQueryAttention, alone and in kvshare's execution provider, against kvshare's own op, one
decode step of one layer."""
import dataclasses
import math
import pathlib
import statistics
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

TOKENS = 32768
ROUNDS = 7
SECONDS_A_SLOT = 0.08  # what one side may take in one round
KVSHARE_INPUTS = 19    # 17 external_key, 18 external_value are the last


@dataclasses.dataclass(frozen=True)
class Layer:
    name: str
    query_heads: int
    head_size: int
    window: int  # -1: full

    @property
    def visible(self):
        return TOKENS if self.window < 0 else self.window


# Gemma4 E2B: 8 query heads share one KV head.
LAYERS = (Layer("sliding layer (D 256, window 512)", 8, 256, 512), Layer("full layer (D 512)", 8, 512, -1))


@dataclasses.dataclass
class Result:
    ort_ms: float
    provider_ms: float
    kvshare_ms: float
    difference: float


def cache_bytes():
    """The last-level cache's size; 64 MB where the system does not tell."""
    try:
        text = pathlib.Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
    except OSError:
        return 64 << 20
    return int(text.removesuffix("K")) << 10


def provider_devices(library):
    """kvshare's execution provider, registered at the first call."""
    def found():
        return [d for d in onnxruntime.get_ep_devices() if d.ep_name == "KvshareExecutionProvider"][:1]

    if not found():
        onnxruntime.register_execution_provider_library("kvshare", str(library))
    return found()


def session(layer, library, own_op):
    """One attention node: kvshare's with `own_op`, else ONNX Runtime's, whose unused presents are left unnamed. Without a library
    ONNX Runtime runs it alone."""
    width = layer.query_heads * layer.head_size

    def value(name, kind, shape):
        return helper.make_tensor_value_info(name, kind, shape)

    cache = [1, 1, TOKENS, layer.head_size]
    inputs = [value("query", TensorProto.FLOAT, [1, 1, width]), value("key", TensorProto.FLOAT, cache),
              value("value", TensorProto.FLOAT, cache), value("seqlens_k", TensorProto.INT32, [1]),
              value("total", TensorProto.INT32, [])]
    if own_op:
        slots = ["query", "", "", "", "", "seqlens_k", "total"] + [""] * (KVSHARE_INPUTS - 9) + ["key", "value"]
    else:
        inputs.append(value("nothing", TensorProto.FLOAT, [1, 0, layer.head_size]))
        slots = ["query", "nothing", "nothing", "key", "value", "seqlens_k", "total"]
    node = helper.make_node("GroupQueryAttention", slots, ["output"], domain="kvshare" if own_op else "com.microsoft",
                            num_heads=layer.query_heads, kv_num_heads=1, do_rotary=0, local_window_size=layer.window)
    graph = helper.make_graph([node], "race", inputs, [value("output", TensorProto.FLOAT, [1, 1, width])])
    imports = [helper.make_opsetid(domain, version) for domain, version in (("", 21), ("com.microsoft", 1), ("kvshare", 1))]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if own_op:
        options.register_custom_ops_library(str(library))
    elif library:
        options.add_provider_for_devices(provider_devices(library), {})
        return onnxruntime.InferenceSession(model.SerializeToString(), options)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


class Side:
    """One competitor: a session and one IO binding for each stretch of the cache, used in turn."""

    def __init__(self, layer, library, own_op, query, caches):
        self.session = session(layer, library, own_op)
        self.bindings, self.outputs, self.keep, self.next = [], [], [], 0
        shared = {"query": query, "seqlens_k": np.array([TOKENS - 1], np.int32), "total": np.array(TOKENS, np.int32)}
        if not own_op:
            shared["nothing"] = np.zeros((1, 0, layer.head_size), np.float32)
        for key, value in caches:
            binding = self.session.io_binding()
            for name, array in {**shared, "key": key, "value": value}.items():
                tensor = onnxruntime.OrtValue.ortvalue_from_numpy(array)  # backed by the array, not a copy
                self.keep.append(tensor)
                binding.bind_ortvalue_input(name, tensor)
            output = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(query))
            binding.bind_ortvalue_output("output", output)
            self.bindings.append(binding)
            self.outputs.append(output)

    def call(self):
        """Seconds of one call; the next one takes the next stretch of the cache."""
        binding = self.bindings[self.next % len(self.bindings)]
        self.next += 1
        start = time.perf_counter()
        self.session.run_with_iobinding(binding)
        return time.perf_counter() - start

    def slot(self):
        seconds = [self.call()]
        while sum(seconds) < SECONDS_A_SLOT:
            seconds.append(self.call())
        return seconds


def cold_caches(layer, rng):
    """Views of one long K and one long V, each a stretch further than the last, so that the rows a query sees are
    others in every call and all of them together exceed the last-level cache twice."""
    row_bytes = 2 * layer.head_size * 4
    count = max(1, math.ceil(2 * cache_bytes() / (layer.visible * row_bytes)))
    rows = TOKENS + (count - 1) * layer.visible
    key, value = (rng.random((1, 1, rows, layer.head_size), dtype=np.float32) - np.float32(0.5) for _ in range(2))
    stretches = [slice(i * layer.visible, i * layer.visible + TOKENS) for i in range(count)]
    return [(key[:, :, s], value[:, :, s]) for s in stretches]


def race(layer, library):
    rng = np.random.default_rng(0)
    query = rng.standard_normal((1, 1, layer.query_heads * layer.head_size), dtype=np.float32)
    caches = cold_caches(layer, rng)
    sides = [Side(layer, *way, query, caches) for way in ((None, False), (library, False), (library, True))]
    seconds = [[] for _ in sides]
    for side in sides:
        side.call()  # the first call allocates
    for r in range(ROUNDS):
        for i in (r % 3, (r + 1) % 3, (r + 2) % 3):
            seconds[i] += sides[i].slot()
    for side in sides:  # every stretch once more, for the comparison of the results
        side.next = 0
        for _ in range(min(4, len(caches))):
            side.call()
    difference = max(float(np.abs(stock.numpy() - ours.numpy()).max())
                     for stock, *others in list(zip(*(side.outputs for side in sides)))[:4] for ours in others)
    return Result(*(statistics.median(s) * 1e3 for s in seconds), difference)
