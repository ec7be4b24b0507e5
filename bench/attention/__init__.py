"""Task: one attention layer. Decode (S = 1), prefill (S = T), a chunk of 256 tokens at T = 4096."""
import dataclasses
import math

import numpy as np

from bench import common
from bench.common import Row, Shape

SHAPES = (Shape("e2b_sliding", 8, 1, 256, 512), Shape("e2b_full", 8, 1, 512), Shape("llama", 32, 8, 128),
          Shape("mha", 16, 16, 64))
PHASES = (("decode", 1, 512), ("decode", 1, 4096), ("decode", 1, 32768), ("prefill", 512, 512), ("prefill", 2048, 2048),
          ("chunk", 256, 4096))
ROWS = [Row("attention", phase, shape, dtype, S, T, threads)
        for threads in (1, 2) for dtype in common.ITEM_BYTES for phase, S, T in PHASES for shape in SHAPES]
STEP_ROWS = 64  # stretches start at multiples of this many rows, whole blocks of any paged cache


@dataclasses.dataclass
class Inputs:
    """query [S, Hq, D]; K and V lie in one long memory each. With one KV head, stretch i begins where i times the
    visible rows lie, so that all stretches together fill the rotation even when each is mostly invisible; with more KV
    heads, stretches lie one behind the other."""
    row: Row
    query: np.ndarray
    keys: np.ndarray    # flat
    values: np.ndarray  # flat
    count: int
    step: int           # elements from one stretch to the next

    def _stretch(self, flat, i):
        shape = (1, self.row.shape.Hkv, self.row.T, self.row.shape.D)
        return flat[i * self.step:i * self.step + math.prod(shape)].reshape(shape)

    def key(self, i):
        """[1, Hkv, T, D], a view."""
        return self._stretch(self.keys, i)

    def value(self, i):
        return self._stretch(self.values, i)

    def pairs(self):
        return [(self.key(i), self.value(i)) for i in range(self.count)]


def inputs(row):
    shape = row.shape
    visible_bytes = 2 * shape.Hkv * row.visible * shape.D * row.item_bytes
    count = math.ceil(common.cold_bytes() / visible_bytes)
    step_rows = math.ceil(row.visible / STEP_ROWS) * STEP_ROWS if shape.Hkv == 1 else row.T
    step = shape.Hkv * step_rows * shape.D
    elements = (count - 1) * step + shape.Hkv * row.T * shape.D
    rng = np.random.default_rng(0)
    keys, values = (common.stored(common.random_values(rng, elements), row.dtype) for _ in range(2))
    query = common.stored(rng.standard_normal((row.S, shape.Hq, shape.D), dtype=np.float32), row.dtype)
    return Inputs(row, query, keys, values, count, step)


def wanted(row, data):
    """A few query positions of stretch 0 in float64."""
    shape, positions = row.shape, sorted({0, row.S // 3, row.S // 2, row.S - 1})
    key, value = (common.as_float(x[0]).astype(np.float64) for x in (data.key(0), data.value(0)))
    out = np.empty((len(positions), shape.Hq, shape.D))
    for n, s in enumerate(positions):
        end = row.T - row.S + s + 1
        begin = max(0, end - shape.window) if shape.window else 0
        query = common.as_float(data.query[s]).astype(np.float64).reshape(shape.Hkv, shape.group, shape.D)
        scores = query @ key[:, begin:end].transpose(0, 2, 1) / math.sqrt(shape.D)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        out[n] = (weights @ value[:, begin:end]).reshape(shape.Hq, shape.D)
    return positions, out.reshape(len(positions), -1)


def floor(row):
    shape = row.shape
    return 2 * shape.Hkv * row.visible * shape.D * row.item_bytes, 4 * row.pairs * shape.D * shape.Hq


def mask(row):
    """bool [S, T]: which keys a query sees. For competitors without a notion of windows."""
    distance = np.arange(row.T - row.S, row.T)[:, None] - np.arange(row.T)[None]
    seen = distance >= 0
    return seen & (distance < row.shape.window) if row.shape.window else seen
