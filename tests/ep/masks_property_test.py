"""Random decoders of an own layer and borrowers, with random masks: the execution provider against ONNX Runtime's own kernels.

The seeds are fixed; KVSHARE_PROPERTY_CASE=n runs the n-th alone."""
import os

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import ep_harness
import harness
from harness import assert_close
from property_test import Draw

CASES = 120
CASE = os.environ.get("KVSHARE_PROPERTY_CASE")
HIDDEN = {np.float32: np.float32(-3.4028235e38), np.float16: np.float16(-65504)}


class Builder:
    """A graph of nodes that go by the names of their outputs."""

    def __init__(self):
        self.nodes, self.constants = [], []

    def constant(self, name, array):
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def add(self, op, inputs, outputs, domain="", **attributes):
        outputs = [outputs] if isinstance(outputs, str) else outputs
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]


def draw_layers(d):
    """What a decoder has. `peek`: what else reads a value that the provider would like to have for itself. `late`: whether
    there is a function that ONNX Runtime inlines only after it has divided the graph."""
    c = dict(D=d.one(8, 16, 64), Hkv=d.one(1, 2), G=d.one(1, 2, 4), window=d.one(None, 1, 3, 7), borrowers=d.one(1, 2, 3),
                B=d.one(1, 1, 2, 3), past=d.one(0, 1, 5, 12), S=d.one(1, 1, 2, 6), dtype=d.one(np.float32, np.float32, np.float16),
                bools=d.one(False, True), full_too=d.one(False, True), gqa=d.one(True, True, False),
                one_mask=d.rng.random() < 0.2, peek=d.one(None, None, None, "mask", "transpose", "visible"), fixed=d.one(False, False, True),
                level=d.one("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"), late=d.rng.random() < 0.2,
                parallel=d.rng.random() < 0.2)
    if c["gqa"] and c["B"] > 1 and c["S"] > 1:  # ONNX Runtime's GroupQueryAttention does not continue several prompts at once
        c["past"] = 0
    c["one_mask"] &= not c["gqa"]  # which counts lengths of each sequence
    return c


def write_masks(b, c):
    """The exporters' mask of each kind of layer: names of [B,1,S,T] values by window."""
    axis1, axis2 = b.constant("axis1", np.array([1])), b.constant("axis2", np.array([2]))
    b.constant("zero", np.array(0, c["dtype"]))
    b.constant("hidden", HIDDEN[c["dtype"]])
    b.add("CumSum", ["attention_mask", axis1], "count")
    b.add("Unsqueeze", ["count", axis1], "kv")
    b.add("Shape", ["x"], "S", start=1, end=2)
    b.add("Shape", ["attention_mask"], "T", start=1, end=2)
    b.add("Sub", ["T", "S"], "begin")
    b.add("Slice", ["count", "begin", "T", axis1], "new")
    b.add("Unsqueeze", ["new", axis2], "q")
    b.add("GreaterOrEqual", ["q", "kv"], "causal")
    b.add("Unsqueeze", ["attention_mask", axis1], "wide")
    b.add("Cast", ["wide"], "kept", to=TensorProto.BOOL)
    masks = {}
    for window in {c["window"], None} if c["full_too"] else {c["window"]}:
        n = f"w{window}"
        visible = "causal"
        if window is not None:
            b.add("Sub", ["q", "kv"], f"distance_{n}")
            b.add("Less", [f"distance_{n}", b.constant(f"window_{n}", np.array(window))], f"near_{n}")
            visible = b.add("And", ["causal", f"near_{n}"], f"visible_{n}")
        both = b.add("And", ["kept", visible], f"both_{n}")
        bias = both if c["bools"] else b.add("Where", [both, "zero", "hidden"], f"bias3_{n}")
        masks[window] = b.add("Unsqueeze", [bias, axis1], f"mask_{n}")
    return masks


def write_own(b, c, masks):
    Hq, Hkv, D = c["G"] * c["Hkv"], c["Hkv"], c["D"]
    if not c["gqa"]:
        b.add("Attention", ["x", "k", "v", masks[c["window"]], "past_key", "past_value"], ["o0", "present_key", "present_value"],
              q_num_heads=Hq, kv_num_heads=Hkv)
        return
    b.add("ReduceSum", ["attention_mask", "axis1"], "ones", keepdims=0)
    b.add("Sub", ["ones", b.constant("one", np.array(1))], "last")
    b.add("Cast", ["last"], "seqlens", to=TensorProto.INT32)
    b.add("Shape", ["attention_mask"], "extents")
    b.add("Gather", ["extents", "one"], "total64")
    b.add("Cast", ["total64"], "total", to=TensorProto.INT32)
    b.add("GroupQueryAttention", ["x", "k", "v", "past_key", "past_value", "seqlens", "total"],
          ["o0", "present_key", "present_value"], domain="com.microsoft", num_heads=Hq, kv_num_heads=Hkv,
          local_window_size=c["window"] or -1)


def decoder(c):
    b = Builder()
    masks = write_masks(b, c)
    write_own(b, c, masks)
    fold = b.constant("fold", np.array([0, 0, -1]))
    layer = "o0"
    for x in ("key", "value"):
        b.add("Transpose", [f"present_{x}"], f"t_{x}", perm=[0, 2, 1, 3])
        b.add("Reshape", [f"t_{x}", fold], f"b_{x}")
    for i in range(c["borrowers"]):
        mask = masks[None] if c["full_too"] and i % 2 and not c["gqa"] else masks[c["window"]]
        b.add("Add", [layer, "x"], f"q{i}")
        layer = b.add("Attention", [f"q{i}", "b_key", "b_value", mask], f"out{i}", q_num_heads=c["G"] * c["Hkv"], kv_num_heads=c["Hkv"])
    peeks = {"mask": masks[c["window"]], "transpose": "t_key", "visible": "causal"}
    if c["late"]:
        layer = b.add("Whole", [layer], "whole", domain="local")
    outputs = [layer, "present_key", "present_value"]
    if c["peek"]:
        outputs.append(b.add("Identity", [peeks[c["peek"]]], "peeked"))
    return b, outputs


def model_of(c):
    b, outputs = decoder(c)
    Hq, Hkv, D = c["G"] * c["Hkv"], c["Hkv"], c["D"]
    t = harness.ONNX_TYPE[np.dtype(c["dtype"])]
    T = c["past"] + c["S"]
    dim = (lambda name, value: value) if c["fixed"] else (lambda name, value: name)
    masks = 1 if c["one_mask"] else dim("B", c["B"])  # one row broadcasts
    B, S, P, every = dim("B", c["B"]), dim("S", c["S"]), dim("P", c["past"]), dim("T", T)
    value = helper.make_tensor_value_info
    inputs = [value("attention_mask", TensorProto.INT64, [masks, every]), value("x", t, [B, S, Hq * D]), value("k", t, [B, S, Hkv * D]),
              value("v", t, [B, S, Hkv * D]), value("past_key", t, [B, Hkv, P, D]), value("past_value", t, [B, Hkv, P, D])]
    peeked = TensorProto.BOOL if c["peek"] == "visible" or c["bools"] and c["peek"] == "mask" else t
    types = [peeked if o == "peeked" else t for o in outputs]
    graph = helper.make_graph(b.nodes, "g", inputs, [value(o, ty, None) for o, ty in zip(outputs, types)], b.constants)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("local", 1)]
    whole = helper.make_function("local", "Whole", ["in"], ["out"], [helper.make_node("Identity", ["in"], ["out"])], opsets[:1])
    made = helper.make_model(graph, opset_imports=opsets, functions=[whole] if c["late"] else [])
    made.ir_version = 10
    return made.SerializeToString()


def feed_of(c, rng):
    B, S, P, T = c["B"], c["S"], c["past"], c["past"] + c["S"]
    Hq, Hkv, D = c["G"] * c["Hkv"], c["Hkv"], c["D"]
    draw = lambda *shape: rng.standard_normal(shape).astype(c["dtype"])
    mask = np.ones((B, T), np.int64)
    if not c["gqa"] and P > 1:  # left padding of the past
        for row in mask[1:]:
            row[:rng.integers(0, P)] = 0
    if c["gqa"] and P == 0:  # right padding of the first prompt
        for row in mask[1:]:
            row[rng.integers(1, S + 1):] = 0
    if c["one_mask"]:
        mask = mask[-1:]
    return {"attention_mask": mask, "x": draw(B, S, Hq * D), "k": draw(B, S, Hkv * D), "v": draw(B, S, Hkv * D),
            "past_key": draw(B, Hkv, P, D), "past_value": draw(B, Hkv, P, D)}


@pytest.mark.parametrize("mode", ["fuse", "nodes"])
def test_random_decoders_give_what_onnx_runtime_gives(mode):
    fused = refused = 0
    for case in range(CASES) if CASE is None else [int(CASE)]:
        d = Draw(20261129, 7, case)
        c = draw_layers(d)
        where = f"KVSHARE_PROPERTY_CASE={case}: {c}"
        model, feed = model_of(c), feed_of(c, d.rng)
        try:
            stock_session = harness.session(model, lib=None)
        except Exception:  # ONNX Runtime's own shape inference, of fixed extents
            refused += 1
            continue
        modes = ort.ExecutionMode
        sess = ep_harness.session(model, mode=mode, optimization=getattr(ort.GraphOptimizationLevel, c["level"]),
                                  entries={"session.disable_aot_function_inlining": "1"} if c["late"] else {},
                                  execution_mode=modes.ORT_PARALLEL if c["parallel"] else modes.ORT_SEQUENTIAL)
        assert not ep_harness.attention_elsewhere(sess), where
        fused += any(op not in ("Attention", "GroupQueryAttention", "Transpose", "Reshape") for _, op in ep_harness.assigned(sess))
        want = stock_session.run(None, feed)
        kept = feed["attention_mask"][:, :, None, None]
        rows = [kept[:, -c["S"]:, 0], *[kept.transpose(0, 2, 1, 3)] * 2, kept if c["peek"] == "transpose" else 1]
        for got, stock, rows_kept in zip(sess.run(None, feed), want, rows):
            if c["gqa"]:  # what padding gives is nobody's promise
                got, stock = (np.where(rows_kept, array, np.zeros((), array.dtype)) for array in (got, stock))
            if stock.dtype == bool:
                np.testing.assert_array_equal(got, stock)
            else:
                finite = np.where(np.abs(stock) > 6e4, 0, stock)
                assert_close(np.where(np.abs(got) > 6e4, 0, got), finite, c["dtype"], where, least=2e-4 if c["dtype"] == np.float32 else 1e-2)
    assert refused < CASES // 4
    assert CASE or (fused > CASES // 3 if mode == "fuse" else fused == 0)
