"""rewrite --kv-cache: own layers' caches hold 16-bit floats or codes, and borrowers read them. The truth is numpy's
quantization of what ONNX Runtime's own caches hold, golden logits, and attention in float64."""

import cases
import kv_cache_errors
import numpy as np
import pytest

CODE_OF_LARGEST = {"int8": 127 / 1.5, "int4": 7}  # seen in the calibration
# What a narrow cache may cost, in the measures of kv_cache_errors.py: docs/caches.md has what was seen.
CASE_LIMIT = {"fp16": 1e-2, "bf16": 6e-2, "int8": 0.25, "fp8": 0.75, "int4": 1.5}
ATTENTION_LIMIT = {"fp16": 2e-3, "bf16": 2e-2, "int8": 0.15, "fp8": 0.15, "int4": 0.6}


def prompt(tmp_path, batch=2, tokens=40):
    ids = np.random.default_rng(3).integers(0, 64, (batch, tokens))
    np.savez(tmp_path / "inputs.npz", input_ids=ids)
    return tmp_path / "inputs.npz", ids


def narrow(kvshare, case, tmp_path, cache, *options, name="model.onnx"):
    inputs, _ = prompt(tmp_path)  # ids that every case knows
    return kv_cache_errors.narrow(kvshare, cases.DATA / case / "model.onnx", inputs, tmp_path / name, cache, *options)


def presents(model, ids, library=None):
    decoder = cases.open_decoder(model, len(ids), library)
    decoder.step(ids, np.ones_like(ids), np.broadcast_to(np.arange(ids.shape[1]), ids.shape))
    return decoder.past


def codes_of(stored, cache, head_size):
    if cache == "int8":
        return stored.astype(int)
    return (np.stack([stored & 15, stored >> 4], -1).reshape(*stored.shape[:-1], -1)[..., :head_size]).astype(int) - 8


@pytest.mark.parametrize("cache", CODE_OF_LARGEST)
@pytest.mark.parametrize("options", [[], ["--scale-per-tensor"]])
@pytest.mark.parametrize("case", ["mixed_bias_causal0", "head_shared_gqa", "default_attention"])
def test_caches_hold_the_nearest_codes_of_the_original_ones(kvshare, library, tmp_path, case, cache, options):
    """Before any error is handed on: the first layer's; calibrated on the very prompt, so that nothing is clamped."""
    narrow(kvshare, case, tmp_path, cache, *options)
    _, ids = prompt(tmp_path)
    floats, stored = presents(cases.DATA / case / "model.onnx", ids), presents(tmp_path / "model.onnx", ids, library)
    assert set(floats) == set(stored)
    for side in ("key", "value"):
        values = floats[f"past_key_values.0.{side}"]
        largest = np.abs(values).max((0, 2), keepdims=True) if not options else np.abs(values).max()
        codes = codes_of(stored[f"past_key_values.0.{side}"], cache, values.shape[3])
        exact = values / (largest / CODE_OF_LARGEST[cache])
        assert np.abs(codes - exact).max() <= 0.5 + 1e-3
        assert np.abs(codes).max() == round(CODE_OF_LARGEST[cache])


@pytest.mark.parametrize("cache", kv_cache_errors.TYPES)
@pytest.mark.parametrize("case", kv_cache_errors.CASES)
def test_rows_of_a_case_stay_near_the_goldens(kvshare, library, tmp_path, case, cache):
    assert kv_cache_errors.case_errors(kvshare, library, tmp_path, case, cache).max() <= CASE_LIMIT[cache]


@pytest.mark.parametrize("cache", kv_cache_errors.TYPES)
@pytest.mark.parametrize("kind", kv_cache_errors.KINDS)
def test_rows_of_hard_attention_stay_near_float64(kvshare, library, tmp_path, kind, cache):
    assert kv_cache_errors.attention_errors(kvshare, library, tmp_path, kind, cache).max() <= ATTENTION_LIMIT[cache]


def test_a_scale_for_each_channel_is_what_outliers_need(kvshare, library, tmp_path):
    apart, together = (kv_cache_errors.attention_errors(kvshare, library, tmp_path, "outlier channels", "int8", *options).max()
                       for options in ([], ["--scale-per-tensor"]))
    assert apart < together / 3


@pytest.mark.parametrize("case", ["head_shared_gqa", "mixed_bias_causal0"])
def test_window_sized_caches_and_fast_prefill_change_nothing(kvshare, library, tmp_path, case):
    """Over more than four windows of decode after a prompt of three, the same codes in smaller caches."""
    narrow(kvshare, case, tmp_path, "int8", name="whole.onnx")
    narrow(kvshare, case, tmp_path, "int8", "--window-caches=4", "--fast-prefill", name="small.onnx")
    window = max(layer["window"] for layer in cases.inspect(kvshare, tmp_path / "small.onnx")["layers"])
    edges = [0, 3 * window, *range(3 * window + 1, 7 * window + 2)]
    ids = np.random.default_rng(5).integers(0, 100, (1, edges[-1]))
    whole, small = (cases.open_decoder(tmp_path / name, 1, library) for name in ("whole.onnx", "small.onnx"))
    for begin, end in zip(edges, edges[1:]):
        step = ids[:, begin:end], np.ones((1, end), np.int64), np.arange(begin, end)[None]
        want, got = whole.step(*step)[:, -1:], small.step(*step)
        # Sums over other tiles may tip a code, and codes tip more codes in layers behind.
        np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())
    assert {array.dtype for array in small.past.values()} == {np.dtype(np.int8)}
    assert min(array.shape[2] for array in small.past.values()) == window + 4


@pytest.mark.parametrize("cache", kv_cache_errors.TYPES)
def test_verify_has_a_tolerance_for_each_type(kvshare, library, tmp_path, cache):
    narrow(kvshare, "head_shared_gqa", tmp_path, cache)
    source = cases.DATA / "head_shared_gqa" / "model.onnx"
    result = cases.run(kvshare, "verify", tmp_path / "model.onnx", "--against", source, "--prompt", "20", "--steps", "12")
    assert result.returncode == 0, result.stdout + result.stderr
    halves = {"fp16": "the default for a model in f16", "bf16": "the default for a model in bf16"}
    assert halves.get(cache, "equal: codes are right, and the model without them is within 0.0001") in result.stdout


@pytest.mark.parametrize("case", ["e2b_heads"])
def test_inspect_counts_their_bytes(kvshare, tmp_path, case):
    rows = {}
    for cache in ("fp16", "int8", "int4"):
        narrow(kvshare, case, tmp_path, cache)
        rows[cache] = [layer["row_bytes"] for layer in cases.inspect(kvshare, tmp_path / "model.onnx")["layers"]]
    assert rows == {"fp16": [1024, 2048, 0, 0], "int8": [512, 1024, 0, 0], "int4": [256, 512, 0, 0]}


def test_a_second_rewrite_changes_nothing(kvshare, tmp_path):
    report = narrow(kvshare, "mixed_bias_asis", tmp_path, "int8")
    assert "changed contract: caches hold int8, a scale for each channel: values beyond 1.5 times the largest seen are clamped" in report
    again = cases.rewrite(kvshare, tmp_path / "model.onnx", tmp_path / "again.onnx", "--to", "kvshare")
    assert "nothing to do" in again
    assert cases.load(tmp_path / "model.onnx") == cases.load(tmp_path / "again.onnx")


def test_fp8_needs_no_calibration(kvshare, library, tmp_path):
    source = cases.DATA / "head_shared_gqa" / "model.onnx"
    report = cases.rewrite(kvshare, source, tmp_path / "model.onnx", "--to", "kvshare", "--kv-cache", "fp8")
    assert "caches hold fp8, scale 1: values beyond 448 are clamped" in report
    result = cases.run(kvshare, "verify", tmp_path / "model.onnx", "--against", source)
    assert result.returncode == 0, result.stdout + result.stderr


def test_values_without_end_have_no_scale(kvshare, tmp_path, monkeypatch):
    query, key, value = kv_cache_errors.tables("plain")
    key[5, 3] = np.inf
    monkeypatch.setattr(kv_cache_errors, "tables", lambda kind: (query, key, value))
    kv_cache_errors.attention_model(tmp_path / "model.onnx", "plain")
    inputs = tmp_path / "inputs.npz"
    np.savez(inputs, input_ids=np.arange(kv_cache_errors.TOKENS)[None])
    result = cases.run(kvshare, "rewrite", tmp_path / "model.onnx", "-o", tmp_path / "out.onnx", "--to", "kvshare", "--kv-cache", "int8",
                       "--calibrate", inputs)
    assert result.returncode == 3
    assert "output 'present.0.key' is not finite on these inputs; no scale represents it" in result.stderr


def test_codes_are_no_calibration(kvshare, tmp_path):
    narrow(kvshare, "head_shared_gqa", tmp_path, "int8")
    result = cases.run(kvshare, "rewrite", tmp_path / "model.onnx", "-o", tmp_path / "out.onnx", "--to", "kvshare", "--kv-cache", "int4",
                       "--calibrate", tmp_path / "inputs.npz")
    assert result.returncode == 3
    assert "no output is a present of floats [B, Hkv, T, D]; nothing to calibrate" in result.stderr


@pytest.mark.parametrize("options,code,text", [
    (["--to", "ort", "--kv-cache", "fp16"], 3, "--kv-cache fp16: ONNX Runtime's layers do not borrow such a cache; needs --to kvshare"),
    (["--to", "kvshare", "--kv-cache", "int8"], 3,
     "--kv-cache int8: no scale suits the keys and values of every model; needs --calibrate"),
    (["--to", "kvshare", "--kv-cache", "int4", "--calibrate", "no.npz"], 2, "no.npz"),
    (["--to", "kvshare", "--kv-cache", "int4", "--calibrate", "other.npz"], 2,
     "other.npz: has no tokens; needs an array 'input_ids' or 'inputs_embeds', as the model has it"),
    (["--to", "kvshare", "--kv-cache", "int4", "--calibrate", "flat.npz"], 2, "flat.npz: 'input_ids' has shape [4]; needs [B, S, ...]"),
    (["--to", "kvshare", "--kv-cache", "int4", "--calibrate", "deep.npz"], 2,
     "deep.npz: input 'input_ids' is given with shape [1, 2, 4]; needs [1, 2]"),
    (["--to", "kvshare", "--kv-cache", "int4", "--calibrate", "nan.npz"], 2, "nan.npz: input 'input_ids' is given as f32; needs int64"),
    (["--to", "kvshare", "--kv-cache", "int4", "--calibrate", "mask.npz"], 2,
     "mask.npz: input 'attention_mask' is given with shape [2, 4]; needs [1, 4]"),
    (["--to", "kvshare", "--calibrate", "other.npz"], 2, "--calibrate requires --kv-cache"),
])
def test_what_cannot_be_served_is_refused(kvshare, tmp_path, monkeypatch, options, code, text):
    monkeypatch.chdir(tmp_path)
    np.savez("other.npz", lens=np.zeros(2, np.int64))
    np.savez("flat.npz", input_ids=np.zeros(4, np.int64))
    np.savez("deep.npz", input_ids=np.zeros((1, 2, 4), np.int64))
    np.savez("nan.npz", input_ids=np.full((1, 4), np.nan, np.float32))
    np.savez("mask.npz", input_ids=np.zeros((1, 4), np.int64), attention_mask=np.ones((2, 4), np.int64))
    result = cases.run(kvshare, "rewrite", cases.DATA / "head_shared_gqa" / "model.onnx", "-o", "out.onnx", *options)
    assert (result.returncode, text in result.stderr) == (code, True), result.stderr
    assert not (tmp_path / "out.onnx").exists()


def test_a_failure_of_onnx_runtime_is_told_once(kvshare, tmp_path):
    np.savez(tmp_path / "far.npz", input_ids=np.full((1, 4), 10**9))
    result = cases.run(kvshare, "rewrite", cases.DATA / "head_shared_gqa" / "model.onnx", "--dry-run", "--to", "kvshare", "--kv-cache", "int8",
                       "--calibrate", tmp_path / "far.npz")
    assert result.returncode == 3 and result.stderr.startswith("kvshare: run: ") and result.stderr.count("idx=1000000000") == 1, result.stderr
