"""sliding_window_cache = 1: window-sized caches. The truth is a full cache with the same window; ORT's rows, where it runs."""
import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest

import harness
from gqa_quantized_test import F8, pack, unpack
from harness import VERSION, assert_close, folded, gqa, reference, rope, tables

HQ, HKV, D = 4, 2, 16
ORT_HAS_WINDOWED = VERSION >= (1, 32)


def resident(T, C, W):
    """ORT's contract: how many of the latest rows the cache holds after T tokens."""
    freed = C - W + 1
    return T if T <= C else T - freed * -(-(T - C) // freed)


class Sequence:
    """A prompt of `tokens` tokens, fed in steps to a window-sized cache; full() is the same with all keys kept."""

    def __init__(self, seed, tokens, C, W, B=1, dtype=np.float32, rotary=True):
        self.rng = rng = np.random.default_rng(seed)
        self.tokens, self.C, self.W, self.B, self.dtype = tokens, C, W, B, dtype
        draw = lambda heads: rng.standard_normal((B, heads, tokens, D)).astype(dtype)
        self.q, self.k, self.v = draw(HQ), draw(HKV), draw(HKV)
        self.attributes = {"num_heads": HQ, "kv_num_heads": HKV, "local_window_size": W, "sliding_window_cache": 1}
        self.rotary = {}
        if rotary:
            self.attributes["do_rotary"] = 1
            cos, sin = tables(rng, tokens + 8, D // 2, dtype)
            self.rotary = {"cos_cache": cos, "sin_cache": sin}
        self.cache = {n: np.zeros((B, HKV, C, D), dtype) for n in ("past_key", "past_value")}

    def full(self):
        q, k = self.q, self.k
        if self.rotary:
            positions = np.arange(self.tokens)[None].repeat(self.B, 0)
            t = (self.rotary["cos_cache"], self.rotary["sin_cache"], positions)
            q, k = rope(q, *t), rope(k, *t).astype(self.dtype)
        age = np.arange(self.tokens)[:, None] - np.arange(self.tokens)[None]
        out = reference(q, k, self.v, (age >= 0) & (age < self.W), 1 / np.sqrt(D))
        return folded(out), k, self.v

    def inputs(self, start, end):
        cut = lambda x: folded(x[:, :, start:end])
        return {"query": cut(self.q), "key": cut(self.k), "value": cut(self.v), **self.cache, **self.rotary,
                "seqlens_k": np.full(self.B, end - 1, np.int32), "total_sequence_length": np.array(end, np.int32)}

    def step(self, start, end, extra=(), **kwargs):
        got = gqa({**self.inputs(start, end), **dict(extra)}, self.attributes, **kwargs)
        self.cache = {"past_key": got["present_key"], "past_value": got["present_value"]}
        return got


def steps_of(rng, tokens, longest):
    edges = [0]
    while edges[-1] < tokens:
        edges.append(min(tokens, edges[-1] + int(rng.integers(1, longest + 1))))
    return list(zip(edges, edges[1:]))


@pytest.mark.parametrize("C,W", [(4, 4), (7, 4), (8, 3), (16, 5), (5, 1)])
@pytest.mark.parametrize("longest", [1, 3, 20], ids=["decode", "short_chunks", "long_chunks"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16], ids=["f32", "f16", "bf16"])
def test_equals_a_full_cache_over_many_wraps(C, W, longest, dtype):
    s = Sequence(C * 100 + W, 60, C, W, dtype=dtype)
    want, keys, values = s.full()
    for start, end in steps_of(s.rng, s.tokens, longest):
        got = s.step(start, end, drop_in="gqa")
        assert_close(got["output"], want[:, start:end], dtype, f"output {start}:{end}")
        n = resident(end, C, W)
        assert_close(got["present_key"][:, :, :n], keys[:, :, end - n:end], dtype, f"keys {start}:{end}")
        assert_close(got["present_value"][:, :, :n], values[:, :, end - n:end], dtype, f"values {start}:{end}")


@pytest.mark.skipif(not ORT_HAS_WINDOWED, reason="this release has no window-sized cache of this layout")
@pytest.mark.parametrize("C,W", [(4, 4), (8, 3)])
@pytest.mark.parametrize("longest", [1, 12])
def test_a_window_sized_cache_holds_the_rows_that_ort_holds(C, W, longest):
    ours, theirs = Sequence(5, 40, C, W), Sequence(5, 40, C, W)
    for start, end in steps_of(ours.rng, 40, longest):
        got = ours.step(start, end, drop_in="gqa")
        want = theirs.step(start, end, lib=None)
        n = resident(end, C, W)
        for name in ("present_key", "present_value"):
            assert_close(got[name][:, :, :n], want[name][:, :, :n], np.float32, name)
        assert_close(got["output"], want["output"], np.float32)


@pytest.mark.parametrize("lib", ["kvshare", pytest.param("ort", marks=pytest.mark.skipif(not ORT_HAS_WINDOWED, reason="no query_seqlens"))])
def test_padded_chunks_of_a_ragged_batch(lib):
    """query_seqlens: each sequence has its own number of real tokens; ORT runs the same chunks, and agrees with us."""
    S, C, W, tokens = 5, 8, 4, 30
    s = Sequence(9, tokens, C, W, B=3)
    want, keys, _ = s.full()
    done = np.zeros(3, np.int64)
    for turn in range(10):
        count = np.minimum(s.rng.integers(0 if turn else 1, S + 1, 3), tokens - done)
        take = lambda x: folded(np.stack([np.pad(x[b, :, done[b]:done[b] + count[b]], ((0, 0), (0, S - count[b]), (0, 0)))
                                          for b in range(3)]))
        ends = done + count
        inputs = {"query": take(s.q), "key": take(s.k), "value": take(s.v), **s.cache, **s.rotary,
                  "seqlens_k": (ends - 1).astype(np.int32), "total_sequence_length": np.array(tokens, np.int32),
                  "query_seqlens": count.astype(np.int32)}
        got = gqa(inputs, s.attributes, **({"drop_in": "gqa"} if lib == "kvshare" else {"lib": None}))
        s.cache = {"past_key": got["present_key"], "past_value": got["present_value"]}
        for b in range(3):
            assert_close(got["output"][b, :count[b]], want[b, done[b]:ends[b]], np.float32, f"turn {turn} sequence {b}")
            n = resident(ends[b], C, W)
            assert_close(got["present_key"][b, :, :n], keys[b, :, ends[b] - n:ends[b]], np.float32)
            if lib == "kvshare":
                assert (got["output"][b, count[b]:] == 0).all()
        done = ends


def test_past_bound_onto_present_moves_in_place():
    C, W = 7, 4
    s = Sequence(11, 30, C, W)
    want, keys, _ = s.full()
    m = harness.model("GroupQueryAttention", "com.microsoft", harness.GQA_INPUTS, harness.GQA_OUTPUTS, s.inputs(0, 1),
                      ("output", "present_key", "present_value"), s.attributes)
    sess = harness.session(m, drop_in="gqa")
    shared = {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in s.cache.items()}
    for start, end in steps_of(s.rng, 30, 9):
        got = harness.run_in_place(sess, s.inputs(start, end), shared)
        assert_close(got, want[:, start:end], np.float32, f"{start}:{end}")
        n = resident(end, C, W)
        assert_close(shared["past_key"].numpy()[:, :, :n], keys[:, :, end - n:end], np.float32)


def borrow(s, form, end, count=1, domain="com.microsoft", outputs=("output",)):
    """A shared layer's node, on the source's window-sized cache as it is after `end` tokens."""
    names = ("past_key", "past_value") if form == "shared" else ("external_key", "external_value")
    inputs = {"query": folded(s.q[:, :, end - count:end]), **dict(zip(names, s.cache.values())), **s.rotary,
              "seqlens_k": np.full(s.B, end - 1, np.int32), "total_sequence_length": np.array(end, np.int32)}
    if form == "shared":
        inputs["key"] = inputs["value"] = np.zeros((s.B, 0, HKV * D), s.dtype)
    return gqa(inputs, s.attributes, outputs, domain, drop_in="gqa")


@pytest.mark.parametrize("form", ["shared", "external"])
@pytest.mark.parametrize("C,W", [(4, 4), (7, 4), (16, 5)])
def test_a_shared_layer_borrows_a_window_sized_cache(C, W, form):
    # Upstream refuses: "sliding_window_cache=1 is not supported when kv_sequence_length == 0 (shared KV)".
    s = Sequence(C + W, 50, C, W)
    want = s.full()[0]
    for start, end in steps_of(s.rng, s.tokens, 1):
        s.step(start, end, drop_in="gqa")
        got = borrow(s, form, end, domain="kvshare" if form == "external" and end % 2 else "com.microsoft")
        assert_close(got["output"], want[:, start:end], np.float32, f"token {start}")


@pytest.mark.parametrize("form", ["shared", "external"])
def test_chunks_of_a_shared_layer(form):
    # Chunks of C - W + 1 that end where the cache is full have all that their first token sees.
    C, W = 9, 4
    s = Sequence(21, 39, C, W)
    want = s.full()[0]
    edges = [0, C, *range(C + C - W + 1, 40, C - W + 1)]
    for start, end in zip(edges, edges[1:]):
        s.step(start, end, drop_in="gqa")
        assert_close(borrow(s, form, end, end - start)["output"], want[:, start:end], np.float32, f"{start}:{end}")


def test_a_chunk_that_needs_dropped_keys_is_an_error():
    harness.skip_on_device("lengths that the host cannot read are clamped, not refused")
    s = Sequence(22, 30, 7, 4)
    s.step(0, 12, drop_in="gqa")
    with pytest.raises(Exception) as error:
        borrow(s, "external", 12, 5)
    assert ("GroupQueryAttention 'node': input 'external_key' holds positions 8 to 11 of batch 0; needs position 4 too, which "
            "the first of the 5 new tokens sees: shorter chunks, or chunks of at most C - W + 1 = 4 that end where the cache "
            "is full") in str(error.value)


def test_attention_bias_has_absolute_columns():
    C, W = 7, 4
    s = Sequence(23, 30, C, W)
    q, k, v = s.q, s.k, s.v
    s.attributes.pop("do_rotary"), s.rotary.clear()
    bias = s.rng.standard_normal((1, HQ, 30, 30)).astype(np.float32)
    age = np.arange(30)[:, None] - np.arange(30)[None]
    want = folded(reference(q, k, v, (age >= 0) & (age < W), 1 / np.sqrt(D), bias=bias))
    for start, end in steps_of(s.rng, 30, 6):
        got = s.step(start, end, {"attention_bias": bias[:, :, start:end, :end]}, drop_in="gqa")
        assert_close(got["output"], want[:, start:end], np.float32, f"{start}:{end}")


@pytest.mark.parametrize("cache", ["int8", "int4", "fp8"])
def test_a_window_sized_cache_may_hold_codes(cache):
    C, W = 7, 4
    s = Sequence(24, 30, C, W)
    code = {"int8": np.int8, "int4": np.uint8, "fp8": F8}[cache]
    s.attributes.update(k_quant_type="PER_TENSOR", v_quant_type="PER_TENSOR", kv_cache_bit_width=4 if cache == "int4" else 8)
    scale = {"int8": 0.03, "int4": 0.5, "fp8": 1.0}[cache]
    scales = {"k_scale": np.array([scale], np.float32), "v_scale": np.array([scale], np.float32)}
    width = D // 2 if cache == "int4" else D
    s.cache = {n: np.zeros((1, HKV, C, width), code) for n in ("past_key", "past_value")}
    _, keys, values = s.full()
    if cache == "fp8":
        stored = lambda x: x.astype(code).astype(np.float64)
    else:
        low = -128 if cache == "int8" else -8
        stored = lambda x: np.clip(np.rint(x / np.float32(scale)), low, -low - 1) * scale
    age = np.arange(30)[:, None] - np.arange(30)[None]
    q = rope(s.q, s.rotary["cos_cache"], s.rotary["sin_cache"], np.arange(30)[None])
    want = folded(reference(q, stored(keys), stored(values), (age >= 0) & (age < W), 1 / np.sqrt(D)))
    for start, end in steps_of(s.rng, 30, 9):
        got = s.step(start, end, scales, drop_in="gqa")
        np.testing.assert_allclose(got["output"], want[:, start:end], atol=2e-3 if cache == "int8" else 2e-2)
    assert unpack(pack(np.arange(-8, 8)), 16).tolist() == list(range(-8, 8))


ERRORS = {
    "capacity": (lambda s: s.cache.update(past_key=s.cache["past_key"][:, :, :3], past_value=s.cache["past_value"][:, :, :3]),
                 "input 'past_key' has 3 rows; needs at least local_window_size = 4, because sliding_window_cache is 1"),
    "no past": (lambda s: s.cache.clear(),
                "input 'past_key' is absent; needs the window-sized cache, because sliding_window_cache is 1"),
    "no window": (lambda s: s.attributes.update(local_window_size=-1),
                  "attribute 'local_window_size' is -1; needs at least 1, because sliding_window_cache is 1"),
}


@pytest.mark.parametrize("spoil,message", ERRORS.values(), ids=ERRORS.keys())
def test_what_a_window_sized_cache_cannot_be_is_named(spoil, message):
    s = Sequence(25, 9, 7, 4)
    spoil(s)
    with pytest.raises(Exception) as error:
        s.step(0, 1, drop_in="gqa")
    assert f"GroupQueryAttention 'node': {message}" in str(error.value)


def test_lengths_past_the_total_are_refused():
    harness.skip_on_device("lengths that the host cannot read are clamped, not refused")
    s = Sequence(26, 9, 7, 4)
    with pytest.raises(Exception) as error:
        s.step(0, 1, {"seqlens_k": np.array([5], np.int32)}, drop_in="gqa")
    assert "input 'seqlens_k' has seqlens_k[0] = 5; needs 0 to 0, total_sequence_length less one" in str(error.value)


@pytest.mark.parametrize("qk_output", [1, 2])
@pytest.mark.parametrize("longest", [1, 3, 9])
def test_scores_stand_in_absolute_columns(longest, qk_output):
    """output_qk of a window-sized cache is the full cache's: keys that were dropped are keys that no query sees."""
    C, W = 7, 4
    s = Sequence(27, 30, C, W)
    full = {n: a for n, a in s.inputs(0, 30).items() if not n.startswith("past")}
    attributes = {**s.attributes, "sliding_window_cache": 0, "qk_output": qk_output}
    want = gqa(full, attributes, ("output", "", "", "output_qk"), drop_in="gqa")["output_qk"]
    assert_close(want, gqa(full, attributes, ("output", "present_key", "present_value", "output_qk"), drop_in="gqa")["output_qk"], np.float32)
    s.attributes["qk_output"] = qk_output
    for start, end in steps_of(s.rng, 30, longest):
        got = s.step(start, end, outputs=("output", "present_key", "present_value", "output_qk"), drop_in="gqa")["output_qk"]
        assert got.shape == (1, HQ, end - start, end)
        assert_close(got, want[:, :, start:end, :end], np.float32, f"{start}:{end}")
