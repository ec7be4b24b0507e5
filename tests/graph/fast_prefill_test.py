"""rewrite --fast-prefill: behind the last own keys only each sequence's last token is computed. The truth is the golden
logits, and what ONNX Runtime answers to the original."""

import itertools

import cases
import numpy as np
import onnx
import onnxruntime as ort
import pytest

EACH_FORM = ["mixed_bias_asis", "mixed_bool_asis", "mixed_bias_b2_ragged_causal0", "mixed_bias_fp16_asis", "head_shared_gqa",
             "head_b2_ragged", "e2b35_head_shared_gqa", "e2b_heads", "webgpu_constant_empty", "default_attention"]


def rewrite(kvshare, case, out, target, *options):
    return cases.rewrite(kvshare, cases.DATA / case / "model.onnx", out, "--to", target, "--fast-prefill", *options)


def needs_library(target):
    return target != "ort"


def queries(model, ids, library):
    """The shapes of the queries of all attention layers, as a run has them."""
    changed = onnx.load(str(model))
    layers = [node for node in changed.graph.node if node.op_type in ("Attention", "GroupQueryAttention")]
    changed.graph.output.extend(onnx.ValueInfoProto(name=node.input[0]) for node in layers)
    probe = model.parent / "probe.onnx"
    onnx.save(changed, str(probe), save_as_external_data=True, location="probe.data")
    decoder = cases.open_decoder(probe, len(ids), library)
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids),
             "position_ids": np.broadcast_to(np.arange(ids.shape[1]), ids.shape), **decoder.past}
    run = decoder.session.run([node.input[0] for node in layers], {n: a for n, a in feeds.items() if n in decoder.inputs})
    return [array.shape[1] for array in run]


@pytest.mark.parametrize("target,case", itertools.product(cases.TARGETS, EACH_FORM))
def test_the_last_tokens_logits_are_the_goldens(kvshare, library, tmp_path, target, case):
    if target == "kvshare-attention" and (case in cases.HEAD or "webgpu" in case):
        pytest.skip("that target leaves GroupQueryAttention alone")
    out = tmp_path / "model.onnx"
    report = rewrite(kvshare, case, out, target)
    assert "changed contract: 'logits' is [B, 1, V]" in report
    [logits] = [o for o in cases.load(out).graph.output if o.name == "logits"]
    assert logits.type.tensor_type.shape.dim[1].dim_value == 1
    used = library if needs_library(target) else None
    got = cases.logits_of(out, case, used)
    golden = np.load(cases.DATA / case / "golden.npz")
    assert got[0].shape == (golden["input_ids"].shape[0], golden["prefill_logits"].shape[2])
    assert max(cases.differences(out, case, used)) <= cases.tolerance(case)


@pytest.mark.parametrize("target,case", itertools.product(cases.TARGETS, ["mixed_bias_asis", "e2b35_mixed_bias_asis"]))
def test_layers_behind_the_last_own_keys_see_one_token(kvshare, library, tmp_path, target, case):
    out = tmp_path / "model.onnx"
    rewrite(kvshare, case, out, target)
    shared = len(cases.shared_layers(case))
    layers = len(cases.inspect(kvshare, out)["layers"])
    ids = np.random.default_rng(1).integers(0, 100, (1, 9))
    assert queries(out, ids, library if needs_library(target) else None) == [9] * (layers - shared) + [1] * shared


@pytest.mark.parametrize("case", ["mixed_bias_asis", "mixed_bias_b2_ragged_causal0"])
def test_an_attention_that_stays_is_cut_with_its_mask(kvshare, tmp_path, case):
    """The conversion is skipped: ONNX Runtime alone runs own GroupQueryAttention and shared Attention with its mask."""
    out = tmp_path / "model.onnx"
    rewrite(kvshare, case, out, "ort", "--skip", "shared-attention")
    ops = cases.operators(out)
    assert ops["", "Attention"] == len(cases.shared_layers(case)) and ops["", "CumSum"] == 1
    assert max(cases.differences(out, case)) <= 1e-4


def test_a_triangle_that_no_mask_repeats_is_left(kvshare, tmp_path):
    report = rewrite(kvshare, "mixed_bool_asis", tmp_path / "model.onnx", "ort", "--skip", "shared-attention")
    assert "is_causal, which one query alone would misplace, is not in its mask" in report


@pytest.mark.parametrize("target", ["kvshare", "ort"])
def test_each_chunk_of_a_prompt_gives_its_last_tokens_logits(kvshare, library, tmp_path, target):
    source, out = cases.DATA / "head_shared_gqa" / "model.onnx", tmp_path / "model.onnx"
    rewrite(kvshare, "head_shared_gqa", out, target)
    ids = np.random.default_rng(3).integers(0, 160, (1, 30))
    whole, cut = cases.open_decoder(source, 1), cases.open_decoder(out, 1, library if needs_library(target) else None)
    for begin, end in ((0, 13), (13, 21), (21, 22), (22, 30)):
        tokens = ids[:, begin:end], np.ones((1, end), np.int64), np.arange(begin, end)[None]
        np.testing.assert_allclose(cut.step(*tokens)[:, 0], whole.step(*tokens)[:, -1], atol=1e-4)


def test_each_chunk_of_a_ragged_batch_gives_its_last_tokens_logits(kvshare, library, tmp_path):
    """ONNX Runtime's GroupQueryAttention takes such chunks of one sequence only: each alone is the truth."""
    out = tmp_path / "model.onnx"
    rewrite(kvshare, "head_shared_gqa", out, "kvshare")
    ids = np.random.default_rng(3).integers(0, 160, (2, 20))
    lengths = np.array([[12, 7], [17, 12]])  # after a prompt that is padded, and after a chunk of five tokens each
    together = cases.open_decoder(out, 2, library)
    alone = [cases.open_decoder(cases.DATA / "head_shared_gqa" / "model.onnx", 1) for _ in range(2)]
    before = np.zeros(2, np.int64)
    for after in lengths:
        width = (after - before).max()
        tokens = np.zeros((2, width), np.int64)
        for row in range(2):
            new = ids[row, before[row]:after[row]]
            tokens[row, :len(new)] = new
        mask = (np.arange(after.max())[None] < after[:, None]).astype(np.int64)
        got = together.step(tokens, mask, np.zeros_like(tokens))
        for row in range(2):
            new = ids[row:row + 1, before[row]:after[row]]
            want = alone[row].step(new, np.ones((1, after[row]), np.int64), np.zeros_like(new))
            np.testing.assert_allclose(got[row, 0], want[0, -1], atol=1e-4)
        before = after


def test_left_padding_of_attention_alone(kvshare, library, tmp_path):
    """An all-Attention graph takes its padding on either side: the last kept column is the last token's."""
    source, out = cases.DATA / "default_attention" / "model.onnx", tmp_path / "model.onnx"
    rewrite(kvshare, "default_attention", out, "kvshare-attention")
    ids = np.random.default_rng(4).integers(0, 160, (2, 12))
    for mask, last in ((np.arange(12)[None] >= np.array([[0], [5]]), [11, 11]),
                       (np.arange(12)[None] < np.array([[12], [7]]), [11, 6])):
        mask = mask.astype(np.int64)
        positions = np.maximum(mask.cumsum(1) - 1, 0)
        want = cases.open_decoder(source, 2).step(ids, mask, positions)
        got = cases.open_decoder(out, 2, library).step(ids, mask, positions)
        np.testing.assert_allclose(got[:, 0], want[np.arange(2), last], atol=1e-4)


@pytest.mark.parametrize("target", cases.TARGETS)
def test_a_second_rewrite_changes_nothing(kvshare, tmp_path, target):
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    rewrite(kvshare, "mixed_bias_asis", first, target)
    report = cases.rewrite(kvshare, first, second, "--to", target, "--fast-prefill")
    assert "nothing to do: all 10 attention layers have the target's form already" in report
    assert cases.load(first) == cases.load(second)


def test_verify_compares_the_last_tokens(kvshare, tmp_path):
    for case in ("mixed_bias_b2_ragged_causal0", "head_shared_gqa"):
        source, out = cases.DATA / case / "model.onnx", tmp_path / case / "model.onnx"
        out.parent.mkdir()
        rewrite(kvshare, case, out, "ort")
        for truth in (["--golden", cases.DATA / case], ["--against", source]):
            result = cases.run(kvshare, "verify", out, *truth)
            assert result.returncode == 0, result.stdout + result.stderr
        assert cases.run(kvshare, "verify", source, "--against", out).returncode == 0


def test_the_execution_provider_serves_the_file(kvshare, library, tmp_path):
    """The prompt's shared layers have one query token and all keys."""
    if not hasattr(ort, "get_ep_devices"):
        pytest.skip("this ONNX Runtime has no plug-in providers")
    out = tmp_path / "model.onnx"
    rewrite(kvshare, "head_b2_ragged", out, "ort")
    result = cases.run(kvshare, "verify", out, "--golden", cases.DATA / "head_b2_ragged", "--via", "ep")
    assert result.returncode == 0, result.stdout + result.stderr


TORCH = ["torch_gemma4", "torch_gemma4_o23", "torch_gemma3n"]


@pytest.mark.parametrize("target,case", itertools.product(["kvshare", "ort", "onnx25"], TORCH))
def test_pytorch_s_exports_give_their_golden_logits(kvshare, library, tmp_path, target, case):
    """Their Reshape nodes name the number of tokens, beside allowzero."""
    out = tmp_path / "model.onnx"
    assert "changed contract: 'logits' is [B, 1, V]" in rewrite(kvshare, case, out, target)
    used = library if target == "kvshare" else None
    assert cases.logits_of(out, case, used)[0].shape[0] == 1
    assert max(cases.differences(out, case, used)) <= cases.tolerance(case)


@pytest.mark.parametrize("case", TORCH)
def test_pytorch_s_shared_layers_see_one_token(kvshare, library, tmp_path, case):
    out = tmp_path / "model.onnx"
    rewrite(kvshare, case, out, "kvshare")
    kinds = [layer["kind"] for layer in cases.inspect(kvshare, out)["layers"]]
    ids = np.random.default_rng(1).integers(3, 48, (2, 9))
    assert queries(out, ids, library) == [9 if kind == "own" else 1 for kind in kinds]


@pytest.mark.parametrize("target,case", itertools.product(["kvshare", "onnx25"], TORCH))
def test_pytorch_s_chunks_of_two_sequences_are_the_original_s(kvshare, library, tmp_path, target, case):
    source, out = cases.DATA / case / "model.onnx", tmp_path / "model.onnx"
    rewrite(kvshare, case, out, target)
    ids = np.random.default_rng(3).integers(3, 48, (2, 24))
    whole = cases.open_decoder(source, 2)
    cut = cases.open_decoder(out, 2, library if target == "kvshare" else None)
    for begin, end in ((0, 13), (13, 18), (18, 19), (19, 24)):
        tokens = ids[:, begin:end], np.ones((2, end), np.int64), np.tile(np.arange(begin, end), (2, 1))
        np.testing.assert_allclose(cut.step(*tokens)[:, 0], whole.step(*tokens)[:, -1], atol=1e-4)


def test_a_window_of_columns_keeps_all_tokens(kvshare, tmp_path):
    """One query alone would stand at the last column, where a sequence that is padded behind has no token."""
    report = rewrite(kvshare, "torch_gemma4", tmp_path / "model.onnx", "kvshare-attention")
    assert "has local_window_size, which counts columns" in report
