"""What narrow caches cost: the error of rows, on exported cases and on attention inputs that are hard to quantize.

KVSHARE_BIN=... KVSHARE_ORT_LIBRARY=... python tests/graph/kv_cache_errors.py prints the table of docs/caches.md.
"""
import os
import pathlib
import re
import sys
import tempfile

import cases
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

TYPES = ("fp16", "bf16", "int8", "fp8", "int4")
CASES = ("head_shared_gqa", "e2b35_head_shared_gqa", "e2b_heads")
TOKENS, HEADS, D = 48, 4, 32
KINDS = ("plain", "sink", "outlier channels", "sink and outlier channels")


def tables(kind):
    """Rows of queries [TOKENS, HEADS * D], of keys and of values [TOKENS, D], one a token."""
    random = np.random.default_rng(7)
    query, key, value = (random.standard_normal((TOKENS, width)).astype(np.float32) for width in (HEADS * D, D, D))
    query *= np.float32(D**-0.5)
    if "outlier" in kind:  # a few channels of keys and values are 30 times larger, and queries small there
        channels = [3, 17]
        key[:, channels] *= 30
        value[:, 11] *= 30
        query.reshape(TOKENS, HEADS, D)[:, :, channels] /= 30
    if "sink" in kind:  # the first token takes two thirds of all weights and has almost no value
        key[0] = 0
        key[0, 5] = 30
        query.reshape(TOKENS, HEADS, D)[:, :, 5] = 0.15
        value[0] *= np.float32(0.01)
    return query, key, value


def attention_model(path, kind):
    """Logits are the attention's output of tokens, whose queries, keys and values stand in tables."""
    query, key, value = tables(kind)
    constants = {"queries": query, "keys": key, "values": value, "one": np.array([1], np.int64), "at": np.array(1, np.int64)}
    node = helper.make_node
    nodes = [node("Gather", [table, "input_ids"], [table[0]]) for table in ("queries", "keys", "values")]
    nodes += [
        node("ReduceSum", ["attention_mask", "one"], ["ones"], keepdims=0), node("Sub", ["ones", "one"], ["last"]),
        node("Cast", ["last"], ["seqlens"], to=TensorProto.INT32), node("Shape", ["attention_mask"], ["extents"]),
        node("Gather", ["extents", "at"], ["total64"]), node("Cast", ["total64"], ["total"], to=TensorProto.INT32),
        node("GroupQueryAttention", ["q", "k", "v", "past_key_values.0.key", "past_key_values.0.value", "seqlens", "total"],
             ["logits", "present.0.key", "present.0.value"], domain="com.microsoft", name="attention", num_heads=HEADS,
             kv_num_heads=1, scale=1.0)]
    info, f32, i64 = helper.make_tensor_value_info, TensorProto.FLOAT, TensorProto.INT64
    inputs = [info("input_ids", i64, ["B", "S"]), info("attention_mask", i64, ["B", "T"])]
    outputs = [info("logits", f32, ["B", "S", HEADS * D])]
    for side in ("key", "value"):
        inputs.append(info(f"past_key_values.0.{side}", f32, ["B", 1, "P", D]))
        outputs.append(info(f"present.0.{side}", f32, ["B", 1, "T", D]))
    graph = helper.make_graph(nodes, "attention", inputs, outputs, [numpy_helper.from_array(a, n) for n, a in constants.items()])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def attention_in_float64(kind):
    """[TOKENS, HEADS, D]"""
    query, key, value = (table.astype(np.float64) for table in tables(kind))
    scores = np.einsum("shd,td->sht", query.reshape(TOKENS, HEADS, D), key)
    scores[np.broadcast_to(np.tri(TOKENS, dtype=bool)[:, None] == 0, scores.shape)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("sht,td->shd", weights / weights.sum(-1, keepdims=True), value)


def row_errors(got, want):
    """Of each row, the largest error over its largest number."""
    return np.abs(got - want).max(-1) / np.abs(want).max(-1)


def channel_errors(got, want):
    """Of each row, the largest error of a channel over that channel's largest number in any row: an outlier hides none."""
    return (np.abs(got - want) / np.abs(want).max((0, 1))).max(-1)


def prompt_logits(model, ids, library):
    """All outputs but the logits stay in ONNX Runtime: numpy has no bf16 and no fp8."""
    session = cases.session(model, library)
    binding = session.io_binding()
    arrays = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None]}
    for value in session.get_inputs():
        if value.name in arrays:
            binding.bind_cpu_input(value.name, np.ascontiguousarray(arrays[value.name]))
        else:
            kind = getattr(TensorProto, {"float": "FLOAT"}.get(name := re.search(r"\((\w+)\)", value.type)[1], name.upper()))
            shape = [len(ids), value.shape[1], 0, value.shape[3]]
            empty = np.zeros(shape, helper.tensor_dtype_to_np_dtype(kind))
            binding.bind_ortvalue_input(value.name, ort.OrtValue.ortvalue_from_numpy_with_onnx_type(empty, kind))
    for value in session.get_outputs():
        binding.bind_output(value.name, "cpu")
    session.run_with_iobinding(binding)
    return binding.get_outputs()[0].numpy().astype(np.float64)


def narrow(kvshare, model, inputs, out, cache, *options):
    """The model with other caches, calibrated on `inputs` where there is a choice."""
    calibrate = [] if cache in ("fp16", "bf16") else ["--calibrate", inputs]
    return cases.rewrite(kvshare, model, out, "--to", "kvshare", "--kv-cache", cache, *calibrate, *options)


def attention_errors(kvshare, library, folder, kind, cache, *options):
    model, inputs, out = folder / "attention.onnx", folder / "inputs.npz", folder / f"{cache}.onnx"
    attention_model(model, kind)
    ids = np.arange(TOKENS)[None]
    np.savez(inputs, input_ids=ids)
    narrow(kvshare, model, inputs, out, cache, *options)
    got = prompt_logits(out, ids, library).reshape(TOKENS, HEADS, D)
    return channel_errors(got, attention_in_float64(kind))


def case_errors(kvshare, library, folder, case, cache, *options):
    """Calibrated on other tokens than those that are compared."""
    model, inputs, out = cases.DATA / case / "model.onnx", folder / "inputs.npz", folder / f"{cache}.onnx"
    golden = np.load(cases.DATA / case / "golden.npz")
    np.savez(inputs, input_ids=np.random.default_rng(3).integers(0, golden["prefill_logits"].shape[2], (4, 100)))
    narrow(kvshare, model, inputs, out, cache, *options)
    ids = golden["input_ids"][:1, :golden["lens"][0]]
    return row_errors(prompt_logits(out, ids, library)[0], golden["prefill_logits"][0, :ids.shape[1]].astype(np.float64))


def table(kvshare, library):
    yield ["rows of", *(f"{cache}{scale}" for cache in TYPES for scale in ("", ", per tensor")[:1 if "16" in cache else 2])]
    for of, names in ((case_errors, CASES), (attention_errors, KINDS)):
        for name in names:
            line = [f"`{name}`" if of is case_errors else name]
            for cache in TYPES:
                for options in ([], ["--scale-per-tensor"])[:1 if "16" in cache else 2]:
                    with tempfile.TemporaryDirectory() as folder:
                        errors = of(kvshare, library, pathlib.Path(folder), name, cache, *options)
                    line.append(f"{100 * np.median(errors):.2g} / {100 * errors.max():.2g}")
            yield line


if __name__ == "__main__":
    for index, cells in enumerate(table(os.environ["KVSHARE_BIN"], os.environ["KVSHARE_ORT_LIBRARY"])):
        print("| " + " | ".join(cells) + " |")
        if index == 0:
            print("|" + "---|" * len(cells))
    sys.exit(0)
