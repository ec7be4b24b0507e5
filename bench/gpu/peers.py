"""The rows in ONNX Runtime, with and without kvshare, or in torch, each eager and as a CUDA graph.

    python3 -m bench.gpu.peers onnxruntime|torch ROWS FILE.jsonl [--device cpu]

A layer's query is the output of the layer before. Each side is first compared with numpy, on one layer; a side that
fails or differs becomes a line that says so. Needs numpy, onnx and onnxruntime-gpu, or numpy and torch.
"""
import argparse
import importlib
import json
import math
import pathlib
import statistics
import sys
import time

from bench.gpu import NOT_RUN, NotRun, rows

PACKAGES = {"onnxruntime": ("numpy", "onnx", "onnxruntime"), "torch": ("numpy", "torch")}
TOLERANCE = 2e-2  # of the largest magnitude; fp16
DRAWN = 1 << 20   # numbers of a tensor; a larger one repeats them
BURSTS, BURST_SECONDS, MOST_RUNS = 7, 0.1, 50


def milliseconds(run, wait):
    """The median over bursts; a burst is some runs, then a wait."""
    for _ in range(3):
        run()
    wait()
    start = time.perf_counter()
    run()
    wait()
    runs = max(1, min(MOST_RUNS, int(BURST_SECONDS / max(time.perf_counter() - start, 1e-6))))
    times = []
    for _ in range(BURSTS):
        start = time.perf_counter()
        for _ in range(runs):
            run()
        wait()
        times.append((time.perf_counter() - start) / runs * 1e3)
    return statistics.median(times)


def inputs(row):
    """query [B, S, Hq, D], key and value [B, Hkv, T, D], fp16."""
    import numpy as np
    rng = np.random.default_rng(row.D + row.B)

    def draw(spread, *shape):
        drawn = (spread * rng.standard_normal(min(DRAWN, math.prod(shape)), dtype=np.float32)).astype(np.float16)
        return np.resize(drawn, shape)

    return {"query": draw(2, row.B, row.S, row.Hq, row.D), "key": draw(1, row.B, row.Hkv, row.T, row.D),
            "value": draw(1, row.B, row.Hkv, row.T, row.D)}


def truth(row, tensors):
    """[Hq, D] of the last token of the last sequence, in float64."""
    import numpy as np
    first = max(0, row.T - row.window) if row.window else 0
    result = np.empty((row.Hq, row.D))
    for head in range(row.Hq):
        kv = head // (row.Hq // row.Hkv)
        key, value = (tensors[name][-1, kv, first:].astype(np.float64) for name in ("key", "value"))
        scores = key @ tensors["query"][-1, -1, head].astype(np.float64) / math.sqrt(row.D)
        weights = np.exp(scores - scores.max())
        result[head] = weights @ value / weights.sum()
    return result


def check(row, tensors, last):
    """last: [Hq, D] of one layer."""
    import numpy as np
    wanted = truth(row, tensors)
    error = float(np.abs(last.astype(np.float64) - wanted).max() / np.abs(wanted).max())
    if not error <= TOLERANCE:
        raise NotRun(f"wrong result: differs from float64 by {error:.1e} of the largest")
    return error


def cache_names(row, layers):
    """Of each layer: layers take turns with the caches."""
    count = min(row.caches, layers)
    return [(f"key{i % count}", f"value{i % count}") for i in range(layers)]


def gqa_model(row, layers):
    """Upstream's shared form: past is complete, there is nothing new."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper
    attributes = {"num_heads": row.Hq, "kv_num_heads": row.Hkv, "scale": 1 / math.sqrt(row.D), "domain": "com.microsoft"}
    if row.window:
        attributes["local_window_size"] = row.window
    from bench.gpu import ort_cuda
    names = ["query", *(f"output{i}" for i in range(1, layers)), "output"]
    caches = cache_names(row, layers)
    nodes = [helper.make_node("GroupQueryAttention", [a, "none", "none", key, value, "seqlens_k", "total"], [b], **attributes)
             for a, b, (key, value) in zip(names, names[1:], caches)]
    half, hidden, cache = TensorProto.FLOAT16, [row.B, row.S, row.Hq * row.D], [row.B, row.Hkv, row.T, row.D]
    return ort_cuda.model(
        nodes, [("query", half, hidden), *((name, half, cache) for pair in dict.fromkeys(caches) for name in pair),
                ("seqlens_k", TensorProto.INT32, [row.B])], [("output", half, hidden)],
        [numpy_helper.from_array(np.zeros((row.B, 0, row.Hkv * row.D), np.float16), "none"),
         numpy_helper.from_array(np.array([row.T], np.int32), "total")])


def onnxruntime_sides(device):
    """name -> make(row, tensors, layers), which returns run, wait and last: the last output's last token."""
    from bench.gpu import ort_cuda
    ort_cuda.need(device)
    import numpy as np

    def side(kvshare, captured):
        def make(row, tensors, layers):
            hidden = (row.B, row.S, row.Hq * row.D)
            values = {"query": tensors["query"].reshape(hidden), "seqlens_k": np.full(row.B, row.T - 1, np.int32),
                      "output": np.zeros(hidden, np.float16)}
            for key, value in cache_names(row, layers):
                values |= {key: tensors["key"], value: tensors["value"]}
            bound = ort_cuda.Bound(gqa_model(row, layers), device, values, captured=captured, kvshare=kvshare).bind()
            return bound.run, lambda: None, lambda: bound.get("output")[-1, -1].reshape(row.Hq, row.D)
        return make

    return {f"{name}{', graph' if captured else ''}": side(kvshare, captured)
            for kvshare, name in ((False, "ONNX Runtime"), (True, "kvshare in ONNX Runtime")) for captured in (False, True)}


def torch_sides(device):
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    if device == "cuda" and not torch.cuda.is_available():
        raise NotRun(f"torch {torch.__version__} finds no card")

    def side(captured):
        def make(row, tensors, layers):
            query = torch.from_numpy(tensors["query"]).to(device).transpose(1, 2)
            seen = row.window if row.window and row.S == 1 else row.T  # a slice by hand
            caches = {pair: [torch.from_numpy(tensors[name]).to(device)[:, :, -seen:] for name in ("key", "value")]
                      for pair in cache_names(row, layers)}
            mask = None
            if row.S > 1 and (row.window or row.S < row.T):  # is_causal would put the first token on the first key
                distance = (torch.arange(row.T - row.S, row.T, device=device)[:, None] -
                            torch.arange(row.T, device=device)[None, :])
                mask = (distance >= 0) & (distance < (row.window or row.T))
            result = {}

            def run():
                x = query
                for pair in cache_names(row, layers):
                    key, value = caches[pair]
                    x = scaled_dot_product_attention(x, key, value, attn_mask=mask, enable_gqa=True,
                                                     is_causal=row.S > 1 and mask is None)
                result["output"] = x

            def last():
                return result["output"][-1, :, -1].float().cpu().numpy()

            if not captured:
                return run, torch.cuda.synchronize if device == "cuda" else lambda: None, last
            if device != "cuda":
                raise NotRun("only a card has graphs")
            run()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                run()
            return graph.replay, torch.cuda.synchronize, last
        return make

    return {"torch SDPA": side(False), "torch SDPA, graph": side(True)}


def measure(row, make, tensors):
    if (row.element, row.cache) != ("f16", "f16"):
        raise NotRun("peers are measured in fp16 alone")
    run, wait, last = make(row, tensors, 1)
    for _ in range(3):  # a captured session warms up, captures, replays
        run()
    wait()
    error = check(row, tensors, last())
    del run, last
    run, wait, _ = make(row, tensors, row.layers)
    return {"ms": round(milliseconds(run, wait), 5), "error": error}


def main(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PACKAGES)
    parser.add_argument("rows", type=pathlib.Path)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args(arguments)
    try:
        for package in PACKAGES[options.peer]:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise NotRun(f"python3 cannot import {package}: {error}") from error
        sides = {"onnxruntime": onnxruntime_sides, "torch": torch_sides}[options.peer](options.device)
    except NotRun as why:
        print(f"not run: {why}")
        return NOT_RUN
    with options.results.open("w", encoding="utf-8") as results:
        for row in rows.read(options.rows):
            tensors = inputs(row)
            for side, make in sides.items():
                try:
                    found = measure(row, make, tensors)
                except Exception as failure:  # whatever a peer throws becomes a note in the table
                    failed = "" if isinstance(failure, NotRun) else "failed: "
                    found = {"not_run": failed + " ".join(str(failure).split())[:300]}
                print(f"{row.name:40} {side:32} " + (f"{found['ms']:9.4f} ms" if "ms" in found else found["not_run"]), flush=True)
                results.write(json.dumps({"row": row.name, "side": side, **found}, ensure_ascii=False) + "\n")
                results.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
