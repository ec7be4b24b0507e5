"""Drop-in Attention against ORT's own kernel in one process, and against float64 where ORT has none."""
import ml_dtypes
import numpy as np
import pytest

import harness
from harness import VERSION, Counters, assert_close, attention, folded, reference

BF16 = np.dtype(ml_dtypes.bfloat16)
HQ, HKV, D = 4, 2, 16


def draw(rng, *shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def case(seed, S, new, past=0, B=2, rank=4, dtype=np.float32, Dv=D, **extra):
    """(inputs, attributes, q, all keys, all values)."""
    rng = np.random.default_rng(seed)
    q, k, v = draw(rng, B, HQ, S, D, dtype=dtype), draw(rng, B, HKV, new, D, dtype=dtype), draw(rng, B, HKV, new, Dv, dtype=dtype)
    inputs = {"Q": q, "K": k, "V": v}
    attributes = dict(extra)
    if rank == 3:
        inputs = {n: folded(a) for n, a in inputs.items()}
        attributes.update(q_num_heads=HQ, kv_num_heads=HKV)
    if past:
        inputs["past_key"], inputs["past_value"] = draw(rng, B, HKV, past, D, dtype=dtype), draw(rng, B, HKV, past, Dv, dtype=dtype)
        k, v = np.concatenate([inputs["past_key"], k], 2), np.concatenate([inputs["past_value"], v], 2)
    return inputs, attributes, q, k, v


def triangle(S, T, offset):
    return np.arange(T)[None] <= np.arange(S)[:, None] + offset


def truth(inputs, attributes, q, k, v, offset=None, visible=True):
    S, T = q.shape[2], k.shape[2]
    offset = np.array(inputs["past_key"].shape[2] if "past_key" in inputs else 0) if offset is None else np.asarray(offset)
    offset = offset.reshape(-1, 1, 1, 1)
    p, j = np.arange(S)[None, None, :, None] + offset, np.arange(T)
    if attributes.get("is_causal"):
        visible = visible & (j <= p)
    if attributes.get("local_window_size", -1) > 0:
        visible = visible & (p - j < attributes["local_window_size"])
    if attributes.get("left_window_size", -1) >= 0:
        visible = visible & (p - j <= attributes["left_window_size"])
    if attributes.get("right_window_size", -1) >= 0:
        visible = visible & (j - p <= attributes["right_window_size"])
    bias = None
    if "attn_mask" in inputs:
        mask = inputs["attn_mask"]
        mask = mask if mask.dtype == bool else mask.astype(np.float64)
        pad = [(0, 0)] * (mask.ndim - 1) + [(0, T - mask.shape[-1])]
        mask = np.pad(mask, pad, constant_values=False if mask.dtype == bool else -np.inf)
        if mask.dtype == bool:
            visible = visible & mask
        else:
            bias = mask
            visible = visible & np.isfinite(bias)
            bias = np.where(np.isfinite(bias), bias, 0)
    y = reference(q, k, v, visible, attributes.get("scale", 1 / np.sqrt(D)), attributes.get("softcap", 0), bias)
    return folded(y) if inputs["Q"].ndim == 3 else y


def ours(inputs, attributes, outputs=("Y",), **entries):
    return attention(inputs, attributes, outputs, drop_in="attention", **entries)


VARIANTS = {"plain": {}, "causal": {"is_causal": 1}, "scale": {"scale": 0.3}, "softcap": {"softcap": 2.0, "is_causal": 1}}
SHAPES = {"square": dict(S=6, new=6), "one_query": dict(S=1, new=9), "more_keys": dict(S=3, new=8),
          "past_decode": dict(S=1, new=1, past=7), "past_chunk": dict(S=4, new=4, past=5)}


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_the_specification_and_orts_kernel(variant, shape, rank, dtype):
    inputs, attributes, q, k, v = case(1, rank=rank, dtype=dtype, **SHAPES[shape], **VARIANTS[variant])
    outputs = ("Y", "present_key", "present_value") if "past_key" in inputs else ("Y",)
    got = ours(inputs, attributes, outputs)
    assert_close(got["Y"], truth(inputs, attributes, q, k, v), dtype)
    if "past_key" in inputs:
        np.testing.assert_array_equal(got["present_key"], k)
        np.testing.assert_array_equal(got["present_value"], v)
    # Before 1.28 ORT put the triangle at the lower right; before 1.27 softcap brought hidden keys back.
    ort_is_right = VERSION >= (1, 28) or shape not in ("one_query", "more_keys") and (VERSION >= (1, 27) or variant != "softcap")
    if dtype == np.float32 and ort_is_right:
        assert_close(got["Y"], attention(inputs, attributes, outputs, lib=None)["Y"], dtype)


@pytest.mark.parametrize("attributes", [{"is_causal": 2}, {"is_causal": -1}, {"softcap": -1.0}, {"softcap": float("nan")}], ids=str)
def test_attributes_are_read_as_ort_reads_them(attributes):
    inputs, _, _, _, _ = case(5, **SHAPES["square"])
    assert_close(ours(inputs, attributes)["Y"], attention(inputs, attributes, lib=None)["Y"], np.float32)


MASKS = {"2d": lambda S, T: (S, T), "3d_one": lambda S, T: (1, S, T), "3d_heads": lambda S, T: (HQ, S, T),
         "4d": lambda S, T: (2, HQ, S, T), "batch": lambda S, T: (2, 1, S, T), "keys_only": lambda S, T: (2, 1, 1, T),
         "row": lambda S, T: (1, T), "vector": lambda S, T: (T,), "heads_only": lambda S, T: (1, HQ, S, T), "short": lambda S, T: (2, 1, S, T - 2)}


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("shape", ["square", "more_keys", "past_chunk"])
@pytest.mark.parametrize("mask", MASKS)
def test_masks_broadcast_as_numpy_does(mask, shape, kind):
    inputs, attributes, q, k, v = case(2, **SHAPES[shape])
    rng = np.random.default_rng(3)
    extent = MASKS[mask](q.shape[2], k.shape[2])
    inputs["attn_mask"] = rng.random(extent) < 0.7 if kind == "bool" else draw(rng, *extent)
    assert_close(ours(inputs, attributes)["Y"], truth(inputs, attributes, q, k, v), np.float32)


# Every type that ONNX's schema allows and numpy or ml_dtypes has; those after bool are added to the scores.
MASK_TYPES = [bool, np.float32, np.float16, BF16, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16,
              np.uint32, np.uint64]


@pytest.mark.parametrize("domain", ["", "kvshare"])
@pytest.mark.parametrize("query", [np.float32, np.float16, BF16, np.float64], ids=["f32", "f16", "bf16", "f64"])
@pytest.mark.parametrize("type", MASK_TYPES, ids=lambda t: np.dtype(t).name)
def test_a_mask_of_any_type_is_added(type, query, domain):
    harness.skip_on_device("no CUDA kernel converts this type: cuda_test.py", type not in (bool, np.float32, np.float16, BF16))
    inputs, attributes, q, k, v = case(21, S=4, new=7, dtype=np.dtype(query), is_causal=0)
    drawn = np.random.default_rng(22).integers(0 if np.dtype(type).kind in "bu" else -3, 4, (2, 1, 4, 7))
    inputs["attn_mask"] = (drawn > 0) if type is bool else drawn.astype(type)
    want = truth(inputs, attributes, q, k, v)
    assert_close(attention(inputs, attributes, domain=domain, drop_in="attention")["Y"], want, query)
    if domain or np.dtype(query) == BF16:  # for which ORT has no kernel
        return
    for opset in (23, 24, 25) if VERSION >= (1, 28) else (23,):
        # From opset 24 on ORT's function pads the mask, and has no Pad of these; before 1.32 none of bfloat16 either.
        unpadded = (np.int16, np.uint16) if VERSION >= (1, 32) else (np.int16, np.uint16, BF16)
        if (opset == 23 or type not in unpadded) and VERSION >= (1, 30):
            got = ours(inputs, attributes, opset=opset)["Y"]
            assert_close(got, want, query)
            assert_close(got, attention(inputs, attributes, lib=None, opset=opset)["Y"], query, least=1e-6)


@pytest.mark.parametrize("type,hides", [(np.int64, -2**63), (np.int64, -10**6), (np.int32, -2**31), (np.float64, -1e300),
                                        (np.float64, -np.inf)], ids=str)
@pytest.mark.parametrize("S", [1, 5])
def test_a_wide_mask_may_hide(S, type, hides):
    harness.skip_on_device("no CUDA kernel converts this type: cuda_test.py")
    inputs, attributes, q, k, v = case(23, S=S, new=90)
    seen = np.arange(90) >= 70 + np.arange(S)[:, None]
    inputs["attn_mask"] = np.where(seen, 0, hides).astype(type)
    want = truth({**inputs, "attn_mask": seen}, attributes, q, k, v)
    assert_close(ours(inputs, attributes)["Y"], want, np.float32)
    assert_close(attention(inputs, attributes, lib=None)["Y"], want, np.float32)


def test_a_large_mask_of_integers_is_added_on_several_threads():
    harness.skip_on_device("no CUDA kernel converts this type: cuda_test.py")
    inputs, attributes, q, k, v = case(24, S=300, new=500)
    inputs["attn_mask"] = np.random.default_rng(25).integers(-3, 4, (2, HQ, 300, 500))
    assert_close(ours(inputs, attributes)["Y"], truth(inputs, attributes, q, k, v), np.float32)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_mask_and_triangle_both_hide(kind):
    inputs, attributes, q, k, v = case(4, S=6, new=6, is_causal=1)
    inputs["attn_mask"] = (np.random.default_rng(5).random((6, 6)) < 0.6 if kind == "bool" else
                           draw(np.random.default_rng(5), 6, 6))
    got = ours(inputs, attributes)["Y"]
    assert_close(got, truth(inputs, attributes, q, k, v), np.float32)
    if VERSION >= (1, 30) or kind == "float":  # 1.24.4 and 1.27.0 drop a bool mask beside is_causal
        assert_close(got, attention(inputs, attributes, lib=None)["Y"], np.float32)


def test_fully_masked_rows_give_zeros_and_a_finite_bias_does_not():
    inputs, attributes, q, k, v = case(6, S=3, new=5)
    mask = np.ones((3, 5), bool)
    mask[1] = False
    inputs["attn_mask"] = mask
    assert (ours(inputs, attributes)["Y"][:, :, 1] == 0).all()
    inputs["attn_mask"] = np.where(mask, 0, -40000).astype(np.float32)
    got = ours(inputs, attributes)["Y"]
    assert (got[:, :, 1] != 0).any()
    # float32 rounds scores next to -40000 to multiples of 1/256.
    assert np.abs(got - truth(inputs, attributes, q, k, v)).max() < 1e-2


@pytest.mark.parametrize("hides", [False, -np.inf, np.finfo(np.float32).min], ids=["bool", "infinity", "lowest"])
@pytest.mark.parametrize("S", [1, 5, 70])
def test_a_window_written_as_a_mask_is_read_as_a_window(S, hides):
    harness.skip_on_device("keys that a finite bias hides are read", hides not in (False, -np.inf))
    T, window = 300, 40
    inputs, attributes, q, k, v = case(7, S=S, new=T)
    distance = T - S + np.arange(S)[:, None] - np.arange(T)
    seen = (distance >= 0) & (distance < window)
    inputs["attn_mask"] = seen if hides is False else np.where(seen, 0, hides).astype(np.float32)
    want = truth({**inputs, "attn_mask": seen}, attributes, q, k, v)
    assert_close(attention(inputs, attributes, lib=None)["Y"], want, np.float32)
    for tensor in ("K", "V"):
        inputs[tensor][:, :, :T - S - window + 1] = np.nan
    assert_close(ours(inputs, attributes)["Y"], want, np.float32)


def test_lower_right_alignment_is_the_session_entrys():
    inputs, attributes, q, k, v = case(7, S=2, new=7, is_causal=1)
    assert_close(ours(inputs, attributes)["Y"], truth(inputs, attributes, q, k, v, offset=0), np.float32)
    assert_close(ours(inputs, attributes, causal_alignment="spec")["Y"], truth(inputs, attributes, q, k, v, offset=0), np.float32)
    assert_close(ours(inputs, attributes, causal_alignment="lower_right")["Y"],
                 truth(inputs, attributes, q, k, v, offset=5), np.float32)


@pytest.mark.parametrize("attributes", [{"is_causal": 1}, {}], ids=["causal", "full"])
@pytest.mark.parametrize("S", [1, 3])
def test_nonpad_kv_seqlen_bounds_each_sequence(attributes, S):
    inputs, attributes, q, k, v = case(8, S=S, new=8, rank=3, **attributes)
    inputs["nonpad_kv_seqlen"] = np.array([8, 4], np.int64)
    visible = np.arange(8)[None, None, None] < inputs["nonpad_kv_seqlen"][:, None, None, None]
    want = truth(inputs, attributes, q, k, v, offset=inputs["nonpad_kv_seqlen"] - S, visible=visible)
    assert_close(ours(inputs, attributes)["Y"], want, np.float32)


@pytest.mark.parametrize("left,right,causal", [(2, -1, 1), (0, -1, 1), (3, -1, 0), (1, 2, 0), (-1, 0, 0)])
@pytest.mark.parametrize("shape", ["square", "past_chunk"])
def test_opset_25_windows_count_keys_on_each_side(shape, left, right, causal):
    inputs, attributes, q, k, v = case(9, **SHAPES[shape], is_causal=causal, left_window_size=left, right_window_size=right)
    opset = 25 if VERSION >= (1, 28) else 24
    assert_close(ours(inputs, attributes, opset=opset)["Y"], truth(inputs, attributes, q, k, v), np.float32)


@pytest.mark.parametrize("opset", [23, 24, 25] if VERSION >= (1, 28) else [23, 24])
@pytest.mark.parametrize("shape", ["square", "past_decode", "past_chunk"])
def test_local_window_size_is_the_requested_attribute(shape, opset):
    inputs, attributes, q, k, v = case(10, **SHAPES[shape], is_causal=1, local_window_size=3)
    assert_close(ours(inputs, attributes, opset=opset)["Y"], truth(inputs, attributes, q, k, v), np.float32)


@pytest.mark.parametrize("dtype", [BF16, np.float64], ids=["bf16", "f64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_types_that_ort_has_no_kernel_for(shape, dtype):
    inputs, attributes, q, k, v = case(11, dtype=np.dtype(dtype), **SHAPES[shape], is_causal=1)
    outputs = ("Y", "present_key", "present_value") if "past_key" in inputs else ("Y",)
    assert_close(ours(inputs, attributes, outputs)["Y"], truth(inputs, attributes, q, k, v), dtype)


@pytest.mark.parametrize("past", [0, 5])
def test_value_heads_may_be_of_another_size(past):
    inputs, attributes, q, k, v = case(12, S=3, new=3, past=past, Dv=24)
    assert_close(ours(inputs, attributes)["Y"], truth(inputs, attributes, q, k, v), np.float32)


def test_past_without_present_and_present_without_past():
    inputs, attributes, q, k, v = case(13, S=2, new=2, past=4, is_causal=1)
    assert_close(ours(inputs, attributes)["Y"], truth(inputs, attributes, q, k, v), np.float32)
    inputs, attributes, q, k, v = case(13, S=2, new=2, rank=3, is_causal=1)
    got = ours(inputs, attributes, ("Y", "present_key", "present_value"))
    assert_close(got["Y"], truth(inputs, attributes, q, k, v), np.float32)
    np.testing.assert_array_equal(got["present_key"], k)


def test_empty_new_keys_with_a_past():
    # ORT bug 6.
    inputs, attributes, q, k, v = case(14, S=2, new=0, past=5, rank=3)
    assert_close(ours(inputs, attributes)["Y"], truth(inputs, attributes, q, k, v), np.float32)


def test_no_keys_give_zeros_and_no_batch_gives_nothing():
    inputs, attributes, *_ = case(15, S=2, new=0, rank=3)
    assert (ours(inputs, attributes)["Y"] == 0).all()
    for shape in ((2, 0), (2, 1), (1,), (1, 1, 1, 1)):  # 1 is the extent of no keys as well
        assert (ours({**inputs, "attn_mask": np.ones(shape, bool)}, attributes)["Y"] == 0).all()
    inputs, attributes, *_ = case(15, S=2, new=3, B=0)
    assert ours(inputs, attributes)["Y"].shape == (0, HQ, 2, D)


def stages(inputs, attributes, q, k, visible):
    """What qk_matmul_output holds by mode, in float64; visible [.., S, T] hides by -inf."""
    k = k.astype(np.float64).repeat(HQ // HKV, 1)
    raw = np.einsum("bhsd,bhtd->bhst", q.astype(np.float64), k) / np.sqrt(D)
    cap = attributes.get("softcap", 0)
    capped = cap * np.tanh(raw / cap) if cap else raw
    bias = inputs.get("attn_mask", np.zeros(1))
    bias = np.where(bias, 0, -np.inf) if bias.dtype == bool else bias.astype(np.float64)
    masked = np.where(visible, capped + bias, -np.inf)
    weights = np.exp(masked - np.maximum(masked.max(-1, keepdims=True), -1e30))
    return raw, capped, masked, weights / np.maximum(weights.sum(-1, keepdims=True), 1e-300)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16, np.float64], ids=["f32", "f16", "bf16", "f64"])
@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["causal", "bool", "float", "window"])
@pytest.mark.parametrize("mode", range(4))
def test_qk_matmul_output_holds_the_stage_of_its_mode(mode, kind, shape, rank, dtype):
    extra = {"causal": {"is_causal": 1}, "window": {"left_window_size": 2}}.get(kind, {})
    inputs, attributes, q, k, v = case(17, dtype=np.dtype(dtype), rank=rank, softcap=1.5, qk_matmul_output_mode=mode,
                                       **extra, **SHAPES[shape])
    S, T, past = q.shape[2], k.shape[2], k.shape[2] - SHAPES[shape]["new"]
    rng = np.random.default_rng(18)
    if kind == "bool":
        inputs["attn_mask"] = rng.random((2, 1, S, T)) < 0.6
        inputs["attn_mask"][0, 0, 0] = False
    if kind == "float":
        inputs["attn_mask"] = np.where(rng.random((HQ, S, T)) < 0.6, draw(rng, HQ, S, T), -np.inf).astype(dtype)
    ahead = np.arange(T) - np.arange(S)[:, None] - past
    visible = ahead <= 0 if kind == "causal" else ahead >= -2 if kind == "window" else np.bool_(True)
    want = stages(inputs, attributes, q, k, visible)[mode]
    got = ours(inputs, attributes, ("Y", "qk_matmul_output"), opset=25 if kind == "window" and VERSION >= (1, 28) else 24)
    scores = got["qk_matmul_output"]
    assert scores.dtype == dtype
    np.testing.assert_array_equal(scores == -np.inf, want == -np.inf)
    assert_close(np.where(want == -np.inf, 0, scores), np.where(want == -np.inf, 0, want), dtype)
    if dtype == np.float32 and VERSION >= (1, 30) and kind != "window":
        theirs = attention(inputs, attributes, ("Y", "present_key", "present_value", "qk_matmul_output"), lib=None)["qk_matmul_output"]
        seen = want != -np.inf  # there ORT has the lowest finite number, ONNX -inf
        assert_close(scores[seen], theirs[seen], dtype)


def test_qk_matmul_output_of_padding_is_shown_raw_and_hidden_after_the_mask():
    inputs, attributes, q, k, v = case(19, S=2, new=6)
    inputs["nonpad_kv_seqlen"] = np.array([6, 4], np.int64)
    visible = np.arange(6) < inputs["nonpad_kv_seqlen"][:, None, None, None]
    for mode, want in enumerate(stages(inputs, attributes, q, k, visible)):
        got = ours(inputs, {**attributes, "qk_matmul_output_mode": mode}, ("Y", "qk_matmul_output"))["qk_matmul_output"]
        np.testing.assert_array_equal(got == -np.inf, want == -np.inf)
        assert_close(np.where(want == -np.inf, 0, got), np.where(want == -np.inf, 0, want), np.float32)


def test_an_unknown_qk_matmul_output_mode_is_refused():
    inputs, attributes, *_ = case(20, S=2, new=2)
    with pytest.raises(Exception, match="attribute 'qk_matmul_output_mode' is 4; needs 0 .raw., 1 .softcap., 2 .mask. or 3 .softmax."):
        ours(inputs, {**attributes, "qk_matmul_output_mode": 4}, ("Y", "qk_matmul_output"))


def test_counters_name_the_node():
    counters = Counters()
    counters.reset()
    inputs, attributes, *_ = case(16, S=2, new=2)
    attention(inputs, attributes, drop_in="attention")
    stats = counters.read()
    assert stats["ran"] == 1
    assert [n["node"] for n in stats["nodes"] if n["ran"]] == ["node"]
