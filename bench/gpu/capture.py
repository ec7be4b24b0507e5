"""kvshare's ops in a session that ONNX Runtime captures: python3 -m bench.gpu.capture [--device cpu]

An own layer appends to its cache in place, and a layer borrows that cache. Lengths change between replays, on the device;
each output, and the cache, is compared with numpy. On the card the session runs with enable_cuda_graph: ONNX Runtime
captures in one of the first runs, so the first steps also show the runs before. Needs numpy, onnx and onnxruntime-gpu.
"""
import argparse
import importlib
import math
import sys

from bench.gpu import NOT_RUN, NotRun

B, HQ, HKV, T, D, WINDOW = 2, 8, 1, 96, 64, 24
TOLERANCE = 2e-2  # of the largest magnitude; fp16
# Tokens of each sequence before a step; longer, shorter, ragged. In no order: a graph keeps nothing of the last run.
STEPS = ((40, 7), (41, 8), (42, 9), (95, 0), (0, 63), (17, 17), (64, 94))
HIDDEN, FRESH, CACHE = (B, 1, HQ * D), (B, 1, HKV * D), (B, HKV, T, D)


def attended(query, key, value, length, window):
    """[Hq, D] of one token in float64; key and value [Hkv, T, D]."""
    import numpy as np
    first = max(0, length - window) if window else 0
    result = np.empty((HQ, D))
    for head in range(HQ):
        kv = head // (HQ // HKV)
        scores = key[kv, first:length] @ query[head] / math.sqrt(D)
        weights = np.exp(scores - scores.max())
        result[head] = weights @ value[kv, first:length] / weights.sum()
    return result


def model():
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper
    from bench.gpu import ort_cuda
    attributes = {"num_heads": HQ, "kv_num_heads": HKV, "scale": 1 / math.sqrt(D), "domain": "kvshare"}
    nodes = [helper.make_node("GroupQueryAttention",
                              ["query", "key", "value", "past_key", "past_value", "seqlens_k", "total"],
                              ["own", "present_key", "present_value"], name="own_layer", **attributes),
             helper.make_node("GroupQueryAttention",
                              ["query", "", "", "", "", "seqlens_k", "total", *[""] * 10, "present_key", "present_value"],
                              ["borrowed"], name="borrowing_layer", local_window_size=WINDOW, **attributes)]
    half = TensorProto.FLOAT16
    inputs = [("query", half, HIDDEN), ("key", half, FRESH), ("value", half, FRESH), ("past_key", half, CACHE),
              ("past_value", half, CACHE), ("seqlens_k", TensorProto.INT32, [B])]
    outputs = [("own", half, HIDDEN), ("present_key", half, CACHE), ("present_value", half, CACHE), ("borrowed", half, HIDDEN)]
    # A captured graph keeps the total: it only bounds the lengths.
    return ort_cuda.model(nodes, inputs, outputs, [numpy_helper.from_array(np.array([T], np.int32), "total")])


def replay(device, captured):
    """The largest error of each step, by output."""
    import numpy as np
    from bench.gpu import ort_cuda
    rng = np.random.default_rng(1)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float16)

    cache = {"key": draw(*CACHE), "value": draw(*CACHE)}
    values = {"query": draw(*HIDDEN), "key": draw(*FRESH), "value": draw(*FRESH), "past_key": cache["key"],
              "past_value": cache["value"], "seqlens_k": np.zeros(B, np.int32), "own": np.zeros(HIDDEN, np.float16),
              "borrowed": np.zeros(HIDDEN, np.float16)}
    bound = ort_cuda.Bound(model(), device, values, captured=captured, kvshare=True)
    for name in ("key", "value"):
        bound.alias(f"present_{name}", f"past_{name}")
    bound.bind()
    cache = {name: array.astype(np.float64) for name, array in cache.items()}
    for before in STEPS:
        fresh = {"query": draw(*HIDDEN), "key": draw(*FRESH), "value": draw(*FRESH)}
        for name, array in fresh.items():
            bound.put(name, array)
        for name in ("own", "borrowed"):
            bound.put(name, np.full(HIDDEN, np.nan, np.float16))
        bound.put("seqlens_k", np.array(before, np.int32))  # tokens after the step, less one
        bound.run()
        for name, rows in cache.items():
            for b, row in enumerate(before):
                rows[b, :, row] = fresh[name][b].reshape(HKV, D)
        errors = {}
        for name, window in (("own", 0), ("borrowed", WINDOW)):
            wanted = np.stack([attended(fresh["query"][b, 0].reshape(HQ, D).astype(np.float64), cache["key"][b],
                                        cache["value"][b], before[b] + 1, window) for b in range(B)])
            errors[name] = float(np.abs(bound.get(name).reshape(wanted.shape) - wanted).max() / np.abs(wanted).max())
        for name, rows in cache.items():
            errors[f"present_{name}"] = float(np.abs(bound.get(f"past_{name}") - rows).max())
        yield before, errors


def main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    device = parser.parse_args(arguments).device
    wrong = 0
    try:
        for package in ("numpy", "onnx", "onnxruntime"):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise NotRun(f"python3 cannot import {package}: {error}") from error
        from bench.gpu import ort_cuda
        ort_cuda.need(device)
        for captured in (False, True) if device == "cuda" else (False,):
            for before, errors in replay(device, captured):
                bad = [name for name, error in errors.items() if not error <= (0 if name.startswith("present") else TOLERANCE)]
                wrong += len(bad)
                print(f"{'WRONG' if bad else 'ok':6} {'captured' if captured else 'eager':9} tokens before {before}: "
                      + ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    except NotRun as why:
        print(f"not run: {why}")
        return NOT_RUN
    print(f"{wrong} outputs are wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
