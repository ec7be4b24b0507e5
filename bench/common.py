"""What every competitor shares: rows, element types, cold memory, timing, and the check against float64.

A task is a package here (attention, step) with

    ROWS            every row it can run
    inputs(row)     the numbers, the same in every process: one seed
    wanted(row, inputs) -> positions, values   float64 truth of stretch 0 at a few rows of the output; a dict of such by
                                               side, where the sides compute different things
    floor(row) -> bytes, flops                 what any implementation must read and compute

and one module a competitor, which holds a note on what it runs and

    version() -> str
    sides(row, inputs) -> {name: make}         make() returns (call, output): call(i) computes on stretch i of the cache,
                                               output() is the last result, float [B * S, Hq * D]; Skip says why it cannot run
"""
import dataclasses
import math
import pathlib
import resource
import statistics
import time

import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
    name: str
    Hq: int
    Hkv: int
    D: int
    window: int = 0  # 0: none

    @property
    def group(self):
        return self.Hq // self.Hkv


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. S new tokens, T past and new tokens; a ragged batch's sequences have T, 3/4 T, 1/2 T, ..."""
    task: str
    phase: str
    shape: Shape
    dtype: str  # of K, V and where the competitor can, of the query
    S: int
    T: int
    threads: int
    batch: int = 1
    ragged: bool = False

    @property
    def name(self):
        batch = f" B{self.batch}{' ragged' if self.ragged else ''}" if self.batch > 1 else ""
        return f"{self.phase} {self.shape.name} {self.dtype} S{self.S} T{self.T} {self.threads}t{batch}"

    @property
    def lengths(self):
        """Past and new tokens of each sequence."""
        return [self.T * (self.batch - b) // self.batch if self.ragged else self.T for b in range(self.batch)]

    @property
    def visible(self):
        """Rows of K and V that some query of this row sees, of all sequences."""
        return sum(min(n, self.shape.window + self.S - 1) if self.shape.window else n for n in self.lengths)

    @property
    def pairs(self):
        """(query, key) pairs of one head that the causal triangle and the window leave."""
        reach = (seen for n in self.lengths for seen in range(n - self.S + 1, n + 1))
        return sum(min(seen, self.shape.window) if self.shape.window else seen for seen in reach)

    @property
    def query_dtype(self):
        return "fp32" if self.dtype == "int8" else self.dtype

    @property
    def item_bytes(self):
        return ITEM_BYTES[self.dtype]

    @staticmethod
    def from_json(fields):
        return Row(**{**fields, "shape": Shape(**fields["shape"])})


class Skip(Exception):
    """This side cannot run this row; the message says why."""


ITEM_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}
TOLERANCE = {"fp32": 2e-5, "fp16": 2e-3, "bf16": 2e-2, "int8": 1e-4}  # of values near 1; sums of thousands of keys
INT8_SCALE = np.float32(1 / 254)  # of numbers in [-0.5, 0.5)


def llc_bytes():
    """The last-level cache's size; 64 MB where the system does not tell."""
    try:
        text = pathlib.Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
    except OSError:
        return 64 << 20
    return int(text.removesuffix("K")) << 10


def cold_bytes():
    """What a rotation must cover so that a stretch is out of the cache when its turn comes again."""
    return max(64 << 20, 2 * llc_bytes())


def stored(values, dtype):
    """float32 values in the element type; bf16 as its bits, since numpy has no such type."""
    if dtype == "bf16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    if dtype == "int8":
        return np.rint(values / INT8_SCALE).astype(np.int8)
    return values.astype({"fp32": np.float32, "fp16": np.float16}[dtype], copy=False)


def as_float(array):
    """The inverse of stored, as float32."""
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype == np.int8:
        return array.astype(np.float32) * INT8_SCALE
    return array.astype(np.float32)


def random_values(rng, *shape):
    """Uniform in [-0.5, 0.5), float32."""
    values = rng.random(shape, dtype=np.float32)
    values -= np.float32(0.5)
    return values


def stride(count):
    """A step coprime to count near its golden section: stretches that follow one another in time lie far apart, so a
    competitor that reads more than the window does not find what its neighbour's turn has loaded."""
    return next((s for s in range(max(1, round(0.618 * count)), count) if math.gcd(s, count) == 1), 1)


@dataclasses.dataclass
class Slot:
    """Seconds of the calls of one side in one round: the undisturbed ones, and those to drop."""
    seconds: list
    dropped: list


def _switches():
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def run_slot(call, seconds):
    """Calls for about so long, at least once. A call in which any thread of the process was switched out against its
    will is dropped."""
    kept, dropped, spent = [], [], 0.0
    while spent < seconds:
        switches = _switches()
        start = time.perf_counter()
        call()
        took = time.perf_counter() - start
        spent += took
        (kept if _switches() == switches else dropped).append(took)
    return Slot(kept, dropped)


class PeakMemory:
    """How far this process grows from its beginning to bytes(): the peak of its resident set, reset by the kernel."""

    def __init__(self):
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        self.before = self.status("VmRSS")

    @staticmethod
    def status(name):
        text = pathlib.Path("/proc/self/status").read_text()
        return int(text.split(f"{name}:")[1].split()[0]) << 10

    def bytes(self):
        return max(0, self.status("VmHWM") - self.before)


class Field:
    """The sides of some competitors for one row, in this process."""

    def __init__(self, task, competitors):
        self.task, self.competitors = task, competitors
        self.sides, self.turn = {}, {}

    def open(self, row, limit):
        """Builds every side and checks its result. {name: {"error": e, "peak_bytes": n} or {"skipped": reason}}, where
        n is what its first two calls add to the peak of the process's memory: outputs and scratch; a side whose second call
        takes longer than `limit` seconds is skipped."""
        inputs = self.task.inputs(row)
        wanted = self.task.wanted(row, inputs)
        self.count, self.stride = inputs.count, stride(inputs.count)
        report = {}
        for competitor in self.competitors:
            try:
                makers = competitor.sides(row, inputs)
            except Skip as reason:
                report[competitor.__name__.rsplit(".", 1)[-1]] = {"skipped": str(reason)}
                continue
            for name, make in makers.items():
                try:
                    call, output = make()
                    memory = PeakMemory()
                    call(0)
                    positions, values = wanted[name] if isinstance(wanted, dict) else wanted
                    error = float(np.abs(output()[positions] - values).max())
                    start = time.perf_counter()
                    call(0)
                    took = time.perf_counter() - start
                    grown = memory.bytes()
                except Exception as failure:  # whatever a peer throws becomes a note in the table
                    kind = "" if isinstance(failure, Skip) else "failed: "
                    report[name] = {"skipped": kind + " ".join(str(failure).split())[:200]}
                    continue
                if not error <= TOLERANCE[row.dtype]:
                    report[name] = {"skipped": f"wrong result: differs from float64 by {error:.1e}"}
                elif took > limit:
                    report[name] = {"skipped": f"not timed: one call took {took:.1f} s"}
                else:
                    report[name] = {"error": error, "peak_bytes": grown}
                    self.sides[name], self.turn[name] = call, 0
        return report

    def slot(self, name, seconds):
        call = self.sides[name]

        def next_call():
            stretch = self.turn[name]
            self.turn[name] = (stretch + self.stride) % self.count
            call(stretch)

        return run_slot(next_call, seconds)

    def close(self):
        self.sides.clear()


def summary(slots):
    """Median milliseconds over the undisturbed calls of all rounds, and half the interquartile range in percent. Where
    every call was disturbed, of all calls, and `disturbed` says so."""
    clean = [s for slot in slots for s in slot.seconds]
    dropped = [s for slot in slots for s in slot.dropped]
    seconds = clean or dropped
    if not seconds:
        return {"skipped": "its process ended; see peers.log"}
    median = statistics.median(seconds)
    quartiles = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else [median] * 3
    return {"ms": median * 1e3, "spread": (quartiles[2] - quartiles[0]) / 2 / median * 100, "calls": len(clean),
            "dropped": len(dropped), "disturbed": not clean}
