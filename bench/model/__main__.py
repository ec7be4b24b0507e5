"""python -m bench.model: a whole model of Gemma 4 E2B's shape in ONNX Runtime alone and with kvshare.

The sizes are E2B's: 35 layers, hidden size 1536, 8 query heads on 1, vocabulary 262144, per-layer inputs, rotary embeddings,
norms of queries and keys. Weights are random, int4 (MatMulNBits), and the same in every file. Embedding tables are left out:
the model takes their rows. Logits are the last token's on every side.

Each side runs in processes of its own: decode steps with caches of random numbers, prompts, and a step with ONNX Runtime's
profiler, which tells attention's share. Rows are printed as they come; tables and a plot lie in build/bench at the end.
"""
import argparse
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import numpy as np
import onnxruntime

from bench import machine
from bench.model import files, tables
from bench.model.side import Job
from bench.model.sizes import E2B, TINY

ROOT = pathlib.Path(__file__).parents[2]
TOOL = os.environ.get("KVSHARE_BIN") or str(ROOT / "build/bin/kvshare")
SLACK = 64  # rows of a window-sized cache beside the window


@dataclasses.dataclass(frozen=True)
class Side:
    name: str
    file: str
    engine: str
    slack: int | None = None
    in_place: bool = True
    longest_prompt: int = 1 << 20  # where a longer one would say nothing new


# The first is what logits are compared with.
SIDES = (
    Side("shared form, ONNX Runtime", "shared", "stock"),
    Side("mixed graph, ONNX Runtime", "mixed", "stock"),
    Side("default form, ONNX Runtime", "default", "stock", in_place=False, longest_prompt=2048),
    Side("mixed graph unchanged, kvshare's provider", "mixed", "provider"),
    Side("default form unchanged, kvshare's provider", "default", "provider", in_place=False, longest_prompt=512),
    Side("rewritten", "rewritten", "ops", longest_prompt=2048),
    Side("rewritten, window caches", "windows", "ops", SLACK, longest_prompt=512),
    Side("rewritten, window caches, fast prefill", "fast", "ops", SLACK),
)
REWRITES = {"rewritten": [], "windows": [f"--window-caches={SLACK}"], "fast": [f"--window-caches={SLACK}", "--fast-prefill"]}


@dataclasses.dataclass(frozen=True)
class Plan:
    sizes: object
    decode: tuple
    prompts: tuple
    seconds: float  # of timed steps a row


PLANS = {"full": Plan(E2B, (512, 4096, 32768), (512, 2048, 4096), 4.0), "quick": Plan(E2B, (512, 4096), (128,), 1.0),
         "tiny": Plan(TINY, (16, 100), (16, 100), 0.01)}


def write_files(plan, folder):
    paths = files.write(plan.sizes, folder)
    for name, options in REWRITES.items():
        paths[name] = folder / f"{name}.onnx"
        command = [TOOL, "rewrite", str(paths["mixed"]), "-o", str(paths[name]), "--to", "kvshare", "--json", *options]
        outcomes = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["outcomes"]
        # A side must be what its name says.
        if declined := [outcome for outcome in outcomes if not outcome["applied"]]:
            raise RuntimeError(f"{name}: {declined[0]['rule']}: {declined[0]['reason']}")
    return paths


def run_job(job):
    """Its rows as they come; RuntimeError with the last words of a process that fails."""
    with tempfile.TemporaryFile("w+") as errors:
        text = json.dumps(dataclasses.asdict(job))
        with subprocess.Popen([sys.executable, "-m", "bench.model.side", text], cwd=ROOT, stdout=subprocess.PIPE, stderr=errors,
                              text=True) as process:
            yield from map(json.loads, process.stdout)
        if process.returncode != 0:
            errors.seek(0)
            raise RuntimeError(f"exit code {process.returncode}: {errors.read().strip().splitlines()[-1:]}")


class Driver:
    def __init__(self, plan, threads, folder):
        self.plan, self.threads, self.folder = plan, threads, folder
        self.rows, self.failures = [], []
        self.reference = {}
        self.paths = write_files(plan, folder)

    def run(self, side, phase):
        lengths = self.plan.decode
        if phase == "prompt":
            lengths = [S for S in self.plan.prompts if S <= side.longest_prompt]
        job = Job(str(self.paths[side.file]), side.engine, self.plan.sizes, phase, list(lengths), self.threads,
                  self.plan.seconds, side.slack, side.in_place, str(self.folder))
        try:
            for row in run_job(job):
                self.add(side, phase, row)
        except RuntimeError as failure:
            self.failures.append(f"{side.name}, {phase}: {failure}")
            print(self.failures[-1], flush=True)

    def add(self, side, phase, row):
        row.update(side=side.name, phase=phase)
        if phase != "share":
            logits = np.load(self.folder / f"{phase}_{row['length']}.npy")
            reference = self.reference.setdefault((phase, row["length"]), logits)
            row["apart"] = float(np.abs(logits - reference).max() / np.abs(reference).max())
            row["cache_bytes"] = self.plan.sizes.cache_bytes(row["length"], side.slack)
        self.rows.append(row)
        print(json.dumps(row), flush=True)


def report(driver, title, out):
    plan, sides = driver.plan, [side.name for side in SIDES]
    text = "\n\n".join([title, tables.decode_table(driver.rows, sides),
                        tables.sliding_caches(driver.rows, plan.sizes, "rewritten", "rewritten, window caches", SLACK),
                        tables.prompt_table(driver.rows, sides, plan.sizes), *driver.failures])
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.md").write_text(text + "\n")
    (out / "model.json").write_text(json.dumps({"title": title, "rows": driver.rows, "failures": driver.failures}, indent=1))
    if drawing := tables.plot(driver.rows, sides, title):
        (out / "model.svg").write_text(drawing)
    print("\n" + text)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", choices=PLANS, default="full")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="sides whose name has this regular expression")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/bench")
    options = parser.parse_args()
    plan = PLANS[options.plan]
    title = (f"{machine.describe()}; ONNX Runtime {onnxruntime.__version__}, {options.threads} threads; load before "
             f"{machine.load():.2f}")
    with tempfile.TemporaryDirectory(prefix="kvshare") as folder:
        driver = Driver(plan, options.threads, pathlib.Path(folder))
        for side in (side for side in SIDES if re.search(options.only, side.name)):
            for phase in ("decode", "share", "prompt"):
                driver.run(side, phase)
    report(driver, title, options.out)
    return 1 if driver.failures else 0


if __name__ == "__main__":
    sys.exit(main())
