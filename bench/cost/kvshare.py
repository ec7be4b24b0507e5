"""kvshare's GroupQueryAttention on borrowed K/V, plain and with each option."""
import numpy as np

from bench import cost
from bench.attention.kvshare import borrowed, own_cache, version  # noqa: F401  (version is part of a competitor)


def sides(row, data):
    total = np.array(row.T - cost.ODD, np.int32)
    shorter = {"seqlens_k": np.array([row.T - cost.ODD - 1], np.int32), "total": total}
    bias, sinks = {"bias": cost.bias(row)[None, None]}, {"sink": cost.sinks(row)}
    short_bias = {"bias": np.ascontiguousarray(bias["bias"][..., :total])}
    tables = cost.tables(row)
    return {"kvshare": lambda: borrowed(row, data), "RoPE": lambda: borrowed(row, data, tables),
            "own cache": lambda: own_cache(row, data, "kvshare"),
            "own cache, RoPE": lambda: own_cache(row, data, "kvshare", tables), "odd T": lambda: borrowed(row, data, shorter),
            "softcap": lambda: borrowed(row, data, softcap=cost.SOFTCAP), "bias": lambda: borrowed(row, data, bias),
            "sinks": lambda: borrowed(row, data, sinks),
            "all": lambda: borrowed(row, data, {**shorter, **short_bias, **sinks}, softcap=cost.SOFTCAP)}
