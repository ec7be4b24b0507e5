"""Own layers that hide padding beside layers that see it: ragged batches compute what they did.

Truth is the original's own answer."""

import json

import cases
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

HEADS, KV_HEADS, SIZE, WIDTH, VOCABULARY = 4, 2, 8, 32, 20
LENS, PROMPT, STEPS = np.array([7, 4]), 7, 4
INDEX = "its cache would be compact, and layer"
TARGET = "; needs --to kvshare-attention, which keeps padding"


def mask_nodes(mask):
    """The float mask that mobius writes: causality by the running count of ones, and padding."""
    make, at = helper.make_node, lambda name: f"{mask}_{name}"
    return [
        make("CumSum", [mask, "one"], [at("count")]), make("Unsqueeze", [at("count"), "one"], [at("kv")]),
        make("Shape", ["input_ids"], [at("S")], start=1, end=2), make("Shape", [mask], [at("T")], start=1, end=2),
        make("Sub", [at("T"), at("S")], [at("begin")]),
        make("Slice", [at("count"), at("begin"), at("T"), "one"], [at("new")]), make("Unsqueeze", [at("new"), "two"], [at("q")]),
        make("GreaterOrEqual", [at("q"), at("kv")], [at("causal")]),
        make("Cast", [mask], [at("flags")], to=TensorProto.BOOL), make("Unsqueeze", [at("flags"), "one"], [at("kept")]),
        make("And", [at("kept"), at("causal")], [at("both")]), make("Where", [at("both"), "zero", "lowest"], [at("bias3")]),
        make("Unsqueeze", [at("bias3"), "one"], [at("bias")])]


def save_model(path, layers):
    """`layers`: of each the mask [B, T] that it is made of, a graph input; "": it sees all keys up to its own."""
    make, info = helper.make_node, helper.make_tensor_value_info
    rng = np.random.default_rng(3)
    constants = {"one": np.array([1]), "two": np.array([2]), "zero": np.array(0, np.float32),
                 "lowest": np.array(-3.4e38, np.float32),
                 "weight": rng.standard_normal((VOCABULARY, WIDTH)).astype(np.float32),
                 "head": rng.standard_normal((WIDTH, VOCABULARY)).astype(np.float32)}
    masks = sorted({mask for mask in layers if mask})
    nodes = [make("Gather", ["weight", "input_ids"], ["hidden"])]
    for mask in masks:
        nodes += mask_nodes(mask)
    inputs = [info("input_ids", TensorProto.INT64, ["batch", "seq"])]
    inputs += [info(mask, TensorProto.INT64, ["batch", "total"]) for mask in masks]
    outputs, hidden, declared = [info("logits", TensorProto.FLOAT, ["batch", "seq", VOCABULARY])], "hidden", []
    for index, mask in enumerate(layers):
        at = lambda name, index=index: f"{name}_{index}"
        for name, width in [("query", HEADS * SIZE), ("key", KV_HEADS * SIZE), ("value", KV_HEADS * SIZE)]:
            constants[at(f"to_{name}")] = rng.standard_normal((WIDTH, width)).astype(np.float32) / 4
            nodes.append(make("MatMul", [hidden, at(f"to_{name}")], [at(name)]))
            declared.append(info(at(name), TensorProto.FLOAT, ["batch", "seq", width]))
        caches = [f"{{}}.{index}.{half}" for half in ("key", "value")]
        pasts, presents = ([cache.format(name) for cache in caches] for name in ("past_key_values", "present"))
        nodes.append(make("Attention", [at("query"), at("key"), at("value"), f"{mask}_bias" if mask else "", *pasts],
                          [at("out"), *presents], name=at("layer"), q_num_heads=HEADS, kv_num_heads=KV_HEADS, is_causal=1))
        nodes.append(make("Add", [hidden, at("out")], [at("hidden")]))
        hidden = at("hidden")
        inputs += [info(past, TensorProto.FLOAT, ["batch", KV_HEADS, "past", SIZE]) for past in pasts]
        outputs += [info(present, TensorProto.FLOAT, ["batch", KV_HEADS, "past + seq", SIZE]) for present in presents]
    nodes.append(make("MatMul", [hidden, "head"], ["logits"]))
    graph = helper.make_graph(nodes, "padding", inputs, outputs,
                              [numpy_helper.from_array(array, name) for name, array in constants.items()], value_info=declared)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11), path)


def ragged(model, library=None, compact=False):
    """Logits of the tokens of two sequences, a prompt padded behind and steps.

    A mask has a zero for each row of padding, or, where caches are compact, ones and then zeros."""
    session = cases.session(model, library)
    names, rng = [i.name for i in session.get_inputs()], np.random.default_rng(4)
    past = {name: np.zeros((2, KV_HEADS, 0, SIZE), np.float32) for name in names if name.startswith("past")}
    mask = (np.arange(PROMPT) < LENS[:, None]).astype(np.int64)
    for step in range(STEPS + 1):
        ids = rng.integers(0, VOCABULARY, (2, PROMPT if step == 0 else 1))
        real = mask[:, -ids.shape[1]:] == 1
        given = np.sort(mask, 1)[:, ::-1] if compact else mask
        feeds = {"input_ids": ids, "attention_mask": given, "other_mask": given}
        feeds = {name: np.ascontiguousarray(array) for name, array in feeds.items() if name in names}
        results = dict(zip([o.name for o in session.get_outputs()], session.run(None, {**feeds, **past})))
        past = {name: results[name.replace("past_key_values", "present")] for name in past}
        yield results["logits"][real]
        mask = np.concatenate([mask, np.ones((2, 1), np.int64)], 1)


def check_same(original, rewritten, library, compact=False):
    for got, want in zip(ragged(rewritten, library, compact), ragged(original), strict=True):
        assert np.abs(got - want).max() <= 1e-4


def rewritten(kvshare, tmp_path, layers, target):
    original, out = tmp_path / "original.onnx", tmp_path / "model.onnx"
    save_model(original, layers)
    report = json.loads(cases.rewrite(kvshare, original, out, "--to", target, "--json"))
    return original, out, [outcome for outcome in report["outcomes"] if outcome["rule"] == "own-attention"]


def seen_by(layer, mask):
    return f"{INDEX} {layer} is not known to hide the padding: it does not hide what '{mask}' does{TARGET}"


# The layers, and by layer the reason why it stays.
SEEN = {
    "sees_padding": (["attention_mask", ""], {0: seen_by(1, "attention_mask")}),
    "sees_it_between": (["attention_mask", "", "attention_mask"], {at: seen_by(1, "attention_mask") for at in (0, 2)}),
    "hides_by_another_mask": (["attention_mask", "other_mask"], {0: seen_by(1, "attention_mask")}),
    "hide_by_masks_in_turn": (["attention_mask", "other_mask", "attention_mask"],
                              {0: seen_by(1, "attention_mask"), 1: seen_by(2, "other_mask"), 2: seen_by(1, "attention_mask")}),
}


@pytest.mark.parametrize("target", ["kvshare", "ort"])
@pytest.mark.parametrize("name", SEEN)
def test_a_cache_keeps_its_padding_where_another_layer_sees_what_it_makes_of_it(kvshare, library, tmp_path, name, target):
    layers, reasons = SEEN[name]
    original, out, outcomes = rewritten(kvshare, tmp_path, layers, target)
    for at, outcome in enumerate(outcomes):
        assert outcome["applied"] == (at not in reasons)
        if at in reasons:
            assert (outcome["code"], outcome["reason"]) == ("padding-is-seen", reasons[at])
    assert cases.operators(out)["", "Attention"] == len(reasons)
    check_same(original, out, None if target == "ort" else library)


@pytest.mark.parametrize("name", SEEN)
def test_the_target_that_keeps_padding_takes_them_all(kvshare, library, tmp_path, name):
    original, out, _ = rewritten(kvshare, tmp_path, SEEN[name][0], "kvshare-attention")
    assert cases.operators(out)["kvshare", "Attention"] == len(SEEN[name][0])
    check_same(original, out, library)


@pytest.mark.parametrize("target", ["kvshare", "ort"])
@pytest.mark.parametrize("layers", [["attention_mask"] * 2, ["", "attention_mask"], ["", ""]])
def test_layers_that_see_nothing_of_compact_caches_are_turned_beside_them(kvshare, library, tmp_path, layers, target):
    original, out, outcomes = rewritten(kvshare, tmp_path, layers, target)
    assert [outcome["applied"] for outcome in outcomes] == [True, True]
    used = None if target == "ort" else library
    check_same(original, out, used)
    if "attention_mask" in layers:
        check_same(original, out, used, compact=True)
