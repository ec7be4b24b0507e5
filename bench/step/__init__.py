"""Task: all attention of one decode step of Gemma4 E2B in one graph. 35 layers, every fifth full, the others with a window
of 512; 15 own a cache and append to it in place, 20 borrow that of the last owner of their kind."""
import dataclasses
import math

import numpy as np

from bench import common
from bench.common import Row, Shape

SLIDING, FULL = Shape("sliding", 8, 1, 256, 512), Shape("full", 8, 1, 512)
LAYERS = tuple(FULL if i % 5 == 4 else SLIDING for i in range(35))
OWN = 15
SOURCE = {SLIDING: 13, FULL: 14}  # whom the layers from OWN on borrow from
ROWS = [Row("step", "step", Shape("e2b_35_layers", 8, 1, 0), "fp32", 1, T, threads)
        for threads in (1, 2) for T in (512, 4096, 32768)]


@dataclasses.dataclass
class Inputs:
    """queries: one a layer. caches[set][own layer]: (key, value) [1, 1, T, D], in which row T - 1 is the new one."""
    queries: list
    caches: list

    @property
    def count(self):
        return len(self.caches)


def _layer(row, shape):
    return dataclasses.replace(row, shape=shape)


def inputs(row):
    rng = np.random.default_rng(0)
    count = math.ceil(common.cold_bytes() / floor(row)[0])
    caches = [[tuple(common.random_values(rng, 1, 1, row.T, shape.D) for _ in range(2)) for shape in LAYERS[:OWN]]
              for _ in range(count)]
    queries = [rng.standard_normal((1, 1, shape.Hq * shape.D), dtype=np.float32) for shape in LAYERS]
    return Inputs(queries, caches)


def cache_of(data, layer, i):
    return data.caches[i][layer if layer < OWN else SOURCE[LAYERS[layer]]]


def wanted(row, data):
    """All layers of set 0 in float64, side by side."""
    outputs = []
    for layer, (shape, query) in enumerate(zip(LAYERS, data.queries)):
        key, value = (x[0, 0, row.T - _layer(row, shape).visible:].astype(np.float64) for x in cache_of(data, layer, 0))
        scores = query.reshape(shape.Hq, shape.D).astype(np.float64) @ key.T / math.sqrt(shape.D)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        outputs.append((weights / weights.sum(-1, keepdims=True) @ value).ravel())
    return [0], np.concatenate(outputs)[None]


def floor(row):
    """Bytes of the 15 caches, once: borrowers may find them in the cache. Flops of all 35 layers."""
    layers = [_layer(row, shape) for shape in LAYERS]
    return (sum(2 * r.visible * r.shape.D * r.item_bytes for r in layers[:OWN]),
            sum(4 * r.pairs * r.shape.D * r.shape.Hq for r in layers))
