"""One side in a process of its own, so that its peak memory is its own: python -m bench.model.side JOB

JOB is JSON: Job's fields, sizes as an object. A line of JSON a row goes to stdout; logits go to job.logits.
"""
import collections
import dataclasses
import gc
import json
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
import onnxruntime

from bench import common, ort_session
from bench.model.sizes import Sizes

BLOCK = 512  # tokens whose keys or values one seed makes
MOST_STEPS = 30
WARM_UP = 16  # tokens of a prompt before the first


@dataclasses.dataclass
class Job:
    model: str
    engine: str  # stock, provider (kvshare's, on an unchanged file) or ops (kvshare's operators)
    sizes: Sizes
    phase: str  # decode, prompt or share: a step at each T, a prompt of each length, what of a step is attention
    lengths: list
    threads: int
    seconds: float  # of steps that are timed for a row, at least two
    slack: int | None  # of window-sized caches
    in_place: bool  # presents are bound onto the pasts
    logits: str  # folder

    @staticmethod
    def from_json(text):
        fields = json.loads(text)
        return Job(**{**fields, "sizes": Sizes(**fields["sizes"])})


def open_session(job, profile=None):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.log_severity_level = 3
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if job.engine == "provider":
        options.add_provider_for_devices(ort_session.provider_devices(), {})
        return onnxruntime.InferenceSession(job.model, options)
    if job.engine == "ops":
        options.register_custom_ops_library(ort_session.library())
    return onnxruntime.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])


def values(seed, shape):
    """Uniform, variance 1."""
    return (np.random.default_rng(seed).random(shape, dtype=np.float32) - np.float32(0.5)) * np.float32(12**0.5)


def cached(job, layer, side, T):
    """An own layer's past before the step to T tokens: the same tokens on every side, as many as it keeps."""
    rows = job.sizes.cache_rows(layer, T, job.slack) - (0 if job.in_place else 1)
    cache = np.zeros((1, 1, rows, job.sizes.head(layer)), np.float32)
    first = max(0, T - 1 - rows)
    for block in range(first // BLOCK, -(-(T - 1) // BLOCK)):
        begin, end = max(first, block * BLOCK), min(T - 1, (block + 1) * BLOCK)
        made = values([layer, side, block], (BLOCK, cache.shape[3]))
        cache[0, 0, begin - first:end - first] = made[begin - block * BLOCK:end - block * BLOCK]
    return cache


def tokens(job, S, T):
    """What a run of S tokens takes beside the caches."""
    return {"inputs_embeds": values([T, 0], (1, S, job.sizes.hidden)),
            "per_layer_inputs": values([T, 1], (1, S, job.sizes.layers, job.sizes.per_layer)),
            "attention_mask": np.ones((1, T), np.int64), "position_ids": np.arange(T - S, T)[None]}


def only_read(session, arrays):
    names = {i.name for i in session.get_inputs()}
    return {name: array for name, array in arrays.items() if name in names}


def bind_step(session, job, T):
    """The binding, and the caches that it names and does not own."""
    binding = session.io_binding()
    for name, array in only_read(session, tokens(job, 1, T)).items():
        binding.bind_ortvalue_input(name, ort_session.on(array))
    binding.bind_output("logits", "cpu")
    caches = []
    for layer in range(job.sizes.own):
        for side, kind in enumerate(("key", "value")):
            cache = cached(job, layer, side, T)
            caches.append(cache)
            # numpy's memory itself: an OrtValue would be a copy.
            place = ("cpu", 0, np.float32, cache.shape, cache.ctypes.data)
            binding.bind_input(f"past_key_values.{layer}.{kind}", *place)
            binding.bind_output(f"present.{layer}.{kind}", *(place if job.in_place else ("cpu",)))
    return binding, caches


def timed(call):
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def decode(session, job, T):
    """A step again computes the same token at the same place; a window-sized cache that is full moves on by it."""
    memory = common.PeakMemory()
    binding, _caches = bind_step(session, job, T)
    session.run_with_iobinding(binding)
    logits = binding.copy_outputs_to_cpu()[0]
    spent = []
    while len(spent) < 2 or (sum(spent) < job.seconds and len(spent) < MOST_STEPS):
        spent.append(timed(lambda: session.run_with_iobinding(binding)))
    return {"seconds": statistics.median(spent), "runs": len(spent), "peak": memory.status("VmHWM")}, logits


def prompt(session, job, S):
    memory = common.PeakMemory()
    arrays = tokens(job, S, S)
    for layer in range(job.sizes.own):
        arrays.update({f"past_key_values.{layer}.{kind}": np.zeros((1, 1, 0, job.sizes.head(layer)), np.float32)
                       for kind in ("key", "value")})
    feeds, names = only_read(session, arrays), [o.name for o in session.get_outputs()]
    got = []
    # All outputs: a prompt is there for its caches, and the first logits are output 0.
    seconds = timed(lambda: got.extend(session.run(names, feeds)))
    return {"seconds": seconds, "runs": 1, "peak": memory.status("VmHWM")}, got[0]


def is_attention(name):
    """Attention itself, its masks and lengths, copies of borrowed caches, rotations: nodes are named for it."""
    rest = name.startswith(("layers.", "last", "logits"))
    return not rest or name.endswith((".attention", ".rotated"))


def shares(profile, runs):
    """Of the last of each row's runs: {"attention": share, op: share, ...} of the time in nodes."""
    events = json.loads(pathlib.Path(profile).read_text())
    whole = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    for begin, end in whole[runs - 1::runs]:
        spent = collections.Counter()
        for event in events:
            if event["cat"] == "Node" and event["name"].endswith("_kernel_time") and begin <= event["ts"] <= end:
                node = event["name"].removesuffix("_kernel_time")
                spent["attention" if is_attention(node) else event["args"]["op_name"]] += event["dur"]
        yield {name: time / spent.total() for name, time in spent.most_common()}


def report(row):
    print(json.dumps(row), flush=True)


def main():
    job = Job.from_json(sys.argv[1])
    if job.phase == "share":
        with tempfile.TemporaryDirectory() as folder:
            session = open_session(job, pathlib.Path(folder) / "profile")
            for T in job.lengths:
                binding, _caches = bind_step(session, job, T)
                for _ in range(2):
                    session.run_with_iobinding(binding)
            for T, share in zip(job.lengths, shares(session.end_profiling(), 2)):
                report({"length": T, "share": share})
        return
    session = open_session(job)
    run = {"decode": decode, "prompt": prompt}[job.phase]
    if job.phase == "prompt":
        prompt(session, job, WARM_UP)
    for length in job.lengths:
        row, logits = run(session, job, length)
        np.save(pathlib.Path(job.logits) / f"{job.phase}_{length}.npy", logits)
        report({"length": length, **row})
        gc.collect()


if __name__ == "__main__":
    main()
