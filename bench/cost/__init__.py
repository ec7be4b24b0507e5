"""Task: what each option costs over the plain call of the same shape, in kvshare alone. Every side is the row's attention with
one thing more; "x kvshare" is its cost."""
import numpy as np

from bench import attention
from bench.common import Row

ROWS = [Row("cost", phase, shape, "fp32", S, 4096, 1)
        for phase, S in (("cost, decode", 1), ("cost, chunk", 256)) for shape in attention.SHAPES[:3]]
ODD = 13  # T less this: no tile is whole
SOFTCAP = 30.0

inputs, floor = attention.inputs, attention.floor


def bias(row):
    """[S, T], added to every head's scores."""
    return np.random.default_rng(1).standard_normal((row.S, row.T), dtype=np.float32)


def sinks(row):
    return np.random.default_rng(2).standard_normal(row.shape.Hq, dtype=np.float32)


def tables(row):
    """cos and sin of RoPE that turn nothing: it costs the same, and leaves the results."""
    half = (row.T, row.shape.D // 2)
    return {"cos": np.ones(half, np.float32), "sin": np.zeros(half, np.float32)}


def wanted(row, data):
    positions = sorted({0, row.S // 3, row.S // 2, row.S - 1})

    def truth(shorter=0, biased=False, **options):
        out = []
        for s in positions:
            end = row.T - shorter - row.S + s + 1
            more = {"bias": bias(row)[s]} if biased else {}
            out.append(attention.attend(row.shape, data.query[s], data.key(0)[0], data.value(0)[0], end, **options, **more))
        return positions, np.stack(out)

    plain = truth()
    return {"kvshare": plain, "RoPE": plain, "own cache": plain, "own cache, RoPE": plain, "odd T": truth(ODD),
            "softcap": truth(softcap=SOFTCAP), "bias": truth(biased=True),
            "sinks": truth(sink=sinks(row).astype(np.float64)),
            "all": truth(ODD, True, softcap=SOFTCAP, sink=sinks(row).astype(np.float64))}
