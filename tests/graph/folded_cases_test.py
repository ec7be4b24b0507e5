"""Exports whose shapes a caller has fixed, as ONNX Runtime's own optimizer saves them: comparisons of columns and indices of
GatherND are constants. Truth is stock ONNX Runtime's answer to the export before that."""

import itertools

import cases
import numpy as np
import onnx
import onnxruntime as ort
import pytest

FORMS = ["torch_gemma4", "torch_gemma3", "torch_llama"]
# Batch, new tokens, past ones: a prompt, a step and a chunk.
SHAPES = [(1, 13, 0), (1, 1, 12), (2, 4, 9)]
CHUNKS_OF_TWO = "own-attention: has 4 new tokens and batch 2; ONNX Runtime's GroupQueryAttention takes several new tokens after a past"


def extents_of(shape):
    """By the names that PyTorch's exporter and mobius give them."""
    batch, new, past = shape
    return {"batch": batch, "seq": new, "past": past, "total": past + new, "sequence_len": new, "past_sequence_len": past,
            "past_seq_len + seq_len": past + new}


def folded(case, shape, out, mask=None):
    """`mask`: becomes a constant, too."""
    model = onnx.load(str(cases.DATA / case / "model.onnx"))
    if mask is not None:
        held = onnx.numpy_helper.from_array(mask, "attention_mask")
        given = [value for value in model.graph.input if value.name != "attention_mask"]
        del model.graph.input[:]
        model.graph.input.extend(given)
        model.graph.initializer.append(held)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(out)
    for symbol, extent in extents_of(shape).items():
        options.add_free_dimension_override_by_name(symbol, extent)
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return out


def answers(session, shape, mask=None):
    batch, new, past = shape
    rng = np.random.default_rng(8)
    feeds = {}
    for value in sorted(session.get_inputs(), key=lambda each: each.name):
        extents = [extents_of(shape).get(extent, extent) for extent in value.shape]
        if value.name == "attention_mask":
            feeds[value.name] = np.ones((batch, past + new), np.int64) if mask is None else mask
        elif value.name == "position_ids":
            feeds[value.name] = np.tile(np.arange(past, past + new), (batch, 1))
        elif value.name == "input_ids":
            feeds[value.name] = np.random.default_rng(9).integers(3, 48, extents)
        else:
            feeds[value.name] = rng.standard_normal(extents).astype(np.float32)
    return session.run(None, feeds)


def holes(shape):
    mask = np.ones((shape[0], shape[1] + shape[2]), np.int64)
    mask[:, 1:3] = 0
    return mask


@pytest.mark.parametrize("case,shape", itertools.product(FORMS, SHAPES))
def test_windows_are_read_from_the_values_and_every_target_takes_the_layers(kvshare, library, tmp_path, case, shape):
    original = cases.DATA / case / "model.onnx"
    model = folded(case, shape, tmp_path / "folded.onnx")
    assert not {"Range", "LessOrEqual"} & {op for _, op in cases.operators(model)}
    wanted = [layer["window"] for layer in cases.inspect(kvshare, original)["layers"]]
    assert [layer["window"] for layer in cases.inspect(kvshare, model)["layers"]] == wanted
    want = answers(cases.session(original), shape)
    for target in cases.TARGETS:
        out = tmp_path / f"{target}.onnx"
        report = cases.rewrite(kvshare, model, out, "--to", target)
        if target == "ort" and shape[0] > 1:
            assert CHUNKS_OF_TWO in report, report
            continue
        assert "left alone" not in report, report
        assert not cases.operators(out)["", "Attention"] and not cases.operators(out)["", "GatherND"]
        for got, expected in zip(answers(cases.session(out, None if target == "ort" else library), shape), want, strict=True):
            assert np.abs(got - expected).max() <= 1e-4


@pytest.mark.parametrize("case,shape", itertools.product(["default_attention"], SHAPES))
def test_bounds_of_slices_are_read_as_the_numbers_that_they_became(kvshare, library, tmp_path, case, shape):
    """mobius counts the ones of attention_mask, and takes the last of them by Slice."""
    original = cases.DATA / case / "model.onnx"
    model = folded(case, shape, tmp_path / "folded.onnx")
    wanted = [layer["window"] for layer in cases.inspect(kvshare, original)["layers"]]
    assert [layer["window"] for layer in cases.inspect(kvshare, model)["layers"]] == wanted
    want = answers(cases.session(original), shape)
    for target in ["kvshare", "kvshare-attention"]:
        out = tmp_path / f"{target}.onnx"
        cases.rewrite(kvshare, model, out, "--to", target)
        assert not cases.operators(out)["", "Attention"] and not cases.operators(out)["", "CumSum"]
        for got, expected in zip(answers(cases.session(out, library), shape), want, strict=True):
            assert np.abs(got - expected).max() <= 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_padding_anywhere_stays_the_callers(kvshare, library, tmp_path, shape):
    original = cases.DATA / "torch_gemma4" / "model.onnx"
    model, out = folded("torch_gemma4", shape, tmp_path / "folded.onnx"), tmp_path / "out.onnx"
    cases.rewrite(kvshare, model, out, "--to", "kvshare-attention")
    mask = holes(shape)
    got, want = answers(cases.session(out, library), shape, mask), answers(cases.session(original), shape, mask)
    seen = 4 if shape[2] == 0 else 0  # queries that are padding, or see padding alone, have no meaning
    assert np.abs(got[0][:, seen:] - want[0][:, seen:]).max() <= 1e-4


@pytest.mark.parametrize("target,case,shape", itertools.product(cases.TARGETS, ["torch_gemma4", "torch_llama"], SHAPES))
def test_a_whole_mask_that_is_a_constant_needs_no_mask(kvshare, library, tmp_path, target, case, shape):
    """Nothing is padding: GroupQueryAttention counts all keys that there are."""
    original = cases.DATA / case / "model.onnx"
    ones = np.ones((shape[0], shape[1] + shape[2]), np.int64)
    model, out = folded(case, shape, tmp_path / "folded.onnx", ones), tmp_path / "out.onnx"
    assert not {"And", "GatherND"} & {op for _, op in cases.operators(model)}
    report = cases.rewrite(kvshare, model, out, "--to", target)
    if target == "ort" and shape[0] > 1:
        assert CHUNKS_OF_TWO in report, report
        return
    assert "left alone" not in report and "changed contract" not in report, report
    assert not cases.operators(out)["", "Attention"]
    assert all(len(node.input) == 3 for node in cases.load(out).graph.node if node.op_type == "Attention")
    used = None if target == "ort" else library
    for got, expected in zip(answers(cases.session(out, used), shape), answers(cases.session(original), shape), strict=True):
        assert np.abs(got - expected).max() <= 1e-4


def test_caches_whose_rows_are_counted_keep_them(kvshare, tmp_path):
    shape = (1, 1, 12)
    model = folded("torch_mistral", shape, tmp_path / "folded.onnx", np.ones((1, 13), np.int64))
    report = cases.rewrite(kvshare, model, tmp_path / "out.onnx", "--to", "kvshare", "--window-caches")
    assert "is counted from the rows of a cache that would keep a window; needs the number of tokens so far" in report, report


def test_a_constant_that_hides_what_no_window_hides_says_which_key(kvshare, tmp_path):
    shape = (1, 1, 12)
    model = folded("torch_llama", shape, tmp_path / "folded.onnx", holes(shape))
    for layer in cases.inspect(kvshare, model)["layers"]:
        assert layer["note"].endswith("hides key 1 from query 0, which sees keys on both sides of it")
