"""The step with kvshare's ops: borrowers read their source's present through external_key and external_value."""
import numpy as np
from onnx import TensorProto, helper

from bench import ort_session, step
from bench.attention.kvshare import SLOTS, version  # noqa: F401  version is part of the protocol


def graph(row, data, domain, borrow, **session):
    """35 nodes in one graph. borrow(query, key, value): the input slots of a layer without a cache of its own."""
    kind, lengths = TensorProto.FLOAT, ["seqlens_k", "total"]
    inputs = [("seqlens_k", TensorProto.INT32, [1]), ("total", TensorProto.INT32, []), ("nothing_256", kind, [1, 0, 256]),
              ("nothing_512", kind, [1, 0, 512])]
    nodes, outputs = [], []
    for i, shape in enumerate(step.LAYERS):
        inputs.append((f"query_{i}", kind, [1, 1, shape.Hq * shape.D]))
        outputs.append((f"output_{i}", kind, [1, 1, shape.Hq * shape.D]))
        if i < step.OWN:
            cache = [1, 1, row.T, shape.D]
            inputs += [(f"{name}_{i}", kind, [1, 1, shape.D]) for name in ("key", "value")]
            inputs += [(f"{name}_{i}", kind, cache) for name in ("past_key", "past_value")]
            outputs += [(f"{name}_{i}", kind, cache) for name in ("present_key", "present_value")]
            slots = [f"{name}_{i}" for name in ("query", "key", "value", "past_key", "past_value")] + lengths
            results = [f"{name}_{i}" for name in ("output", "present_key", "present_value")]
        else:
            source = step.SOURCE[shape]
            slots = borrow(f"query_{i}", f"present_key_{source}", f"present_value_{source}", shape.D)
            results = [f"output_{i}"]
        nodes.append(helper.make_node("GroupQueryAttention", slots, results, domain=domain, num_heads=shape.Hq,
                                      kv_num_heads=1, do_rotary=0, local_window_size=shape.window or -1))
    made = ort_session.session(nodes, inputs, outputs, row.threads, **session)
    bound, results = ort_session.Bound(made, 1), [np.empty_like(query) for query in data.queries]
    used = {i.name for i in made.get_inputs()}
    for caches in data.caches:
        given = {"seqlens_k": np.array([row.T - 1], np.int32), "total": np.array(row.T, np.int32),
                 "nothing_256": np.empty((1, 0, 256), np.float32), "nothing_512": np.empty((1, 0, 512), np.float32)}
        taken = {}
        for i, query in enumerate(data.queries):
            given[f"query_{i}"], taken[f"output_{i}"] = query, results[i]
        for i, pair in enumerate(caches):
            for name, cache in zip(("key", "value"), pair):
                given[f"{name}_{i}"] = cache[:, 0, -1:].copy()
                given[f"past_{name}_{i}"] = taken[f"present_{name}_{i}"] = ort_session.on(cache)
        bound.add({name: array for name, array in given.items() if name in used}, taken)
    return bound.side(results)


def _borrow(query, key, value, head_size):
    del head_size
    return [query, "", "", "", "", "seqlens_k", "total"] + [""] * (len(SLOTS) - 9) + [key, value]


def upstreams_borrow(query, key, value, head_size):
    """Upstream's shared form: a key and a value of length 0, the source's present as past."""
    nothing = f"nothing_{head_size}"
    return [query, nothing, nothing, key, value, "seqlens_k", "total"]


def sides(row, data):
    return {"kvshare": lambda: graph(row, data, "kvshare", _borrow, kvshare={}),
            "kvshare EP, unchanged": lambda: graph(row, data, "com.microsoft", upstreams_borrow, provider=True)}
