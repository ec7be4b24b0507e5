"""rewrite --window-caches: caches of layers with a window hold its keys and a slack. The truth is the same model with full
caches in ONNX Runtime, over several windows."""

import cases
import numpy as np
import onnxruntime as ort
import pytest


def rewrite(kvshare, case, out, *options):
    return cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, "--to", "kvshare", *options)


def ids_of(batch, tokens, seed=5):
    return np.random.default_rng(seed).integers(0, 120, (batch, tokens))


def steps(decoder, ids, edges):
    """The logits of the tokens between each two edges, one after another."""
    for begin, end in zip(edges, edges[1:]):
        positions = np.broadcast_to(np.arange(begin, end), (len(ids), end - begin))
        yield decoder.step(ids[:, begin:end], np.ones((len(ids), end), np.int64), positions)


@pytest.mark.parametrize("case", ["mixed_bias_causal0", "head_shared_gqa", "e2b35_head_shared_gqa"])
@pytest.mark.parametrize("slack", ["0", "5"])
def test_logits_of_a_long_prompt_and_of_four_windows_of_tokens(kvshare, library, tmp_path, case, slack):
    out = tmp_path / "model.onnx"
    report = rewrite(kvshare, case, out, f"--window-caches={slack}")
    layers = cases.inspect(kvshare, out)["layers"]
    window = max(layer["window"] for layer in layers)
    rows = window + int(slack)
    assert f"changed contract: caches of layers with window {window} have {rows} rows" in report
    own = [layer for layer in layers if layer["kind"] == "own"]
    assert [layer["cache_rows"] for layer in own] == [rows if layer["window"] > 0 else 0 for layer in own]
    prompt = 3 * window + 1
    edges = [0, prompt, *range(prompt + 1, prompt + 4 * window + 1)]
    ids = ids_of(1, edges[-1])
    full, small = cases.open_decoder(cases.DATA / case / "model.onnx", 1), cases.open_decoder(out, 1, library)
    for want, got in zip(steps(full, ids, edges), steps(small, ids, edges), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)
    held = sorted({array.shape[2] for array in small.past.values()})
    assert held == [rows, edges[-1]]


@pytest.mark.parametrize("options", [[], ["--fast-prefill"]])
def test_chunks_shorter_and_longer_than_the_window(kvshare, library, tmp_path, options):
    case, out = "head_shared_gqa", tmp_path / "model.onnx"
    rewrite(kvshare, case, out, "--window-caches=4", *options)
    ids = ids_of(1, 70)
    edges = [0, 3, 8, 33, 34, 35, 40, 63, 64, 70]  # window 8, 12 rows
    full, small = cases.open_decoder(cases.DATA / case / "model.onnx", 1), cases.open_decoder(out, 1, library)
    runs = zip(edges, edges[1:], steps(full, ids, edges), steps(small, ids, edges), strict=False)
    for begin, end, want, got in runs:
        np.testing.assert_allclose(got, want[:, -got.shape[1]:], atol=1e-4)
        # Of a longer chunk all rows that its tokens see; the step after is back to 12.
        rows = {array.shape[2] for array in small.past.values() if array.shape[3] != 64}  # full layers have 64 channels
        assert rows == {max(12, 8 - 1 + end - begin)}


@pytest.mark.parametrize("options", [[], ["--fast-prefill"]])
@pytest.mark.parametrize("case", ["head_b2_ragged", "mixed_bias_b2_ragged_causal0", "mixed_bias_fp16_asis", "e2b_heads"])
def test_window_sized_caches_give_the_golden_logits(kvshare, library, tmp_path, case, options):
    out = tmp_path / "model.onnx"
    rewrite(kvshare, case, out, "--window-caches", *options)
    assert max(cases.differences(out, case, library)) <= cases.tolerance(case)


def test_a_ragged_batch_over_four_windows(kvshare, library, tmp_path):
    case, out = "head_shared_gqa", tmp_path / "model.onnx"
    rewrite(kvshare, case, out, "--window-caches=0")
    lens, tokens = np.array([21, 9]), 34
    ids = ids_of(2, lens[0] + tokens)
    full, small = cases.open_decoder(cases.DATA / case / "model.onnx", 2), cases.open_decoder(out, 2, library)

    def both(new, ends):
        mask = (np.arange(ends.max())[None] < ends[:, None]).astype(np.int64)
        return (decoder.step(new, mask, np.zeros_like(new)) for decoder in (full, small))

    want, got = both(ids[:, :lens[0]], lens)
    for row, n in enumerate(lens):
        np.testing.assert_allclose(got[row, :n], want[row, :n], atol=1e-4)
    for t in range(tokens):
        new = np.array([[ids[row, n + t]] for row, n in enumerate(lens)])
        want, got = both(new, lens + t + 1)
        np.testing.assert_allclose(got, want, atol=1e-4, err_msg=f"token {t}")


def test_caches_that_stay_in_place(kvshare, library, tmp_path):
    """Chunks of C - W + 1 fit; a longer one is an error that says so."""
    case, out = "head_shared_gqa", tmp_path / "model.onnx"
    rewrite(kvshare, case, out, "--window-caches=4")
    ids = ids_of(1, 60)
    full, small = cases.open_decoder(cases.DATA / case / "model.onnx", 1), cases.open_decoder(out, 1, library)
    small.past = {name: ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 1, 60 if array.shape[3] == 64 else 12, array.shape[3]), np.float32))
                  for name, array in small.past.items()}  # full layers have heads of 64 channels
    small.in_place = True
    edges = [*range(0, 40, 5), *range(40, 61)]
    for want, got in zip(steps(full, ids, edges), steps(small, ids, edges), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-4)
    with pytest.raises(Exception, match="chunks of at most window_cache_rows - local_window_size \\+ 1 = 5"):
        next(steps(small, ids, [0, 6]))


def test_inspect_shows_what_caches_take(kvshare, tmp_path):
    out = tmp_path / "model.onnx"
    rewrite(kvshare, "e2b_heads", out, "--window-caches")
    rows = {layer["index"]: (layer["cache_rows"], layer["row_bytes"]) for layer in cases.inspect(kvshare, out)["layers"]}
    assert rows == {0: (576, 2048), 1: (0, 4096), 2: (0, 0), 3: (0, 0)}
    before, after = (cases.run(kvshare, "inspect", model).stdout for model in (cases.DATA / "e2b_heads" / "model.onnx", out))
    assert "caches of 2 layers: 6144 bytes a token; 201.3 MB at 32768 tokens" in before
    assert "caches of 2 layers: 4096 bytes a token; 1 of fixed size take 1.2 MB; 135.4 MB at 32768 tokens" in after
    assert 32768 * 2048 / (576 * 2048) > 50


def test_a_second_rewrite_changes_nothing(kvshare, tmp_path):
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    rewrite(kvshare, "mixed_bias_asis", first, "--window-caches=4", "--fast-prefill")
    report = cases.rewrite(kvshare, first, second, "--to", "kvshare", "--window-caches=4", "--fast-prefill")
    assert "nothing to do: all 10 attention layers have the target's form already" in report
    assert cases.load(first) == cases.load(second)


def test_a_dry_run_says_what_it_saves(kvshare, tmp_path):
    source = cases.DATA / "e2b_heads" / "model.onnx"
    result = cases.run(kvshare, "rewrite", source, "--dry-run", "--to", "kvshare", "--window-caches", "--fast-prefill")
    assert "1 x window-caches" in result.stdout and "1 x fast-prefill" in result.stdout
    assert "135.4 MB at 32768 tokens" in result.stdout


@pytest.mark.parametrize("arguments,code,text", [
    (["--to", "ort", "--window-caches"], 3, "needs --to kvshare"),
    (["--to", "kvshare", "--window-caches=few"], 2, "'few' is no number of rows"),
    (["--to", "kvshare", "--window-caches=-1"], 2, "--window-caches -1: needs 0 to 2147483647 rows beside the window"),
])
def test_options_that_cannot_be_served_are_refused(kvshare, tmp_path, arguments, code, text):
    out = tmp_path / "model.onnx"
    result = cases.run(kvshare, "rewrite", cases.DATA / "mixed_bias_asis" / "model.onnx", "-o", out, *arguments)
    assert result.returncode == code and text in result.stderr
    assert not out.exists()


def test_verify_runs_such_a_model(kvshare, library, tmp_path):
    out = tmp_path / "model.onnx"
    rewrite(kvshare, "head_shared_gqa", out, "--window-caches=0", "--fast-prefill")
    source = cases.DATA / "head_shared_gqa" / "model.onnx"
    result = cases.run(kvshare, "verify", out, "--against", source, "--prompt", "30", "--steps", "40")
    assert result.returncode == 0, result.stdout + result.stderr
