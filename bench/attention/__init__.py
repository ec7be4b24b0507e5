"""Task: one attention layer. Decode (S = 1), prefill (S = T), a chunk of 256 tokens at T = 4096."""
import dataclasses
import math

import numpy as np

from bench import common
from bench.common import Row, Shape

SHAPES = (Shape("e2b_sliding", 8, 1, 256, 512), Shape("e2b_full", 8, 1, 512), Shape("llama", 32, 8, 128),
          Shape("mha", 16, 16, 64))
PHASES = (("decode", 1, 512), ("decode", 1, 4096), ("decode", 1, 32768), ("decode", 1, 131072), ("prefill", 512, 512),
          ("prefill", 2048, 2048), ("prefill", 4096, 4096), ("chunk", 256, 4096))
ROWS = [Row("attention", phase, shape, dtype, S, T, threads)
        for threads in (1, 2) for dtype in common.ITEM_BYTES for phase, S, T in PHASES for shape in SHAPES]
ROWS += [Row("attention", "decode", shape, dtype, 1, 4096, threads, 4, ragged)
         for threads in (1, 2) for dtype in common.ITEM_BYTES for ragged in (False, True) for shape in SHAPES]
ROWS += [Row("attention", "decode", Shape(f"group{group}", 8 * group, 8, 128), "fp32", 1, 4096, 1)
         for group in (1, 2, 4, 8, 16)]  # cost against the query heads that share a KV head
DRAWN = {}  # see drawn
STEP_ROWS = 64  # stretches start at multiples of this many rows, whole blocks of any paged cache


@dataclasses.dataclass
class Inputs:
    """query [B * S, Hq, D]; K and V lie in one long memory each. With one KV head, stretch i begins where i times the
    visible rows lie, so that all stretches together fill the rotation even when each is mostly invisible; with more KV
    heads, or a batch, stretches lie one behind the other."""
    row: Row
    query: np.ndarray
    keys: np.ndarray    # flat
    values: np.ndarray  # flat
    count: int
    step: int           # elements from one stretch to the next

    def _stretch(self, flat, i):
        shape = (self.row.batch, self.row.shape.Hkv, self.row.T, self.row.shape.D)
        return flat[i * self.step:i * self.step + math.prod(shape)].reshape(shape)

    def key(self, i):
        """[B, Hkv, T, D], a view."""
        return self._stretch(self.keys, i)

    def value(self, i):
        return self._stretch(self.values, i)

    def pairs(self):
        return [(self.key(i), self.value(i)) for i in range(self.count)]


def drawn(dtype, elements):
    """The numbers of keys and of values, flat. They are kept while rows have the same element type: to draw them for each
    row takes as long as to measure it. A side that appends may change them; a row's float64 truth is computed from what it
    finds."""
    if dtype not in DRAWN or DRAWN[dtype][0].size < elements:
        DRAWN.clear()
        DRAWN[dtype] = [common.stored(common.random_values(np.random.default_rng(seed), elements), dtype) for seed in (0, 1)]
    return [flat[:elements] for flat in DRAWN[dtype]]


def inputs(row):
    shape, heads = row.shape, row.batch * row.shape.Hkv
    visible_bytes = 2 * shape.Hkv * row.visible * shape.D * row.item_bytes
    count = math.ceil(common.cold_bytes() / visible_bytes)
    step_rows = math.ceil(row.visible / STEP_ROWS) * STEP_ROWS if heads == 1 else row.T
    step = heads * step_rows * shape.D
    keys, values = drawn(row.dtype, (count - 1) * step + heads * row.T * shape.D)
    rng = np.random.default_rng(2)
    query = common.stored(rng.standard_normal((row.batch * row.S, shape.Hq, shape.D), dtype=np.float32), row.query_dtype)
    return Inputs(row, query, keys, values, count, step)


def wanted(row, data):
    """A few query positions of stretch 0 in float64."""
    positions = [(b, s) for b in range(row.batch) for s in sorted({0, row.S // 3, row.S // 2, row.S - 1})]
    out = [attend(row.shape, data.query[b * row.S + s], data.key(0)[b], data.value(0)[b], row.lengths[b] - row.S + s + 1)
           for b, s in positions]
    return [b * row.S + s for b, s in positions], np.stack(out)


def attend(shape, query, keys, values, end, softcap=0.0, bias=None, sink=None):
    """One query row [Hq, D] that sees keys up to `end`; bias [end], sink [Hq]. Float64, [Hq * D]."""
    begin = max(0, end - shape.window) if shape.window else 0
    key, value = (common.as_float(x[:, begin:end]).astype(np.float64) for x in (keys, values))
    heads = common.as_float(query).astype(np.float64).reshape(shape.Hkv, shape.group, shape.D)
    scores = heads @ key.transpose(0, 2, 1) / math.sqrt(shape.D)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if bias is not None:
        scores = scores + bias[begin:end]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    if sink is not None:
        total = total + np.exp(sink.reshape(shape.Hkv, shape.group, 1) - scores.max(-1, keepdims=True))
    return (weights / total @ value).reshape(-1)


def floor(row):
    shape = row.shape
    return 2 * shape.Hkv * row.visible * shape.D * row.item_bytes, 4 * row.pairs * shape.D * shape.Hq


def mask(row):
    """bool [S, T]: which keys a query sees. For competitors without a notion of windows."""
    distance = np.arange(row.T - row.S, row.T)[:, None] - np.arange(row.T)[None]
    seen = distance >= 0
    return seen & (distance < row.shape.window) if row.shape.window else seen
