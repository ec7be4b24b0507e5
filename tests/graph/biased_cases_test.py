"""GroupQueryAttention with an attention_bias, as transformers.js's exports of Gemma have it: here the masks of one export of
mobius given to the very model in upstream's shared form, whose local_window_size goes. Truth is the golden logits."""

import itertools

import cases
import onnx
import pytest

PAIRS = {"head_shared_gqa": "default_attention", "head_b2_ragged": "mixed_bias_b2_ragged_causal0"}
BIAS = 10


def masks_of(case, windows):
    """The nodes and initializers of a case's masks under names of their own, and each mask by whether it has a window."""
    graph = cases.load(cases.DATA / case / "model.onnx").graph
    makers = {output: node for node in graph.node for output in node.output}
    held = {tensor.name: tensor for tensor in graph.initializer}
    outside = {value.name for value in graph.input} | {""}
    attention = [node for node in graph.node if node.op_type in ("Attention", "GroupQueryAttention")]
    masks = {window > 0: node.input[3] for node, window in zip(attention, windows, strict=True) if node.op_type == "Attention"}
    needed, nodes, tensors, open_values = set(), [], [], list(masks.values())
    while open_values:
        value = open_values.pop()
        if value in outside or value in needed:
            continue
        needed.add(value)
        open_values += makers[value].input if value in makers else []
    rename = lambda name: name if name in outside else f"bias.{name}"
    for node in graph.node:
        if set(node.output) & needed:
            node.input[:], node.output[:] = map(rename, list(node.input)), map(rename, list(node.output))
            nodes.append(node)
    for name in needed & set(held):
        held[name].name = rename(name)
        tensors.append(held[name])
    return nodes, tensors, {window: rename(mask) for window, mask in masks.items()}


def biased(kvshare, case, out):
    windows = [layer["window"] for layer in cases.inspect(kvshare, cases.DATA / case / "model.onnx")["layers"]]
    nodes, tensors, masks = masks_of(PAIRS[case], windows)
    model = onnx.load(str(cases.DATA / case / "model.onnx"))
    layers = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    for node, window in zip(layers, windows, strict=True):
        node.input.extend([""] * (BIAS - len(node.input)) + [masks[window > 0]])
        for attribute in [each for each in node.attribute if each.name == "local_window_size"]:
            node.attribute.remove(attribute)
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes + rest)
    model.graph.initializer.extend(tensors)
    onnx.save(model, str(out))
    return windows


def biases(model):
    return sum(len(node.input) > BIAS and node.input[BIAS] != "" for node in cases.load(model).graph.node
               if node.op_type == "GroupQueryAttention")


@pytest.mark.parametrize("case", PAIRS)
def test_the_form_is_right_and_inspect_reads_its_windows(kvshare, tmp_path, case):
    model = tmp_path / "biased.onnx"
    windows = biased(kvshare, case, model)
    assert [layer["window"] for layer in cases.inspect(kvshare, model)["layers"]] == windows
    assert max(cases.differences(model, case)) <= cases.tolerance(case)


@pytest.mark.parametrize("case,target", itertools.product(PAIRS, ["kvshare", "ort"]))
def test_a_bias_that_is_a_window_becomes_one(kvshare, library, tmp_path, case, target):
    model, out = tmp_path / "biased.onnx", tmp_path / "out.onnx"
    windows = biased(kvshare, case, model)
    report = cases.rewrite(kvshare, model, out, "--to", target)
    assert f"{len(windows)} x read-bias" in report and "left alone" not in report
    found = cases.inspect(kvshare, out)
    assert [layer["window"] for layer in found["layers"]] == windows
    assert found["mask_nodes"] == 0 and biases(out) == 0
    assert max(cases.differences(out, case, library if target == "kvshare" else None)) <= cases.tolerance(case)


@pytest.mark.parametrize("case", PAIRS)
def test_a_bias_that_stays_is_served(kvshare, library, tmp_path, case):
    model, out = tmp_path / "biased.onnx", tmp_path / "out.onnx"
    windows = biased(kvshare, case, model)
    cases.rewrite(kvshare, model, out, "--to", "kvshare", "--skip", "read-bias")
    assert biases(out) == len(windows) == cases.operators(out)["kvshare", "GroupQueryAttention"]
    assert max(cases.differences(out, case, library)) <= cases.tolerance(case)


def test_window_caches_follow_the_window_that_a_bias_told(kvshare, library, tmp_path):
    model, out = tmp_path / "biased.onnx", tmp_path / "out.onnx"
    biased(kvshare, "head_shared_gqa", model)
    report = cases.rewrite(kvshare, model, out, "--to", "kvshare", "--window-caches")
    assert "window-caches" in report and "left alone" not in report
    assert max(cases.differences(out, "head_shared_gqa", library)) <= cases.tolerance("head_shared_gqa")
    report = cases.rewrite(kvshare, model, out, "--to", "kvshare", "--window-caches", "--skip", "read-bias")
    assert "has its window of 8 keys in attention_bias; needs local_window_size" in report
