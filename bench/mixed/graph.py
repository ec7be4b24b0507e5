"""The five layers as a model, and its inputs."""
import numpy as np
from onnx import TensorProto, helper

from bench import mixed, ort_session
from bench.attention.masked import mask_nodes

KIND = TensorProto.FLOAT


def _lengths():
    """attention_mask -> seqlens_k and total_sequence_length of GroupQueryAttention."""
    node = helper.make_node
    return [node("ReduceSum", ["attention_mask", "ax1"], ["ones"], keepdims=0), node("Sub", ["ones", "one"], ["last"]),
            node("Cast", ["last"], ["seqlens"], to=TensorProto.INT32), node("Shape", ["attention_mask"], ["extents"]),
            node("Gather", ["extents", "one"], ["columns"]), node("Cast", ["columns"], ["total"], to=TensorProto.INT32)]


def _gqa(row, slots, outputs):
    return helper.make_node("GroupQueryAttention", [*slots, "seqlens", "total"], outputs, domain="com.microsoft",
                            num_heads=row.shape.Hq, kv_num_heads=1, local_window_size=row.shape.window or -1)


def _borrower(row, layer):
    """Attention on turned copies of the presents, as exporters write it."""
    copies = [node for name in ("key", "value") for node in
              (helper.make_node("Transpose", [f"present_{name}"], [f"turned_{name}_{layer}"], perm=[0, 2, 1, 3]),
               helper.make_node("Reshape", [f"turned_{name}_{layer}", "rows"], [f"copied_{name}_{layer}"]))]
    return [*copies, helper.make_node("Attention", [f"query_{layer}", f"copied_key_{layer}", f"copied_value_{layer}", "mask"],
                                      [f"output_{layer}"], q_num_heads=row.shape.Hq, kv_num_heads=1)]


def _shared(row, layer):
    """Upstream's shared form of the same layer: no key, no value, the presents as past."""
    return _gqa(row, [f"query_{layer}", "nothing", "nothing", "present_key", "present_value"], [f"output_{layer}"])


def model(row, shared=False):
    """ModelProto: a mixed graph, or the shared form. S and T are names, as in exported models."""
    D, width, borrowers = row.shape.D, row.shape.Hq * row.shape.D, range(1, mixed.LAYERS)
    mask, initializers = mask_nodes(row.shape.window, "queries", 1)
    if shared:
        nodes = [_shared(row, layer) for layer in borrowers]
    else:
        nodes = [*mask, *(node for layer in borrowers for node in _borrower(row, layer))]
    initializers += [helper.make_tensor("rows", TensorProto.INT64, [3], [0, 0, D]), helper.make_tensor("nothing", KIND, [1, 0, D], [])]
    split = helper.make_node("Split", ["queries"], [f"query_{i}" for i in range(mixed.LAYERS)], axis=2, num_outputs=mixed.LAYERS)
    own = _gqa(row, ["query_0", "key", "value", "past_key", "past_value"], ["output_0", "present_key", "present_value"])
    new, cache = [1, "S", D], [1, 1, "T", D]
    inputs = [("attention_mask", TensorProto.INT64, [1, "T"]), ("queries", KIND, [1, "S", mixed.LAYERS * width]), ("key", KIND, new),
              ("value", KIND, new), ("past_key", KIND, cache), ("past_value", KIND, cache)]
    outputs = [(f"output_{i}", KIND, [1, "S", width]) for i in range(mixed.LAYERS)]
    outputs += [("present_key", KIND, cache), ("present_value", KIND, cache)]
    return ort_session.model([split, *_lengths(), own, *nodes], inputs, outputs, initializers)


def side(made, row, data):
    """(call, output) of a session of such a model; past and present are one memory."""
    layers = [query.reshape(1, row.S, -1) for query in data.queries]
    queries, results = np.concatenate(layers, axis=2), [np.empty_like(query) for query in layers]
    bound = ort_session.Bound(made, row.S)
    for i in range(data.count):
        caches = {"key": data.cache.key(i), "value": data.cache.value(i)}
        past = {name: ort_session.on(cache) for name, cache in caches.items()}
        bound.add({"attention_mask": np.ones((1, row.T), np.int64), "queries": queries,
                   **{name: cache[:, 0, -row.S:].copy() for name, cache in caches.items()},
                   **{f"past_{name}": tensor for name, tensor in past.items()}},
                  {**{f"output_{i}": result for i, result in enumerate(results)},
                   **{f"present_{name}": tensor for name, tensor in past.items()}})
    return bound.side(results)
