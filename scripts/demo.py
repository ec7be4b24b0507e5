#!/usr/bin/env python3
"""A real exported Gemma4 graph with E2B's own KV map: inspected, run by ONNX Runtime, unchanged in kvshare's execution
provider and rewritten, judged by its golden logits; then a race at E2B's true attention sizes. Exits with 1 where a number is wrong."""
import argparse
import json
import math
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import numpy as np
import onnxruntime

import demo_race

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "python"))
from kvshare.decoder import Decoder, golden_steps  # noqa: E402

CASE = ROOT / "tests" / "data" / "e2b35_mixed_bias_asis"
LOGIT_TOLERANCE = 1e-4
RACE_TOLERANCE = 1e-5
REPEATS = 5


class Kvshare:
    """The program and the library of a build folder."""

    def __init__(self, build):
        self.program = build / "bin" / "kvshare"
        self.library = build / "lib" / "libkvshare_ort.so"

    def run(self, *arguments):
        done = subprocess.run([self.program, *arguments], capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"kvshare {' '.join(map(str, arguments))} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
        return done.stdout

    def inspect(self, model):
        return json.loads(self.run("inspect", model, "--json"))

    def session(self, model, provider=False):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if provider:
            options.add_provider_for_devices(demo_race.provider_devices(self.library), {})
            return onnxruntime.InferenceSession(str(model), options)
        options.register_custom_ops_library(str(self.library))
        return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def run_golden(session, golden):
    """Largest logit difference of the prefill and of all decode steps, and the seconds of each decode step."""
    decoder, seconds, differences = Decoder(session, golden["input_ids"].shape[0]), [], []
    start = time.perf_counter()
    for logits, expected in golden_steps(decoder, golden):
        seconds.append(time.perf_counter() - start)
        differences.append(float(np.abs(logits - expected).max()))
        start = time.perf_counter()
    return differences[0], float(np.max(differences[1:])), seconds[1:]  # np.max keeps a NaN


def kv_map(layers):
    """One line for the layers that own a cache, one for those that borrow."""
    def kind(layer):
        return "full" if layer["window"] < 0 else "sliding"

    def borrowing(layer):
        return f"{kind(layer)} from layer {layer['source']}"

    def counted(group, key):
        counts = {}
        for layer in group:
            counts[key(layer)] = counts.get(key(layer), 0) + 1
        return ", ".join(f"{count} {text}" for text, count in counts.items())

    def span(group):
        return f"layers {group[0]['index']}–{group[-1]['index']}"

    own = [layer for layer in layers if layer["kind"] == "own"]
    shared = [layer for layer in layers if layer["kind"] == "shared"]
    window = ", ".join(sorted({str(layer["window"]) for layer in layers if layer["window"] >= 0}))
    return [f"{span(own):<13} own:    {counted(own, kind)}",
            f"{span(shared):<13} borrow: {counted(shared, borrowing)}",
            f"{'window':<13} {window} tokens, {layers[0]['query_heads']} query heads, {layers[0]['kv_heads']} KV head"]


def shared_form(inspection):
    """How the borrowing layers are written: "20 kvshare::GroupQueryAttention"."""
    counts = {}
    for layer in inspection["layers"]:
        if layer["kind"] == "shared":
            prefix = {"": "", "com.microsoft": "", "kvshare": "kvshare::"}[layer["domain"]]
            name = prefix + {"GroupQueryAttention": "GQA"}.get(layer["form"], layer["form"])
            counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def table(rows, widths):
    for row in rows:
        print("  " + row[0].ljust(widths[0]) + "".join(str(cell).rjust(w) for cell, w in zip(row[1:], widths[1:])))


def relative(path):
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def model_part(kvshare, work):
    """Prints the model's half of the report; returns what is wrong with it."""
    model, rewritten = CASE / "model.onnx", work / "model.onnx"
    shutil.rmtree(work, ignore_errors=True)  # an older run's external data may be another file of the same name
    work.mkdir(parents=True)
    kvshare.run("rewrite", model, "-o", rewritten, "--to", "kvshare")
    before, after = kvshare.inspect(model), kvshare.inspect(rewritten)
    with np.load(CASE / "golden.npz") as archive:
        golden = dict(archive)
    sessions = [kvshare.session(model), kvshare.session(model, provider=True), kvshare.session(rewritten)]
    runs = [[], [], []]
    for _ in range(REPEATS):  # in turns, so that a busy moment meets all
        for session, run in zip(sessions, runs):
            run.append(run_golden(session, golden))
    prefill = [max(r[0] for r in run) for run in runs]
    decode = [max(r[1] for r in run) for run in runs]
    per_token = [statistics.median(s for r in run for s in r[2]) * 1e3 for run in runs]

    print(f"KV map   $ kvshare inspect {relative(model)}")
    for line in kv_map(before["layers"]):
        print("  " + line)
    print(f"\nRewrite  $ kvshare rewrite {relative(model)} \\\n             -o {relative(rewritten)} --to kvshare\n")
    steps = len(golden["decode_input_ids"])
    same = "the same file"
    table([("", "as exported", "in the provider", "rewritten"),
           ("borrowing layers", shared_form(before), same, shared_form(after)),
           ("nodes in all", before["nodes"], same, after["nodes"]),
           ("mask nodes", before["mask_nodes"], same, after["mask_nodes"]),
           ("Transpose/Reshape on borrowed K/V", before["borrowed_copies"], same, after["borrowed_copies"]),
           ("max logit difference, prefill", *(f"{d:.1e}" for d in prefill)),
           (f"max logit difference, {steps} decode steps", *(f"{d:.1e}" for d in decode)),
           ("time per decoded token", *(f"{t:.2f} ms" for t in per_token))], (38, 18, 18, 20))

    shared = [layer for layer in after["layers"] if layer["kind"] == "shared"]
    wrong = []
    if not shared or any((layer["domain"], layer["form"]) != ("kvshare", "GroupQueryAttention") for layer in shared):
        wrong.append(f"borrowing layers after the rewrite: {shared_form(after) or 'none'}")
    if after["mask_nodes"] or after["borrowed_copies"]:
        wrong.append("mask nodes or copies of borrowed K/V are left")
    for way, run in (("in the provider", 1), ("rewritten", 2)):
        for name, difference in (("prefill", prefill[run]), ("decode", decode[run])):
            if not difference <= LOGIT_TOLERANCE:
                wrong.append(f"{way}, {name} logits are off by {difference:.1e}")
    return wrong, max(decode[1:])


def race_part(kvshare):
    """Prints the race; returns what is wrong with it, and how many times faster each layer is."""
    print("\nRace at E2B's attention sizes: one decode step against 32768 tokens, f32, 1 thread, K/V cold,")
    print("interleaved rounds, median; ONNX Runtime's own shared form, the same graph in the provider, and")
    print("kvshare::GroupQueryAttention\n")
    rows, wrong, faster = [("", "ONNX Runtime", "provider", "rewritten", "faster", "max diff")], [], []
    for layer in demo_race.LAYERS:
        result = demo_race.race(layer, kvshare.library)
        faster.append(result.ort_ms / result.kvshare_ms)
        rows.append((layer.name, f"{result.ort_ms:.2f} ms", f"{result.provider_ms:.3f} ms", f"{result.kvshare_ms:.3f} ms",
                     f"{faster[-1]:.1f} x",
                     f"{result.difference:.0e}"))
        if not result.difference <= RACE_TOLERANCE:
            wrong.append(f"{layer.name}: outputs differ by {result.difference:.1e}")
    table(rows, (34, 14, 12, 12, 10, 10))
    return wrong, faster


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build", help="build folder (default: build)")
    arguments = parser.parse_args()
    kvshare = Kvshare(arguments.build.resolve())
    for path in (kvshare.program, kvshare.library):
        if not path.exists():
            sys.exit(f"{path} is not there; run `make build` first")

    print(f"kvshare on ONNX Runtime {onnxruntime.__version__}: a Gemma4 graph with E2B's 35 layers\n")
    wrong, difference = model_part(kvshare, arguments.build.resolve() / "demo")
    race_wrong, faster = race_part(kvshare)
    wrong += race_wrong
    print()
    if wrong:
        print("WRONG: " + "; ".join(wrong))
        return 1
    print(f"RIGHT: logits within {difference:.0e} of golden; at 32k tokens a sliding layer is {math.floor(faster[0])}x, "
          f"a full one {faster[1]:.1f}x faster.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
