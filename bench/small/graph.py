"""The graph of one Attention-24 that both competitors run."""
import numpy as np
from onnx import helper

from bench import ort_session, small
from bench.attention.kvshare import values


def graph(row, data, **session):
    """(call, output)"""
    query = data.query[None]
    fixed = {"query": query}
    if data.bias is not None:
        fixed["mask"] = data.bias[None]
    elif 1 < row.S < row.T:
        fixed["mask"] = np.tril(np.ones((row.S, row.T), bool), row.T - row.S)
    causal = small.is_causal(row) and row.S == row.T and data.bias is None
    node = helper.make_node("Attention", ["query", "key", "value", *(["mask"] if "mask" in fixed else [])], ["output"],
                            is_causal=int(causal))
    pair = dict(zip(("key", "value"), data.pairs[0]))
    (_, kind, shape), *_ = values({"query": query})
    made = ort_session.session([node], values({**fixed, **pair}), [("output", kind, shape)], row.threads, **session)
    result = np.empty_like(query)
    bound = ort_session.Bound(made, row.S)
    for key, value in data.pairs:
        bound.add({**fixed, "key": key, "value": value}, {"output": result})
    call, _ = bound.side([result])
    return call, lambda: result[0].transpose(1, 0, 2).reshape(row.S, -1)
