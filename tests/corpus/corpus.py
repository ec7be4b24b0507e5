"""Models that nobody of this project wrote: no crash of `kvshare`, and no rewritten model that answers differently.

    python corpus.py BUILD_DIR [backend] [mobius]

backend  the onnx package's node tests of attention, inspected, rewritten to each target, and run on their own inputs in ONNX Runtime
mobius   the drafter of mobius-onnx for three providers, inspected and rewritten
Versions are those of scripts/setup.sh, stage realmodel.
"""
import collections
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime as ort

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "data")]
TARGETS = ("kvshare", "kvshare-attention", "ort", "onnx25")
ATTENTION = ("Attention", "GroupQueryAttention")
SECONDS = 60


class Corpus:
    def __init__(self, build):
        self.tool, self.library = build / "bin" / "kvshare", build / "lib" / "libkvshare_ort.so"
        self.counts, self.wrong = collections.Counter(), []

    def call(self, what, *arguments):
        """Exit codes from 0 to 3 are answers; anything else is a crash."""
        try:
            done = subprocess.run([self.tool, *map(str, arguments)], capture_output=True, text=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            self.wrong.append(f"{what}: {arguments[0]} takes more than {SECONDS} s")
            return False
        self.counts[f"{arguments[0]}: exit code {done.returncode}"] += 1
        if done.returncode not in range(4):
            self.wrong.append(f"{what}: {arguments[0]} dies with {done.returncode}: {done.stderr[-200:]}")
        return done.returncode == 0

    def rewritten(self, what, model):
        """Each target's model, beside the original."""
        self.call(what, "inspect", model)
        for target in TARGETS:
            out = model.with_name(f"{target}.onnx")
            if self.call(what, "rewrite", model, "-o", out, "--to", target):
                yield target, out

    def run(self, model, feeds, library=None):
        options = ort.SessionOptions()
        options.log_severity_level = 4
        if library:
            options.register_custom_ops_library(str(library))
        return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]).run(None, feeds)

    def compare(self, what, model, out, feeds):
        try:
            want = self.run(model, feeds)
        except Exception:  # the release lacks this operator or type
            self.counts["run: ONNX Runtime does not run the original"] += 1
            return
        try:
            got = self.run(out, feeds, self.library)
        except Exception as error:
            self.wrong.append(f"{what}: does not run: {str(error)[-200:]}")
            return
        self.counts["run: compared"] += 1
        for a, b in zip(got, want, strict=True):
            if a.shape != b.shape or not np.allclose(a.astype(np.float64), b.astype(np.float64), rtol=1e-2, atol=1e-2, equal_nan=True):
                self.wrong.append(f"{what}: answers differently")


def backend(corpus, folder):
    from onnx.backend.test.case.node import collect_testcases
    for case in collect_testcases(None):
        if case.model is None or not any(node.op_type in ATTENTION for node in case.model.graph.node):
            continue
        model = folder / "model.onnx"
        onnx.save(case.model, model)
        inputs, _ = case.data_sets[0]
        for target, out in corpus.rewritten(case.name, model):
            if all(isinstance(value, np.ndarray) for value in inputs):
                feeds = dict(zip((value.name for value in case.model.graph.input), inputs))
                corpus.compare(f"{case.name} to {target}", model, out, feeds)


def mobius(corpus, folder):
    import make_drafter_cases
    for provider in ("default", "cpu", "cuda"):
        make_drafter_cases.make(folder, provider)
        for _ in corpus.rewritten(f"mobius drafter, {provider}", folder / f"mobius_drafter_{provider}" / "model.onnx"):
            pass


PARTS = {"backend": backend, "mobius": mobius}

if __name__ == "__main__":
    ours = Corpus(pathlib.Path(sys.argv[1]).resolve())
    for part in sys.argv[2:] or PARTS:
        with tempfile.TemporaryDirectory() as name:
            PARTS[part](ours, pathlib.Path(name))
    for text, count in sorted(ours.counts.items()):
        print(f"{count:6} {text}")
    print("\n".join(ours.wrong) or "nothing wrong")
    sys.exit(1 if ours.wrong else 0)
