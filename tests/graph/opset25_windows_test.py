"""The window attributes of opset 25 are read where they count what the mask counts. Truth is the original's own answer."""

import cases
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

PADDING = "kept"
COLUMNS = "visible"  # causal, with a window of 3 keys, and the padding

# Of a layer with a past: its mask, its attributes, and the window that they make.
OWN = {
    "left_and_right": (PADDING, {"left_window_size": 3, "right_window_size": 0}, 4),
    "left_and_causal": (PADDING, {"left_window_size": 3, "is_causal": 1}, 4),
    "right_alone": (PADDING, {"right_window_size": 0}, -1),
    "right_behind_causal": (PADDING, {"left_window_size": 2, "right_window_size": 2, "is_causal": 1}, 3),
    "left_with_a_causal_mask": (COLUMNS, {"left_window_size": 1}, 2),
    "left_wider_than_the_mask": (COLUMNS, {"left_window_size": 5, "right_window_size": 1}, 3),
    "no_key_but_its_own": (PADDING, {"left_window_size": 0, "right_window_size": 0}, 1),
    "widest": (PADDING, {"left_window_size": 2**63 - 1, "is_causal": 1}, -1),
}


def save_model(path, own_mask, own, shared_mask, shared):
    """Layer 0 has a past, layer 1 borrows its keys; `own` and `shared` are their attributes."""
    make = helper.make_node
    rng = np.random.default_rng(25)
    constants = {"one": np.array([1]), "nought": np.array(0), "once": np.array(1), "window": np.array(3),
                 "key_axes": np.array([0, 1, 2]), "query_axes": np.array([0, 1, 3]), "pad_axes": np.array([1, 2]),
                 "heads": np.array([0, 0, 4, 8]), "flat": np.array([0, 0, 32])}
    weights = {name: rng.standard_normal((32, 16)).astype(np.float32) / 4 for name in ["to_key", "to_value"]}
    nodes = [
        make("Cast", ["attention_mask"], ["flags"], to=TensorProto.BOOL),
        make("Unsqueeze", ["flags", "pad_axes"], [PADDING]),
        make("Shape", ["hidden"], ["S1"], start=1, end=2), make("Squeeze", ["S1"], ["S"]),
        make("Shape", ["past_k"], ["P1"], start=2, end=3), make("Squeeze", ["P1"], ["P"]),
        make("Add", ["P", "S"], ["T"]),
        make("Range", ["nought", "T", "once"], ["columns"]), make("Unsqueeze", ["columns", "key_axes"], ["kv"]),
        make("Range", ["nought", "S", "once"], ["steps"]), make("Add", ["steps", "P"], ["at"]),
        make("Unsqueeze", ["at", "query_axes"], ["q"]),
        make("LessOrEqual", ["kv", "q"], ["causal"]), make("Sub", ["q", "window"], ["begin"]),
        make("Greater", ["kv", "begin"], ["near"]), make("And", ["near", "causal"], ["triangle"]),
        make("And", ["triangle", PADDING], [COLUMNS]),
        make("MatMul", ["hidden", "to_key"], ["k"]), make("MatMul", ["hidden", "to_value"], ["v"]),
        make("Attention", ["hidden", "k", "v", own_mask, "past_k", "past_v"], ["out0", "present_k", "present_v"],
             name="own", q_num_heads=4, kv_num_heads=2, **own),
        make("Reshape", ["out0", "heads"], ["q_rows"]), make("Transpose", ["q_rows"], ["q1"], perm=[0, 2, 1, 3]),
        make("Attention", ["q1", "present_k", "present_v", shared_mask], ["out1"], name="shared", **shared),
        make("Transpose", ["out1"], ["rows1"], perm=[0, 2, 1, 3]), make("Reshape", ["rows1", "flat"], ["borrowed"]),
        make("Add", ["out0", "borrowed"], ["logits"]),
    ]
    info = helper.make_tensor_value_info
    cache = ["batch", 2, "past", 8]
    grown = ["batch", 2, "past + seq", 8]
    graph = helper.make_graph(
        nodes, "windows",
        [info("hidden", TensorProto.FLOAT, ["batch", "seq", 32]),
         info("attention_mask", TensorProto.INT64, ["batch", "past + seq"]),
         info("past_k", TensorProto.FLOAT, cache), info("past_v", TensorProto.FLOAT, cache)],
        [info("logits", TensorProto.FLOAT, ["batch", "seq", 32]),
         info("present_k", TensorProto.FLOAT, grown), info("present_v", TensorProto.FLOAT, grown)],
        [numpy_helper.from_array(array, name) for name, array in {**constants, **weights}.items()],
        value_info=[info(name, TensorProto.FLOAT, ["batch", "seq", 16]) for name in ["k", "v"]]
        + [info("q1", TensorProto.FLOAT, ["batch", 4, "seq", 8])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=11), path)


def logits_of(model, library, sequences, hidden_tokens):
    """Of a prompt of 7 tokens, one more, and 3 more; the last sequence begins with `hidden_tokens` of padding."""
    session = cases.session(model, library)
    rng = np.random.default_rng(1)
    past = {name: np.zeros((sequences, 2, 0, 8), np.float32) for name in ["past_k", "past_v"]}
    for tokens in [7, 1, 3]:
        columns = past["past_k"].shape[2] + tokens
        mask = np.ones((sequences, columns), np.int64)
        mask[-1, :hidden_tokens] = 0
        hidden = rng.standard_normal((sequences, tokens, 32)).astype(np.float32)
        got, *caches = session.run(None, {"hidden": hidden, "attention_mask": mask, **past})
        past = dict(zip(["past_k", "past_v"], caches, strict=True))
        yield got[mask[:, -tokens:] == 1]


def check_same(original, rewritten, library, target, hidden_tokens=0):
    sequences = 1 if target == "ort" else 2  # ONNX Runtime's GroupQueryAttention takes no chunk of several
    got_steps, want_steps = (logits_of(model, used, sequences, hidden_tokens)
                             for model, used in [(rewritten, library), (original, None)])
    for got, want in zip(got_steps, want_steps, strict=True):
        assert np.abs(got - want).max() <= 1e-5


@pytest.mark.parametrize("target", cases.TARGETS)
@pytest.mark.parametrize("form", OWN)
def test_window_attributes_are_read(kvshare, library, tmp_path, form, target):
    original, out = tmp_path / "original.onnx", tmp_path / "model.onnx"
    mask, attributes, window = OWN[form]
    save_model(original, mask, attributes, COLUMNS, {"left_window_size": 2, "right_window_size": -1})
    report = cases.rewrite(kvshare, original, out, "--to", target)
    assert "left alone" not in report, report
    assert [layer["window"] for layer in cases.inspect(kvshare, out)["layers"]] == [window, 3]
    assert cases.operators(out)["", "Attention"] == 0
    check_same(original, out, library, target)
    if target == "kvshare-attention":
        check_same(original, out, library, target, hidden_tokens=2)


@pytest.mark.parametrize("target", cases.TARGETS)
@pytest.mark.parametrize("attributes,why", [
    ({"left_window_size": 1}, "has left_window_size without a past, which counts from the first key"),
    ({"right_window_size": 0}, "has right_window_size without a past, which counts from the first key"),
])
def test_window_attributes_that_count_from_the_first_key_stay(kvshare, library, tmp_path, target, attributes, why):
    original, out = tmp_path / "original.onnx", tmp_path / "model.onnx"
    save_model(original, PADDING, {"left_window_size": 3, "is_causal": 1}, COLUMNS, attributes)
    report = cases.rewrite(kvshare, original, out, "--to", target)
    # A mask of the whole context for such a layer would not fit a source whose cache became compact.
    compacts = target != "kvshare-attention"
    says = "own-attention: layer 1 borrows its cache, which would be compact, and is not known to hide its padding" if compacts else "shared-attention"
    assert f"1 x {says}: {why}" in report, report
    assert cases.operators(out)["", "Attention"] == (2 if compacts else 1)
    check_same(original, out, library, target)
