"""Gemma 4 with image blocks as mobius exports it: tokens of one image see each other beside causality and a window. Truth is
the original's own answer."""

import cases
import numpy as np
import pytest

CASE = "mobius_vision"
IMAGE = 31


class Steps:
    """A prompt of text and two images, one longer than the window; then a step and a chunk of text."""

    def __init__(self, batch):
        self.ids = np.random.default_rng(4).integers(3, IMAGE, (batch, 30))
        self.ids[:, 2:6] = self.ids[:, 9:21] = IMAGE

    def run(self, model, library=None):
        decoder, logits, at = cases.open_decoder(model, len(self.ids), library), [], 0
        for new in (25, 1, 4):
            end = at + new
            mask, positions = np.ones((len(self.ids), end), np.int64), np.tile(np.arange(at, end), (len(self.ids), 1))
            logits.append(decoder.step(self.ids[:, at:end], mask, positions))
            at = end
        return logits


def test_inspect_says_that_the_mask_is_needed_whole(kvshare):
    layers = cases.inspect(kvshare, cases.DATA / CASE / "model.onnx")["layers"]
    assert [(layer["kind"], layer["source"]) for layer in layers] == [("own", -1), ("own", -1), ("shared", 0), ("shared", 1)]
    assert all("lets queries see more than causality and a window do; it is needed whole" in layer["note"] for layer in layers)


@pytest.mark.parametrize("batch", [1, 2])
def test_masks_stay_and_borrowed_keys_are_read_where_they_lie(kvshare, library, tmp_path, batch):
    original, out = cases.DATA / CASE / "model.onnx", tmp_path / "model.onnx"
    report = cases.rewrite(kvshare, original, out, "--to", "kvshare-attention")
    assert "2 x own-key-mask" in report and "2 x shared-attention" in report and "left alone" not in report
    assert cases.operators(out)["kvshare", "Attention"] == 4 and not cases.operators(out)["", "Attention"]
    assert cases.inspect(kvshare, out)["borrowed_copies"] == 0
    steps = Steps(batch)
    for got, want in zip(steps.run(out, library), steps.run(original), strict=True):
        assert np.abs(got - want).max() <= 1e-4


def test_an_image_matters(library):
    """Or the case would prove nothing."""
    steps, text = Steps(1), Steps(1)
    text.ids = np.where(text.ids == IMAGE, 5, text.ids)
    original = cases.DATA / CASE / "model.onnx"
    assert np.abs(steps.run(original)[0] - text.run(original)[0]).max() > 1e-2


@pytest.mark.parametrize("target", ["kvshare", "ort"])
def test_other_targets_say_which_one_serves(kvshare, tmp_path, target):
    report = cases.rewrite(kvshare, cases.DATA / CASE / "model.onnx", tmp_path / "model.onnx", "--to", target)
    assert "it is needed whole" in report and "needs GroupQueryAttention there, or --to kvshare-attention" in report
