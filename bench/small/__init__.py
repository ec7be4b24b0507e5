"""Task: calls in which ONNX Runtime was once as fast or faster. Odd head sizes, few keys, few queries, and biases that differ
by head (ALiBi). One Attention-24 node with K and V complete, in ONNX Runtime and in drop-in mode."""
import dataclasses
import math

import numpy as np

from bench import attention, common
from bench.common import Row, Shape

GQA, MHA = (8, 2), (16, 16)
D33, D8, D64 = Shape("d33", *GQA, 33), Shape("d8", *GQA, 8), Shape("d64", *GQA, 64)
FULL = Shape("e2b_full", 8, 1, 512)
LLAMA = Shape("llama", 32, 8, 128)
ALIBI = Shape("alibi", *MHA, 64)
CALLS = [(shape, S, T) for shape in (D33, D8) for S, T in ((1, 512), (1, 4096), (256, 256), (256, 2048))]
CALLS += [(shape, S, T) for shape in (D64, LLAMA, FULL) for S, T in ((1, 1), (1, 64), (16, 16), (16, 64), (16, 512), (256, 1))]
CALLS += [(ALIBI, S, T) for S, T in ((1, 512), (1, 4096), (256, 512), (256, 2048))]
ROWS = [Row("small", "small", shape, "fp32", S, T, threads) for threads in (1, 2) for shape, S, T in CALLS]


@dataclasses.dataclass
class Inputs:
    """query [Hq, S, D]; pairs of K and V [1, Hkv, T, D], one a stretch; bias [Hq, S, T] or None."""
    query: np.ndarray
    pairs: list
    bias: np.ndarray | None

    @property
    def count(self):
        return len(self.pairs)


def is_causal(row):
    return row.S <= row.T


def bias(row):
    """-slope * distance of each head."""
    slopes = 2.0 ** (-8 * np.arange(1, row.shape.Hq + 1) / row.shape.Hq)
    distance = np.arange(row.T - row.S, row.T)[:, None] - np.arange(row.T)[None]
    seen = np.where(distance >= 0, -slopes[:, None, None] * distance, -np.inf)
    return np.ascontiguousarray(seen, np.float32)


def inputs(row):
    rng = np.random.default_rng(0)
    size = (1, row.shape.Hkv, row.T, row.shape.D)
    count = min(256, math.ceil(common.cold_bytes() / (8 * math.prod(size))))
    pairs = [tuple(common.random_values(rng, *size) for _ in range(2)) for _ in range(count)]
    query = rng.standard_normal((row.shape.Hq, row.S, row.shape.D), dtype=np.float32)
    return Inputs(query, pairs, bias(row) if row.shape == ALIBI else None)


def wanted(row, data):
    positions = sorted({0, row.S // 2, row.S - 1})
    key, value = (x[0] for x in data.pairs[0])
    end = [row.T - row.S + s + 1 if is_causal(row) else row.T for s in positions]
    out = []
    for s, e in zip(positions, end):
        query = data.query[:, s]
        if data.bias is None:
            out.append(attention.attend(row.shape, query, key, value, e))
            continue
        out.append(np.concatenate([attention.attend(dataclasses.replace(row.shape, Hq=1, Hkv=1), query[h:h + 1], key[h:h + 1],
                                                    value[h:h + 1], e, bias=data.bias[h, s].astype(np.float64))
                                   for h in range(row.shape.Hq)]))
    return positions, np.stack(out)


def floor(row):
    shape = row.shape
    pairs = row.pairs if is_causal(row) else row.S * row.T
    bias_bytes = 4 * shape.Hq * row.S * row.T if shape == ALIBI else 0
    return 8 * shape.Hkv * row.T * shape.D + bias_bytes, 4 * pairs * shape.D * shape.Hq
