"""window_cache_rows = C: caches that hold each sequence's latest rows. The truth is a full cache with the same window."""
import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest

import harness
from gqa_windowed_test import D, HKV, HQ, Sequence, steps_of
from harness import assert_close, folded, gqa

DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


class Latest(Sequence):
    """A prompt in steps; its cache begins without rows, and takes what the step before returned."""

    def __init__(self, seed, tokens, C, W, B=1, dtype=np.float32, rotary=True):
        super().__init__(seed, tokens, C, W, B, dtype, rotary)
        del self.attributes["sliding_window_cache"]
        self.attributes["window_cache_rows"] = C
        self.cache = {n: np.zeros((B, HKV, 0, D), dtype) for n in ("past_key", "past_value")}

    def step(self, start, end, extra=(), **kwargs):
        return super().step(start, end, extra, domain="kvshare", **kwargs)

    def borrow(self, start, end, queries=None):
        """A layer that borrows the present of the step [start, end), for its last tokens."""
        start = start if queries is None else end - queries
        inputs = {"query": folded(self.q[:, :, start:end]), "external_key": self.cache["past_key"],
                  "external_value": self.cache["past_value"], **self.rotary,
                  "seqlens_k": np.full(self.B, end - 1, np.int32), "total_sequence_length": np.array(end, np.int32)}
        return gqa(inputs, self.attributes, ("output",), "kvshare")["output"]


@pytest.mark.parametrize("C,W", [(4, 4), (7, 4), (16, 5), (5, 1)])
@pytest.mark.parametrize("longest", [1, 3, 20], ids=["decode", "short_chunks", "long_chunks"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["f32", "f16", "bf16"])
def test_equals_a_full_cache_and_so_does_who_borrows(C, W, longest, dtype):
    s = Latest(C * 100 + W, 60, C, W, dtype=dtype)
    want, keys, values = s.full()
    for start, end in steps_of(s.rng, s.tokens, longest):
        got = s.step(start, end)
        assert_close(got["output"], want[:, start:end], dtype, f"output {start}:{end}")
        rows = max(C, W - 1 + end - start)
        assert got["present_key"].shape[2] == got["present_value"].shape[2] == rows
        n = min(end, rows)
        assert_close(got["present_key"][:, :, :n], keys[:, :, end - n:end], dtype, f"keys {start}:{end}")
        assert_close(got["present_value"][:, :, :n], values[:, :, end - n:end], dtype, f"values {start}:{end}")
        assert (np.asarray(got["present_key"][:, :, n:], np.float32) == 0).all()
        assert_close(s.borrow(start, end), want[:, start:end], dtype, f"borrowed {start}:{end}")
        assert_close(s.borrow(start, end, 1), want[:, end - 1:end], dtype, f"borrowed by the last token {start}:{end}")


def test_each_sequence_of_a_ragged_batch_keeps_its_own_latest_rows():
    """A padded prompt of two lengths, then chunks and tokens: each sequence is as long as it is."""
    C, W, lengths = 9, 4, np.array([12, 7])
    s = Latest(3, 40, C, W, B=2)
    want, keys, _ = s.full()
    done = np.zeros(2, np.int64)
    for width in (12, 1, 5, 1, 8):
        ends = lengths if not done.any() else done + width
        rows = [np.arange(n, e) if done.any() else np.minimum(np.arange(width), s.tokens - 1) for n, e in zip(done, ends)]
        take = lambda x: folded(np.stack([x[b][:, rows[b]] for b in range(2)]))
        inputs = {"query": take(s.q), "key": take(s.k), "value": take(s.v), **s.cache, **s.rotary,
                  "seqlens_k": (ends - 1).astype(np.int32), "total_sequence_length": np.array(ends.max(), np.int32)}
        got = gqa(inputs, s.attributes, domain="kvshare")
        s.cache = {"past_key": got["present_key"], "past_value": got["present_value"]}
        held = got["present_key"].shape[2]
        assert held == max(C, W - 1 + width)
        for b in range(2):
            new = ends[b] - done[b]
            assert_close(got["output"][b, :new], want[b, done[b]:ends[b]], np.float32, f"{width}: sequence {b}")
            n = min(ends[b], held)
            assert_close(got["present_key"][b, :, :n], keys[b, :, ends[b] - n:ends[b]], np.float32)
        done = ends


def bound(s, rows=None):
    s.cache = {n: np.zeros((s.B, HKV, rows or s.C, D), s.dtype) for n in ("past_key", "past_value")}
    model = harness.model("GroupQueryAttention", "kvshare", harness.GQA_INPUTS, harness.GQA_OUTPUTS, s.inputs(0, 1),
                          ("output", "present_key", "present_value"), s.attributes)
    return harness.session(model), {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in s.cache.items()}


def test_caches_that_stay_in_place():
    C, W = 7, 4
    s = Latest(11, 30, C, W)
    want, keys, _ = s.full()
    session, caches = bound(s)
    for start, end in steps_of(s.rng, 30, C - W + 1):
        assert_close(harness.run_in_place(session, s.inputs(start, end), caches), want[:, start:end], np.float32, f"{start}:{end}")
        n = min(end, C)
        assert_close(caches["past_key"].numpy()[:, :, :n], keys[:, :, end - n:end], np.float32)


def test_a_chunk_too_long_for_bound_caches_says_so():
    s = Latest(12, 30, 7, 4)
    session, caches = bound(s)
    with pytest.raises(Exception) as error:
        harness.run_in_place(session, s.inputs(0, 5), caches)
    assert ("GroupQueryAttention 'node': output 'present_key' is bound and has another shape than 8 rows for a chunk of 5 tokens; "
            "needs window_cache_rows = 7 rows and chunks of at most window_cache_rows - local_window_size + 1 = 4, or no binding"
            ) in str(error.value)


def test_bound_caches_of_more_rows_say_so():
    """As onnxruntime-genai makes them for chunks that are too long: in a later step nothing tells them from a chunk's rest."""
    s = Latest(12, 30, 7, 4)
    session, caches = bound(s, 9)
    with pytest.raises(Exception, match="output 'present_key' is bound and has another shape than 7 rows for a chunk of 1 tokens"):
        harness.run_in_place(session, s.inputs(0, 1), caches)


@pytest.mark.parametrize("rows", [4, 5, 6, 3, 1])
def test_bound_caches_of_fewer_rows_serve_what_fits(rows):
    """Of W rows or more: chunks that leave room. Of fewer: sequences that fit, as a short max_length makes them."""
    C, W = 7, 4
    s = Latest(13, 30 if rows >= W else rows, C, W)
    want, keys, _ = s.full()
    session, caches = bound(s, rows)
    for start, end in steps_of(s.rng, s.tokens, max(rows - W + 1, 1)):
        assert_close(harness.run_in_place(session, s.inputs(start, end), caches), want[:, start:end], np.float32, f"{start}:{end}")
        n = min(end, rows)
        assert_close(caches["past_key"].numpy()[:, :, :n], keys[:, :, end - n:end], np.float32)
        s.cache = {name: value.numpy() for name, value in caches.items()}
        assert_close(s.borrow(start, end), want[:, start:end], np.float32, f"borrowed {start}:{end}")


ERRORS = {
    "fewer than W": ({"window_cache_rows": 3}, None,
                     "attribute 'window_cache_rows' is 3; needs local_window_size = 4 to 2147483647"),
    "no window": ({"local_window_size": -1}, None,
                  "attribute 'window_cache_rows' is 7; needs local_window_size of at least 1"),
    "both": ({"sliding_window_cache": 1}, None,
             "attribute 'window_cache_rows' is 7; needs sliding_window_cache = 0, which has its rows from its past"),
    "too few rows": ({}, 2, "input 'past_key' has 2 rows; needs at least 3, the earlier keys that the new tokens of batch 0 see"),
    "no rows and earlier tokens": ({}, 0, "input 'seqlens_k' has seqlens_k[0] = 8; needs at most 0: 0 past rows and 1 new ones"),
}


@pytest.mark.parametrize("attributes,rows,message", ERRORS.values(), ids=ERRORS.keys())
def test_what_window_cache_rows_cannot_serve_is_named(attributes, rows, message):
    s = Latest(25, 9, 7, 4)
    s.attributes.update(attributes)
    if rows is not None:
        s.cache = {n: np.zeros((1, HKV, rows, D), np.float32) for n in ("past_key", "past_value")}
    with pytest.raises(Exception) as error:
        s.step(8, 9)
    assert f"GroupQueryAttention 'node': {message}" in str(error.value)


def test_who_borrows_needs_the_rows_too():
    s = Latest(26, 9, 7, 4)
    s.cache = {n: np.zeros((1, HKV, 8, D), np.float32) for n in ("past_key", "past_value")}
    with pytest.raises(Exception) as error:
        s.borrow(0, 9)
    assert "input 'external_key' has 8 rows; needs at least 9, the earlier keys that the new tokens of batch 0 see" in str(error.value)


@pytest.mark.parametrize("longest", [1, 9])
def test_scores_and_biases_stand_in_absolute_columns(longest):
    C, W = 7, 4
    s = Latest(27, 30, C, W, rotary=False)
    s.attributes["qk_output"] = 2
    bias = s.rng.standard_normal((1, HQ, 30, 30)).astype(np.float32)
    names = ("output", "present_key", "present_value", "output_qk")
    full = {n: a for n, a in s.inputs(0, 30).items() if not n.startswith("past")} | {"attention_bias": bias}
    want = gqa(full, {**s.attributes, "window_cache_rows": 0}, ("output", "", "", "output_qk"), "kvshare")
    for start, end in steps_of(s.rng, 30, longest):
        got = s.step(start, end, {"attention_bias": bias[:, :, start:end, :end]}, outputs=names)
        assert_close(got["output"], want["output"][:, start:end], np.float32, f"{start}:{end}")
        assert_close(got["output_qk"], want["output_qk"][:, :, start:end, :end], np.float32, f"{start}:{end}")


def test_the_domain_of_onnx_runtime_knows_no_such_attribute():
    """There it is nothing, as any attribute that ONNX Runtime does not know."""
    s = Sequence(28, 9, 7, 4)
    del s.attributes["sliding_window_cache"]
    s.attributes["window_cache_rows"] = 7
    s.cache = {}
    assert gqa(s.inputs(0, 9), s.attributes, drop_in="gqa")["present_key"].shape[2] == 9
