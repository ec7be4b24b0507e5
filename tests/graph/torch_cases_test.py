"""Hugging Face decoders as PyTorch exports them (tests/data/torch_*): caches joined by Concat, repeated heads, masks of columns."""

import itertools
import json

import cases
import numpy as np
import pytest

TORCH = sorted(path.name for path in cases.DATA.glob("torch_*"))
SHARED = ["torch_gemma3n", "torch_gemma4"]
MASK_OPS = ["LessOrEqual", "Greater", "And", "GatherND"]


def case_of(case):
    return json.loads((cases.DATA / case / "case.json").read_text())


def windows_of(case):
    about = case_of(case)
    return [about["sliding_window"] if kind.startswith("sliding") else -1 for kind in about["layer_types"]]


@pytest.mark.parametrize("case", TORCH)
def test_heads_windows_and_borrowers_are_those_of_the_model(kvshare, case):
    about, found = case_of(case), cases.inspect(kvshare, cases.DATA / case / "model.onnx")
    layers = found["layers"]
    assert [layer["window"] for layer in layers] == windows_of(case)
    assert all(layer["note"] == "" for layer in layers), layers
    assert {str(l["index"]): l["source"] for l in layers if l["kind"] == "shared"} == about["borrows"]
    assert all(layer["expansion"] > 1 and layer["head_size"] > 0 for layer in layers)


@pytest.mark.parametrize("target,case", itertools.product(cases.TARGETS, TORCH))
def test_every_target_gives_the_logits_of_pytorch(kvshare, library, tmp_path, target, case):
    out = tmp_path / "model.onnx"
    report = cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, "--to", target)
    assert "left alone" not in report
    ops = cases.operators(out)
    layers = len(case_of(case)["layer_types"])
    expected = {"kvshare": ("kvshare", "GroupQueryAttention"), "kvshare-attention": ("kvshare", "Attention"),
                "ort": ("com.microsoft", "GroupQueryAttention")}[target]
    assert ops[expected] == layers and not ops["", "Attention"], ops
    assert not any(ops["", op] for op in MASK_OPS), ops
    found = cases.inspect(kvshare, out)
    assert [layer["window"] for layer in found["layers"]] == windows_of(case)
    assert found["repeat_nodes"] == 0
    assert max(cases.differences(out, case, None if target == "ort" else library)) <= cases.tolerance(case)


@pytest.mark.parametrize("target,case", itertools.product(cases.TARGETS, TORCH))
def test_a_second_rewrite_changes_nothing(kvshare, tmp_path, target, case):
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    cases.rewrite(kvshare, cases.DATA / case / "model.onnx", first, "--to", target)
    report = cases.rewrite(kvshare, first, second, "--to", target)
    assert "have the target's form already" in report or "nothing to do" in report
    assert cases.load(first) == cases.load(second)


@pytest.mark.parametrize("case", TORCH)
def test_repeated_heads_go_alone_where_nothing_else_is_wanted(kvshare, tmp_path, case):
    """Exact: stock ONNX Runtime computes the same sums."""
    out = tmp_path / "model.onnx"
    report = cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, "--to", "ort", "--skip", "own-attention")
    assert "repeat-kv" in report
    assert cases.operators(out)["", "Attention"] == len(case_of(case)["layer_types"])
    assert cases.inspect(kvshare, out)["repeat_nodes"] == 0
    assert max(cases.differences(out, case)) <= cases.tolerance(case)


class Ragged:
    """A prompt and steps of two sequences whose masks are no triangle; ONNX Runtime's own answer to the original is the truth."""

    def __init__(self, pattern, seed):
        rng = np.random.default_rng(seed)
        self.ids = rng.integers(3, 48, (2, 17))
        self.mask = np.ones((2, 17), np.int64)
        if pattern == "left":
            self.mask[1, :6] = 0
        elif pattern == "middle":  # as right padding of the prompt leaves it
            self.mask[1, 7:12] = 0
        else:
            self.mask[:, 1:] = rng.integers(0, 2, (2, 16))
        self.positions = np.maximum(self.mask.cumsum(1) - 1, 0)

    def run(self, model, library=None, spare=0):
        """Logits of tokens that are kept; `spare` columns of the mask lie past the keys, as a caller may leave them."""
        decoder, logits, at = cases.open_decoder(model, 2, library), [], 0
        for new in (12, 1, 3, 1):
            end = at + new
            out = decoder.step(self.ids[:, at:end], self.mask[:, :end + spare], self.positions[:, at:end])
            logits.append(out[self.mask[:, at:end] == 1])
            at = end
        return logits


@pytest.mark.parametrize("pattern", ["left", "middle", "random"])
@pytest.mark.parametrize("case", ["torch_mistral", "torch_gemma3", "torch_gemma4"])
def test_padding_anywhere_hides_what_it_hid(kvshare, library, tmp_path, case, pattern):
    original, out = cases.DATA / case / "model.onnx", tmp_path / "model.onnx"
    cases.rewrite(kvshare, original, out, "--to", "kvshare-attention")
    ragged = Ragged(pattern, 5)
    for got, want in zip(ragged.run(out, library), ragged.run(original), strict=True):
        assert np.abs(got - want).max() <= 1e-4


def test_columns_of_the_mask_past_the_keys_are_left_out_as_they_were(kvshare, library, tmp_path):
    original, out = cases.DATA / "torch_gemma3" / "model.onnx", tmp_path / "model.onnx"
    cases.rewrite(kvshare, original, out, "--to", "kvshare-attention")
    ragged = Ragged("left", 6)
    ragged.mask = np.concatenate([ragged.mask, np.zeros((2, 4), np.int64)], 1)
    for got, want in zip(ragged.run(out, library, 4), ragged.run(original, spare=4), strict=True):
        assert np.abs(got - want).max() <= 1e-4


@pytest.mark.parametrize("target", cases.TARGETS)
def test_a_dry_run_tells_what_would_happen_and_writes_nothing(kvshare, tmp_path, target):
    out = tmp_path / "model.onnx"
    source = cases.DATA / "torch_gemma4" / "model.onnx"
    dry = cases.rewrite(kvshare, source, out, "--to", target, "--dry-run")
    assert not out.exists()
    wet = cases.rewrite(kvshare, source, out, "--to", target)
    rules = {"kvshare": ["own-attention", "shared-attention", "own-layers"], "ort": ["own-attention", "shared-attention"],
             "kvshare-attention": ["own-key-mask", "shared-attention"]}[target]
    for rule in ["repeat-kv", "dead-nodes", *rules]:
        if rule != "own-layers":  # they are kvshare's already
            assert rule in dry and rule in wet
