"""python -m bench.model [T ...]: a whole model of Gemma 4 E2B's shape under ONNX Runtime alone and with kvshare: time to the
first token of prompts, then one decode step. T: tokens in the caches of the decode steps.

The sizes are E2B's: 35 layers, hidden size 1536, 8 query heads on 1, vocabulary 262144. Weights are random, int4
(MatMulNBits), 1.2 GB. Layers 15 to 34 have upstream's shared form: GroupQueryAttention with key and value of length 0.
Per-layer inputs, rotary embeddings and norms of queries are left out. Logits are the last token's on every side.

Three files: the model as exported, the same after `kvshare rewrite --to ort --fast-prefill`, and after `--to kvshare
--fast-prefill --window-caches`. Caches of decode steps are filled at random and bound in place. Tables are printed row by
row; what the time does not suffice for is left out by name.
"""
import pathlib
import statistics
import subprocess
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
PROMPTS = (512, 2048, 4096)
PREFILL_SECONDS = 270  # of all prompts, with sessions; a row that would take more is left out
SLACK = 64             # rows of a window-sized cache beside the window


class Model:
    """Nodes, inputs, outputs and weights, as they are added."""

    def __init__(self):
        self.random = np.random.default_rng(0)
        self.nodes, self.weights = [], [numpy_helper.from_array(np.ones(HIDDEN, np.float32), "ones")]
        self.inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "S", HIDDEN]),
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
        self.outputs += [helper.make_tensor_value_info(f"present_{c}{i}", TensorProto.FLOAT, [1, 1, "T", shape.D]) for c in "kv"]
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
        self.weights += [numpy_helper.from_array(np.array([value]), name)
                         for name, value in (("minus_one", -1), ("end", np.iinfo(np.int64).max), ("tokens", 1))]
        self.linear(self.add("Slice", [x, "minus_one", "end", "tokens"], ["last"]), "logits", HIDDEN, VOCABULARY)
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


def rewrite(path, name, *options):
    """The model after `kvshare rewrite`, beside `path`, whose weights it reads."""
    out = pathlib.Path(path).with_name(name)
    subprocess.run([str(pathlib.Path(__file__).parents[2] / "build/bin/kvshare"), "rewrite", path, "-o", str(out), *options], check=True,
                   stdout=subprocess.DEVNULL)
    return str(out)


def random_values(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def prompt_inputs(S):
    """A prompt without a past; window-sized caches begin without rows too."""
    arrays = {"x": random_values(1, S, HIDDEN), "seqlens_k": np.array([S - 1], np.int32), "total": np.array(S, np.int32)}
    for i, shape in enumerate(LAYERS[:OWN]):
        arrays.update({f"past_{c}{i}": np.zeros((1, 1, 0, shape.D), np.float32) for c in "kv"})
    return arrays


def multiplications():
    """Of one token, by weights: in layers that own their keys, in those that borrow, and of the logits."""
    def of(i, shape):
        inner = 6144 if i < OWN else 12288
        return HIDDEN * (2 * HEADS * shape.D + 3 * inner + (2 * shape.D if i < OWN else 0))
    layers = [of(i, shape) for i, shape in enumerate(LAYERS)]
    return sum(layers[:OWN]), sum(layers[OWN:]), HIDDEN * VOCABULARY


def first_tokens(files, threads):
    """Prints the time from a prompt to its logits: once a prompt and side, a short prompt before."""
    own, borrowing, logits = multiplications()
    print(f"\nTime to the first token, {threads} threads, seconds. Multiplications by weights bound what fast prefill gains: "
          f"{(own + borrowing) / own:.2f} times for long prompts.\n")
    print("| prompt | " + " | ".join(files) + " | times | bound | logits apart |")
    print("|---|" + "---|" * (len(files) + 3), flush=True)
    begin = time.perf_counter()
    sessions = {side: open_session(path, threads, kvshare) for side, (path, kvshare) in files.items()}
    for session in sessions.values():
        session.run(["logits"], prompt_inputs(16))
    last = 0.0
    for before, S in zip((0, *PROMPTS), PROMPTS):
        if before and time.perf_counter() - begin + last * S / before > PREFILL_SECONDS:
            print(f"| {S} | left out: {PREFILL_SECONDS} s do not suffice |", flush=True)
            continue
        took, got = {}, {}
        for side, session in sessions.items():
            now = time.perf_counter()
            got[side] = session.run(["logits"], prompt_inputs(S))[0]
            took[side] = time.perf_counter() - now
        last = sum(took.values())
        stock = next(iter(got.values()))
        apart = max(float(np.abs(stock - other).max()) for other in got.values()) / float(np.abs(stock).max())
        bound = (S * (own + borrowing) + logits) / (S * own + borrowing + logits)
        print(f"| {S} | " + " | ".join(f"{seconds:.2f}" for seconds in took.values())
              + f" | {took['stock'] / min(took.values()):.2f} | {bound:.2f} | {apart:.0e} |", flush=True)


def cache_rows(shape, T, windowed):
    return min(T, shape.window + SLACK) if windowed and shape.window else T


def cache_bytes(T, windowed):
    return sum(2 * 4 * shape.D * cache_rows(shape, T, windowed) for shape in LAYERS[:OWN])


def step_inputs(T, windowed):
    """A step at T tokens; the caches of both kinds of files hold the same latest rows."""
    arrays = {"x": random_values(1, 1, HIDDEN), "seqlens_k": np.array([T - 1], np.int32), "total": np.array(T, np.int32)}
    for i, shape in enumerate(LAYERS[:OWN]):
        for c in "kv":
            whole = np.random.default_rng(2 * i + (c == "v")).standard_normal((1, 1, T, shape.D), dtype=np.float32) * np.float32(0.1)
            # The new row is the last one. A window-sized cache that is full has no room for it before the step.
            rows = shape.window + SLACK if windowed and shape.window else T
            past = np.zeros((1, 1, rows, shape.D), np.float32)
            held = whole[:, :, max(0, T - 1 - rows):T - 1]
            past[:, :, :held.shape[2]] = held
            arrays[f"past_{c}{i}"] = past
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
    seconds, logits, bindings = {side: [] for side in sessions}, {}, {}
    for side, (session, windowed) in sessions.items():
        bindings[side] = bind(session, step_inputs(T, windowed))
        session.run_with_iobinding(bindings[side])  # a step again appends the same token: window-sized caches move on
        logits[side] = bindings[side].copy_outputs_to_cpu()[-1]
    for _ in range(ROUNDS):
        for side, (session, _) in sessions.items():
            for _ in range(1 if side == "stock" and T > SLOW_TOKENS else CALLS):
                begin = time.perf_counter()
                session.run_with_iobinding(bindings[side])
                seconds[side].append(time.perf_counter() - begin)
    stock = logits["stock"]
    apart = max(float(np.abs(stock - other).max()) for other in logits.values()) / float(np.abs(stock).max())
    return {side: statistics.median(times[1:]) for side, times in seconds.items()}, apart


def decode_steps(files, lengths, threads):
    sessions = {side: (open_session(path, threads, kvshare), windowed) for side, (path, kvshare, windowed) in files.items()}
    for T in lengths:
        took, apart = measure(sessions, T)
        print(f"| {threads} | {T} | " + " | ".join(f"{took[side] * 1e3:.0f}" for side in files) + " | "
              + " | ".join(f"{1 / took[side]:.1f}" for side in files)
              + f" | {took['stock'] / min(took.values()):.1f} | {cache_bytes(T, False) / 1e6:.0f} | {cache_bytes(T, True) / 1e6:.0f} "
              f"| {apart:.0e} |", flush=True)


def main():
    lengths = [int(T) for T in sys.argv[1:]] or [512, 4096, 32768]
    print(f"{machine.describe()}; ONNX Runtime {onnxruntime.__version__}; load {machine.load():.2f}")
    with tempfile.TemporaryDirectory(prefix="kvshare") as folder:
        path = str(pathlib.Path(folder) / "e2b.onnx")
        Model().save(path)
        fast = rewrite(path, "fast.onnx", "--to", "ort", "--fast-prefill")
        small = rewrite(path, "small.onnx", "--to", "kvshare", "--fast-prefill", f"--window-caches={SLACK}")
        files = {"stock": (path, False, False), "kvshare": (path, True, False), "kvshare, window caches": (small, True, True)}
        print("\nOne decode step, ms a token and tokens a second\n")
        print("| threads | T | " + " | ".join(f"{side}, ms" for side in files) + " | "
              + " | ".join(f"{side}, tokens/s" for side in files) + " | times | caches, MB | window caches, MB | logits apart |")
        print("|---|---|" + "---|" * (2 * len(files) + 4), flush=True)
        for threads in (1, 2):
            decode_steps(files, lengths, threads)
        first_tokens({"stock": (path, False), "kvshare": (path, True), "stock, fast prefill": (fast, False),
                      "kvshare, fast prefill": (fast, True)}, 2)


if __name__ == "__main__":
    main()
