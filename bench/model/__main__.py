"""python -m bench.model [T ...]: one decode step of a whole model of Gemma 4 E2B's shape, the same file under ONNX Runtime
alone and with kvshare's execution provider.

The sizes are E2B's: 35 layers, hidden size 1536, 8 query heads on 1, vocabulary 262144. Weights are random, int4
(MatMulNBits), 1.2 GB. Layers 15 to 34 have upstream's shared form: GroupQueryAttention with key and value of length 0.
Per-layer inputs, rotary embeddings and norms of queries are left out. Caches are filled at random, bound in place.
"""
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from bench import machine, ort_session
from bench.step import LAYERS, OWN, SOURCE

HIDDEN, HEADS, VOCABULARY, BLOCK = 1536, 8, 262144, 32
ROUNDS, CALLS = 4, 3
SLOW_TOKENS = 8192  # from here on a side that reads everything is called once a round


class Model:
    """Nodes, inputs, outputs and weights, as they are added."""

    def __init__(self):
        self.random = np.random.default_rng(0)
        self.nodes, self.weights = [], [numpy_helper.from_array(np.ones(HIDDEN, np.float32), "ones")]
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, HIDDEN]),
                       helper.make_tensor_value_info("seqlens_k", TensorProto.INT32, [1]),
                       helper.make_tensor_value_info("total", TensorProto.INT32, [])]
        self.outputs = []

    def add(self, op, inputs, outputs, domain="", **attributes):
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def linear(self, x, y, inner, outer):
        """y = x W, W of int4 in blocks of 32."""
        blocks = inner // BLOCK
        codes = self.random.integers(0, 256, (outer, blocks, BLOCK // 2), dtype=np.uint8)
        scales = self.random.random(outer * blocks, dtype=np.float32) * 0.01
        self.weights += [numpy_helper.from_array(codes, f"{y}_codes"), numpy_helper.from_array(scales, f"{y}_scales")]
        return self.add("MatMulNBits", [x, f"{y}_codes", f"{y}_scales"], [y], "com.microsoft", K=inner, N=outer, bits=4,
                        block_size=BLOCK, accuracy_level=4)

    def norm(self, x, y):
        return self.add("SimplifiedLayerNormalization", [x, "ones"], [y], epsilon=1e-6)

    def attention(self, i, shape, query, own):
        attributes = {"num_heads": HEADS, "kv_num_heads": 1, "scale": 1.0, "local_window_size": shape.window or -1}
        lengths = ["seqlens_k", "total"]
        if i >= OWN:
            source = SOURCE[shape]
            empty = f"empty_{shape.D}"
            return self.add("GroupQueryAttention", [query, empty, empty, f"present_k{source}", f"present_v{source}", *lengths],
                            [f"attention{i}"], "com.microsoft", **attributes)
        kv = [self.linear(own, f"{name}{i}", HIDDEN, shape.D) for name in "kv"]
        self.inputs += [helper.make_tensor_value_info(f"past_{c}{i}", TensorProto.FLOAT, [1, 1, "P", shape.D]) for c in "kv"]
        self.outputs += [helper.make_tensor_value_info(f"present_{c}{i}", TensorProto.FLOAT, None) for c in "kv"]
        return self.add("GroupQueryAttention", [query, *kv, f"past_k{i}", f"past_v{i}", *lengths],
                        [f"attention{i}", f"present_k{i}", f"present_v{i}"], "com.microsoft", **attributes)

    def layer(self, i, shape, x):
        inner = 6144 if i < OWN else 12288
        normed = self.norm(x, f"n{i}")
        attention = self.attention(i, shape, self.linear(normed, f"q{i}", HIDDEN, HEADS * shape.D), normed)
        x = self.add("Add", [x, self.linear(attention, f"o{i}", HEADS * shape.D, HIDDEN)], [f"r{i}"])
        normed = self.norm(x, f"m{i}")
        gate = self.add("Gelu", [self.linear(normed, f"gate{i}", HIDDEN, inner)], [f"gelu{i}"], approximate="tanh")
        hidden = self.add("Mul", [gate, self.linear(normed, f"up{i}", HIDDEN, inner)], [f"h{i}"])
        return self.add("Add", [x, self.linear(hidden, f"down{i}", inner, HIDDEN)], [f"x{i}"])

    def save(self, path):
        for D in {shape.D for shape in LAYERS}:
            self.weights.append(numpy_helper.from_array(np.zeros((1, 0, D), np.float32), f"empty_{D}"))
        x = "x"
        for i, shape in enumerate(LAYERS):
            x = self.layer(i, shape, x)
        self.linear(x, "logits", HIDDEN, VOCABULARY)
        self.outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, VOCABULARY]))
        graph = helper.make_graph(self.nodes, "e2b", self.inputs, self.outputs, self.weights)
        model = helper.make_model(graph, ir_version=10,
                                  opset_imports=[helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)])
        onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=1024)


def open_session(path, threads, kvshare):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Two sessions of one process would spin on each other's cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if kvshare:
        options.add_provider_for_devices(ort_session.provider_devices(), {})
        return onnxruntime.InferenceSession(path, options)
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def step_inputs(T):
    draw = np.random.default_rng(1).standard_normal
    arrays = {"x": draw((1, 1, HIDDEN)).astype(np.float32), "seqlens_k": np.array([T - 1], np.int32), "total": np.array(T, np.int32)}
    for i, shape in enumerate(LAYERS[:OWN]):
        arrays.update({f"past_{c}{i}": (draw((1, 1, T, shape.D)) * 0.1).astype(np.float32) for c in "kv"})
    return {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}


def bind(session, values):
    """In place: each present is its past's memory."""
    binding = session.io_binding()
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
        if name.startswith("past_"):
            binding.bind_ortvalue_output(name.replace("past_", "present_"), value)
    binding.bind_output("logits", "cpu")
    return binding


def measure(sessions, T):
    """{side: median seconds of a step}, and how far the sides' logits are apart, over the largest."""
    values = step_inputs(T)
    bindings = {side: bind(session, values) for side, session in sessions.items()}
    seconds, logits = {side: [] for side in sessions}, {}
    for _ in range(ROUNDS):
        for side, session in sessions.items():
            for _ in range(1 if side == "stock" and T > SLOW_TOKENS else CALLS):
                begin = time.perf_counter()
                session.run_with_iobinding(bindings[side])
                seconds[side].append(time.perf_counter() - begin)
            logits[side] = bindings[side].copy_outputs_to_cpu()[-1]
    apart = np.abs(logits["stock"] - logits["kvshare"]).max() / np.abs(logits["stock"]).max()
    return {side: statistics.median(times[1:]) for side, times in seconds.items()}, float(apart)


def main():
    lengths = [int(T) for T in sys.argv[1:]] or [512, 4096, 32768]
    print(f"{machine.describe()}; ONNX Runtime {onnxruntime.__version__}; load {machine.load():.2f}")
    print("| threads | T | stock, ms a token | kvshare, ms a token | stock, tokens/s | kvshare, tokens/s | times | logits apart |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="kvshare") as folder:
        path = str(pathlib.Path(folder) / "e2b.onnx")
        Model().save(path)
        for threads in (1, 2):
            sessions = {"stock": open_session(path, threads, False), "kvshare": open_session(path, threads, True)}
            for T in lengths:
                took, apart = measure(sessions, T)
                print(f"| {threads} | {T} | {took['stock'] * 1e3:.0f} | {took['kvshare'] * 1e3:.0f} | {1 / took['stock']:.1f} | "
                      f"{1 / took['kvshare']:.1f} | {took['stock'] / took['kvshare']:.1f} | {apart:.0e} |", flush=True)


if __name__ == "__main__":
    main()
