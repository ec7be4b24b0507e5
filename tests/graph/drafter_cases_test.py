"""A drafter as mobius exports it: every layer reads caches that are graph inputs. Truth is the original's own answer."""

import itertools

import cases
import numpy as np
import pytest

FORMS = ["mobius_drafter_default", "mobius_drafter_cpu"]


def answers(model, library, batch, queries, keys, window_keys, mask):
    """All outputs of a step of `queries` tokens over `keys` cached ones, of which sliding layers hold `window_keys`."""
    session = cases.session(model, library)
    rng = np.random.default_rng(3)
    feeds = {}
    for name, shape in {"inputs_embeds": (batch, queries, 48),
                        "shared_kv.sliding_attention.key": (batch, 1, window_keys, 16),
                        "shared_kv.sliding_attention.value": (batch, 1, window_keys, 16),
                        "shared_kv.full_attention.key": (batch, 1, keys, 32),
                        "shared_kv.full_attention.value": (batch, 1, keys, 32)}.items():
        feeds[name] = rng.standard_normal(shape).astype(np.float32)
    feeds["attention_mask"] = mask
    feeds["position_ids"] = np.tile(np.arange(keys - queries, keys), (batch, 1))
    return session.run(None, {value.name: feeds[value.name] for value in session.get_inputs()})


def masks(batch, keys):
    holes = np.ones((batch, keys), np.int64)
    holes[:, 2:5] = 0
    return {"all": np.ones((batch, keys), np.int64), "holes": holes}


@pytest.mark.parametrize("queries,keys,window_keys", [(1, 20, 20), (4, 20, 20), (1, 5, 5), (1, 20, 12)])
def test_attention_over_graph_inputs_takes_them_as_they_are(kvshare, library, tmp_path, queries, keys, window_keys):
    original, out = cases.DATA / "mobius_drafter_default" / "model.onnx", tmp_path / "model.onnx"
    report = cases.rewrite(kvshare, original, out, "--to", "kvshare-attention")
    assert "3 x shared-attention" in report and "left alone" not in report
    ops, found = cases.operators(out), cases.inspect(kvshare, out)
    assert ops["kvshare", "Attention"] == 3 and not any(ops["", op] for op in ["Attention", *cases.MASK_OPS])
    assert found["borrowed_copies"] == 0 and found["mask_nodes"] == 0
    for mask in masks(1, keys).values():
        got, want = (answers(model, used, 1, queries, keys, window_keys, mask)
                     for model, used in [(out, library), (original, None)])
        for a, b in zip(got, want, strict=True):
            assert np.abs(a - b).max() <= 1e-4


@pytest.mark.parametrize("target", ["kvshare", "ort"])
def test_a_key_of_length_0_over_graph_inputs_becomes_an_external_key(kvshare, library, tmp_path, target):
    original, out = cases.DATA / "mobius_drafter_cpu" / "model.onnx", tmp_path / "model.onnx"
    report = cases.rewrite(kvshare, original, out, "--to", target)
    assert "3 x unname-presents" in report
    assert cases.inspect(kvshare, out)["named_unused_presents"] == 0
    ours = cases.operators(out)["kvshare", "GroupQueryAttention"]
    assert ours == (3 if target == "kvshare" else 0)
    for batch, keys in [(1, 20), (3, 9)]:
        mask = np.ones((batch, keys), np.int64)
        got, want = (answers(model, used, batch, 1, keys, keys, mask)
                     for model, used in [(out, library if ours else None), (original, None)])
        for a, b in zip(got, want, strict=True):
            assert np.abs(a - b).max() <= 1e-4


@pytest.mark.parametrize("form,target", itertools.product(FORMS, cases.TARGETS))
def test_a_layer_over_graph_inputs_is_turned_or_says_why_not(kvshare, tmp_path, form, target):
    out = tmp_path / "model.onnx"
    report = cases.rewrite(kvshare, cases.DATA / form / "model.onnx", out, "--to", target)
    layers = cases.inspect(kvshare, out)["layers"]
    assert [(layer["kind"], layer["source"], layer["window"]) for layer in layers] == [
        ("shared", -1, 8), ("shared", -1, 8), ("shared", -1, -1)]
    if target == "kvshare-attention" and form.endswith("cpu"):
        assert "is GroupQueryAttention already" in report
    if target != "kvshare-attention" and form.endswith("default"):
        assert "borrows from an input of the graph, not from a layer of this model" in report
    assert cases.rewrite(kvshare, out, tmp_path / "again.onnx", "--to", target) and cases.load(out) == cases.load(
        tmp_path / "again.onnx")
