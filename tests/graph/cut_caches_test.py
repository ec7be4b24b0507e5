"""Decoders that PyTorch exports with windows in their caches (tests/data/cut_torch_*): past and present hold window - 1 rows."""

import itertools
import json

import cases
import numpy as np
import onnxruntime as ort
import pytest

CUT = ["cut_torch_gemma4", "cut_torch_mistral"]
KEEP = ["kvshare-attention", "onnx25"]  # targets that leave caches as they are
WINDOW = 5


def answers(model, pattern, library=None):
    """Logits of the tokens of two sequences.

    The mask has a column for each row of the first cache and each new token, as such a model asks for."""
    session = cases.session(model, library)
    rng, decoder = np.random.default_rng(8), cases.Decoder(session, 2)
    ids, mask = rng.integers(3, 48, (2, 19)), np.ones((2, 19), np.int64)
    mask[1, {"none": slice(0, 0), "left": slice(0, 5), "middle": slice(8, 10)}[pattern]] = 0
    positions, at = np.maximum(mask.cumsum(1) - 1, 0), 0
    for new in (11, 1, 3, 1, 1, 2):
        end = at + new
        kept = decoder.past["past_key_values.0.key"].shape[2]
        # Layers without a window read as many columns as their own caches have rows.
        columns = mask[:, :end] if "gemma4" in str(model) else mask[:, at - kept:end]
        logits = decoder.step(ids[:, at:end], columns, positions[:, at:end])
        yield logits[mask[:, at:end] == 1]
        at = end


def layers_of(kvshare, model):
    return cases.inspect(kvshare, model)["layers"]


@pytest.mark.parametrize("case", CUT)
def test_windows_and_rows_are_those_of_the_model(kvshare, case):
    about = json.loads((cases.DATA / case / "case.json").read_text())
    layers = layers_of(kvshare, cases.DATA / case / "model.onnx")
    sliding = [layer for layer, kind in zip(layers, about["layer_types"], strict=True) if kind.startswith("sliding")]
    assert all(layer["window"] == WINDOW and layer["note"] == "" and layer["expansion"] > 1 for layer in sliding), sliding
    own = [layer for layer in sliding if layer["kind"] == "own"]
    assert own and all(layer["cache_rows"] == WINDOW - 1 and "of which 4 rows are kept" in layer["written"] for layer in own)
    assert {str(l["index"]): l["source"] for l in layers if l["kind"] == "shared"} == about["borrows"]


@pytest.mark.parametrize("target", KEEP)
def test_a_model_of_windows_alone_gives_the_logits_of_pytorch(kvshare, library, tmp_path, target):
    case, out = "cut_torch_mistral", tmp_path / "model.onnx"
    assert "left alone" not in cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, "--to", target)
    assert max(cases.differences(out, case, library)) <= cases.tolerance(case)
    assert max(cases.differences(cases.DATA / case / "model.onnx", case)) <= cases.tolerance(case)


@pytest.mark.parametrize("target,case,pattern", itertools.product(KEEP, CUT, ["none", "left", "middle"]))
def test_past_the_window_the_answer_is_the_originals(kvshare, library, tmp_path, target, case, pattern):
    original, out = cases.DATA / case / "model.onnx", tmp_path / f"{case}.onnx"
    cases.rewrite(kvshare, original, out, "--to", target)
    for got, want in zip(answers(out, pattern, library), answers(original, pattern), strict=True):
        assert np.abs(got - want).max() <= 1e-4


# The exporter counts the queries of all layers by the rows of the first cache.
@pytest.mark.parametrize("target", ["kvshare", "ort", *KEEP])
def test_layers_whose_queries_another_cache_counts_stay_and_say_so(kvshare, tmp_path, target):
    original, out = cases.DATA / "cut_torch_gemma4" / "model.onnx", tmp_path / "model.onnx"
    report = cases.rewrite(kvshare, original, out, "--to", target)
    assert ("has its first query at column kept, and the first new one of its past + seq keys at past; needs one column for both"
            in report)
    assert cases.operators(out)["", "Attention"] == (5 if target in ("kvshare", "ort", "onnx25") else 2)


@pytest.mark.parametrize("target,case", itertools.product(["kvshare", "ort"], CUT))
def test_compact_caches_leave_cut_ones_alone_with_a_reason(kvshare, tmp_path, target, case):
    original, out = cases.DATA / case / "model.onnx", tmp_path / "model.onnx"
    report = json.loads(cases.rewrite(kvshare, original, out, "--to", target, "--json"))
    said = [outcome for outcome in report["outcomes"] if outcome["rule"] == "own-attention"]
    assert said and not any(outcome["applied"] for outcome in said)
    assert any(outcome["code"] == "cache-is-cut" and outcome["reason"].endswith("or an export with whole caches")
               for outcome in said)
    assert len(layers_of(kvshare, out)) == cases.operators(out)["", "Attention"]


@pytest.mark.parametrize("case", ["cut_torch_mistral"])
def test_the_execution_provider_takes_them(kvshare, library, case):
    if not hasattr(ort, "get_ep_devices"):
        pytest.skip("this ONNX Runtime has no plug-in providers")
    folder = cases.DATA / case
    result = cases.run(kvshare, "verify", folder / "model.onnx", "--golden", folder, "--via", "ep", "--lib", library)
    assert result.returncode == 0, result.stdout + result.stderr
