"""Task: five layers of a mixed graph in one decode step, as exporters wrote them in spring 2026. A GroupQueryAttention appends
to its own cache. Four Attentions borrow that cache, as in E2B four full layers do and 16 sliding ones: each from a transposed
and reshaped copy of its own, under one mask that nodes compute."""
import dataclasses

import numpy as np

from bench import attention
from bench.common import Row

SHAPES = attention.SHAPES[:2]  # E2B's
LAYERS = 5
ROWS = [Row("mixed", "mixed", shape, "fp32", 1, T, threads) for threads in (1, 2) for T in (4096, 32768) for shape in SHAPES]


@dataclasses.dataclass
class Inputs:
    """cache: keys and values of the own layer, whose last row is the new one. queries: one a layer, the own one first."""
    cache: attention.Inputs
    queries: list

    @property
    def count(self):
        return self.cache.count


def inputs(row):
    rng, cache = np.random.default_rng(3), attention.inputs(row)
    return Inputs(cache, [rng.standard_normal(cache.query.shape, dtype=np.float32) for _ in range(LAYERS)])


def wanted(row, data):
    """All layers of stretch 0 in float64, side by side."""
    positions, values = zip(*(attention.wanted(row, dataclasses.replace(data.cache, query=query)) for query in data.queries))
    return positions[0], np.concatenate(values, axis=1)


def floor(row):
    """Bytes of the cache, once: borrowers may find them in the cache. Flops of all layers."""
    floor_bytes, flops = attention.floor(row)
    return floor_bytes, LAYERS * flops
