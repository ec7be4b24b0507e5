"""Domain kvshare: borrowed K/V (Options A and C), key_mask (Option B), against own layers and a float64 reference."""
import ml_dtypes
import numpy as np
import onnx
import pytest

import harness
from gqa_test import HKV, HQ, SHARED_STEPS, VARIANTS, Problem, check_against_truth, hash_of
from harness import VERSION, assert_close, attention, folded, gqa, reference, rope

BF16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float16, BF16], ids=["f32", "f16", "bf16"])


def borrowed(p):
    """The shared-form problem with its past as the external pair, and NaN in every row no sequence owns."""
    inputs = {n: a for n, a in p.inputs.items() if n not in ("key", "value", "past_key", "past_value")}
    for name, past in (("external_key", p.past_k), ("external_value", p.past_v)):
        poisoned = past.copy()
        for b, n in enumerate(p.lens):
            poisoned[b, :, n:] = np.nan
        inputs[name] = poisoned
    return inputs


STEPS = pytest.mark.parametrize("step", SHARED_STEPS.values(), ids=SHARED_STEPS.keys())


@DTYPES
@STEPS
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("domain", ["kvshare", "com.microsoft"])
def test_borrowed_keys_are_attended_and_rows_past_the_length_never_read(domain, variant, step, dtype):
    p = Problem(hash_of(variant), kind="shared", dtype=dtype, **step, **VARIANTS[variant])
    entries = {"drop_in": "gqa"} if domain != "kvshare" else {}
    check_against_truth(p, gqa(borrowed(p), p.attributes, ("output",), domain, **entries))


def test_borrowing_equals_the_own_layer_that_wrote_the_cache():
    own = Problem(20, S=1, lens=[9, 4], past=8, do_rotary=1, local_window_size=5)
    wrote = gqa(own.inputs, own.attributes, domain="kvshare")
    check_against_truth(own, wrote)
    inputs = {n: own.inputs[n] for n in ("query", "seqlens_k", "total_sequence_length", "cos_cache", "sin_cache")}
    inputs.update(external_key=wrote["present_key"], external_value=wrote["present_value"])
    read = gqa(inputs, own.attributes, ("output",), "kvshare")
    np.testing.assert_array_equal(read["output"], wrote["output"])


def test_without_do_rotary_the_query_comes_rotated():
    p = Problem(21, kind="shared", S=1, lens=[12, 5], past=12, do_rotary=1)
    inputs = borrowed(p)
    turned = folded(rope(p.q, inputs.pop("cos_cache"), inputs.pop("sin_cache"), p.positions())).astype(np.float32)
    inputs["query"] = turned
    check_against_truth(p, gqa(inputs, {**p.attributes, "do_rotary": 0}, ("output",), "kvshare"))


def test_presents_of_a_borrowed_pair_pass_it_through():
    p = Problem(22, kind="shared", S=1, lens=[12, 5], past=12)
    got = gqa(borrowed(p), p.attributes, domain="kvshare")
    check_against_truth(p, got)
    assert (got["present_key"][1, :, 5:] == 0).all()


def test_presents_bound_onto_the_borrowed_pair_are_left_alone():
    import onnxruntime as ort
    p = Problem(23, kind="shared", S=1, lens=[12, 5], past=12)
    inputs = borrowed(p)
    m = harness.model("GroupQueryAttention", "kvshare", harness.GQA_INPUTS, harness.GQA_OUTPUTS, inputs,
                      ("output", "present_key", "present_value"), p.attributes)
    sess = harness.session(m)
    values = {n: ort.OrtValue.ortvalue_from_numpy(a) for n, a in inputs.items()}
    binding = sess.io_binding()
    for n, v in values.items():
        binding.bind_ortvalue_input(n, v)
    binding.bind_output("output", "cpu")
    binding.bind_ortvalue_output("present_key", values["external_key"])
    binding.bind_ortvalue_output("present_value", values["external_value"])
    sess.run_with_iobinding(binding)
    check_against_truth(p, {"output": binding.get_outputs()[0].numpy()})
    np.testing.assert_array_equal(values["external_key"].numpy(), inputs["external_key"])


@pytest.mark.parametrize("cache", [np.float16, BF16], ids=["f16", "bf16"])
def test_fp32_query_borrows_a_narrower_cache(cache):
    p = Problem(24, kind="shared", S=1, lens=[12, 5], past=12)
    p.past_k, p.past_v, p.dtype = p.past_k.astype(cache), p.past_v.astype(cache), cache
    check_against_truth(p, gqa(borrowed(p), p.attributes, ("output",), "kvshare"))


# Option B -------------------------------------------------------------------------------------------------------------

T = 12
KEY_MASKS = {
    "full": np.ones((2, T)),
    "right_padding": np.array([[1] * T, [1] * 7 + [0] * 5]),
    "left_padding": np.array([[1] * T, [0] * 5 + [1] * 7]),
    "holes": np.array([[1, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1], [0, 1, 0, 1, 1, 1, 1, 0, 0, 1, 1, 1]]),
    "nothing": np.array([[1] * T, [0] * T]),
}


def key_mask_truth(q, k, v, mask, window=None, bias=None):
    """Written from the contract: positions are running counts of ones, query s stands at column T-S+s."""
    S = q.shape[2]
    position = mask.astype(np.int64).cumsum(1)
    pq, pk = position[:, None, T - S:, None], position[:, None, None, :]
    visible = mask.astype(bool)[:, None, None, :] & (pk <= pq)
    if window:
        visible = visible & (pq - pk < window)
    return folded(reference(q, k, v, visible, 1.0, 0, bias))


def option_b(seed, S, dtype=np.float32):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.standard_normal(s).astype(dtype) for s in ((2, HQ, S, 16), (2, HKV, T, 16), (2, HKV, T, 16)))
    return {"Q": folded(q), "K": k, "V": v}, {"q_num_heads": HQ, "kv_num_heads": HKV, "scale": 1.0, "is_causal": 1}, q, k, v


@DTYPES
@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("S", [1, 5, T])
@pytest.mark.parametrize("mask", KEY_MASKS)
def test_key_mask_is_the_exporters_mask(mask, S, window, dtype):
    inputs, attributes, q, k, v = option_b(30, S, dtype)
    inputs["key_mask"] = KEY_MASKS[mask].astype(np.int64)
    if window:
        attributes["local_window_size"] = window
    got = attention(inputs, attributes, domain="kvshare")["Y"]
    assert got.shape == (2, S, HQ * 16)
    assert_close(got, key_mask_truth(q, k, v, KEY_MASKS[mask], window), dtype)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, bool])
def test_key_mask_takes_three_types(dtype):
    inputs, attributes, q, k, v = option_b(31, 2)
    inputs["key_mask"] = KEY_MASKS["holes"].astype(dtype)
    assert_close(attention(inputs, attributes, domain="kvshare")["Y"], key_mask_truth(q, k, v, KEY_MASKS["holes"]), np.float32)


def test_key_mask_is_causal_whatever_is_causal_says():
    inputs, attributes, q, k, v = option_b(32, 3)
    inputs["key_mask"] = KEY_MASKS["left_padding"].astype(np.int64)
    attributes["is_causal"] = 0
    assert_close(attention(inputs, attributes, domain="kvshare")["Y"],
                 key_mask_truth(q, k, v, KEY_MASKS["left_padding"]), np.float32)


@DTYPES
@pytest.mark.parametrize("S", [1, 5])
@pytest.mark.parametrize("mask", KEY_MASKS)
def test_rows_after_those_of_the_key_mask_are_spare(mask, S, dtype):
    inputs, attributes, q, k, v = option_b(35, S, dtype)
    spare = np.full((2, HKV, 3, 16), np.nan, dtype)
    inputs |= {"K": np.concatenate([k, spare], 2), "V": np.concatenate([v, spare], 2), "key_mask": KEY_MASKS[mask].astype(np.int64)}
    got = attention({**inputs}, {**attributes, "local_window_size": 6}, domain="kvshare")["Y"]
    assert_close(got, key_mask_truth(q, k, v, KEY_MASKS[mask], 6), dtype)


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_scores_have_a_column_for_each_of_the_key_masks(mode):
    inputs, attributes, q, k, v = option_b(36, 5)
    inputs["key_mask"] = KEY_MASKS["holes"].astype(np.int64)
    asked = {**attributes, "qk_matmul_output_mode": mode, "softcap": 2.0}
    want = attention({**inputs}, asked, ("Y", "qk_matmul_output"), domain="kvshare")
    spare = np.full((2, HKV, 3, 16), np.nan, np.float32)
    got = attention({**inputs, "K": np.concatenate([k, spare], 2), "V": np.concatenate([v, spare], 2)}, asked, ("Y", "qk_matmul_output"),
                    domain="kvshare")
    assert got["qk_matmul_output"].shape == (2, HQ, 5, T)
    for name in want:
        np.testing.assert_array_equal(got[name], want[name])


def test_key_mask_goes_with_a_bias():
    inputs, attributes, q, k, v = option_b(33, 3)
    inputs["key_mask"] = KEY_MASKS["right_padding"].astype(np.int64)
    inputs["attn_mask"] = np.random.default_rng(1).standard_normal((2, 1, 3, T)).astype(np.float32)
    want = key_mask_truth(q, k, v, KEY_MASKS["right_padding"], bias=inputs["attn_mask"])
    assert_close(attention(inputs, attributes, domain="kvshare")["Y"], want, np.float32)


@pytest.mark.parametrize("S", [1, 5, T])
@pytest.mark.parametrize("window", [None, 3])
def test_without_key_mask_the_triangle_of_borrowed_keys_is_lower_right(S, window):
    inputs, attributes, q, k, v = option_b(34, S)
    if window:
        attributes["local_window_size"] = window
    got = attention(inputs, attributes, domain="kvshare")["Y"]
    assert_close(got, key_mask_truth(q, k, v, KEY_MASKS["full"], window), np.float32)


def test_four_dimensional_query_gives_a_four_dimensional_output():
    inputs, attributes, q, k, v = option_b(35, 3)
    inputs["Q"] = q
    got = attention(inputs, attributes, domain="kvshare")["Y"]
    assert got.shape == (2, HQ, 3, 16)
    assert_close(folded(got), key_mask_truth(q, k, v, KEY_MASKS["full"]), np.float32)


def test_shapes_are_inferred_where_the_release_allows_it():
    inputs, attributes, *_ = option_b(36, 3)
    sess = harness.session(harness.model("Attention", "kvshare", harness.ATTENTION_INPUTS, harness.ATTENTION_OUTPUTS, inputs,
                                         ("Y",), attributes))
    if harness.VERSION >= (1, 24):
        assert sess.get_outputs()[0].shape[:2] == ["Q_0", "Q_1"]
    p = Problem(37, kind="shared", S=1, lens=[12, 5], past=12)
    sess = harness.session(harness.model("GroupQueryAttention", "kvshare", harness.GQA_INPUTS, harness.GQA_OUTPUTS, borrowed(p),
                                         ("output", "present_key", "present_value"), p.attributes))
    if harness.VERSION >= (1, 24):
        assert sess.get_outputs()[0].shape == ["query_0", "query_1", "query_2"]
    if harness.VERSION >= (1, 28):
        assert sess.get_outputs()[1].shape[:2] == ["query_0", HKV] and sess.get_outputs()[1].shape[3] == "external_key_3"


@pytest.mark.skipif(VERSION < (1, 24), reason="no shape inference there")
@pytest.mark.parametrize("query,value,want", [((1, 2, 64), (1, 5, 48), [4 * 24]), ((1, 4, 2, 16), (1, 2, 5, 24), [2, 24]),
                                              ((1, 4, 2, 16), (1, 5, 48), [2, 24]), ((1, 2, 64), (1, 2, 5, 24), [4 * 24])])
def test_the_inferred_width_is_that_of_the_values(query, value, want):
    f = lambda shape: np.zeros(shape, np.float32)
    inputs = {"Q": f(query), "K": f((1, 5, 32)), "V": f(value)}
    m = onnx.load_from_string(harness.model("Attention", "kvshare", harness.ATTENTION_INPUTS, harness.ATTENTION_OUTPUTS, inputs,
                                            ("Y",), {"q_num_heads": 4, "kv_num_heads": 2}))
    for i in m.graph.input:  # constants, not symbols
        for d, n in zip(i.type.tensor_type.shape.dim, inputs[i.name].shape):
            d.dim_value = n
    assert harness.session(m.SerializeToString()).get_outputs()[0].shape[-len(want):] == want


@pytest.mark.parametrize("name", ["q_num_heads", "kv_num_heads"])
@pytest.mark.parametrize("heads", [2**31, 2**62, 2**63 - 1, -1, -2**63])
def test_heads_that_no_tensor_has_are_refused_before_anything_is_computed_from_them(heads, name):
    f = lambda *shape: np.zeros(shape, np.float32)
    inputs = {"Q": f(1, 2, 64), "K": f(1, 5, 32), "V": f(1, 5, 48)}
    with pytest.raises(Exception, match=f"Attention 'node': attribute '{name}' is {heads}; needs 0 to 2147483647"):
        harness.attention(inputs, {"q_num_heads": 4, "kv_num_heads": 2, name: heads}, domain="kvshare")


@pytest.mark.skipif(VERSION < (1, 24), reason="no shape inference there")
def test_declared_extents_whose_product_no_number_holds_leave_the_shape_open():
    f = lambda *shape: np.zeros(shape, np.float32)
    inputs = {"Q": f(1, 2, 64), "K": f(1, 2, 5, 16), "V": f(1, 2, 5, 16)}
    m = onnx.load_from_string(harness.model("Attention", "kvshare", harness.ATTENTION_INPUTS, harness.ATTENTION_OUTPUTS, inputs,
                                            ("Y",), {"q_num_heads": 2**31 - 1, "kv_num_heads": 2}))
    m.graph.input[2].type.tensor_type.shape.dim[3].dim_value = 2**62
    assert not isinstance(harness.session(m.SerializeToString()).get_outputs()[0].shape[-1], int)


def test_a_query_of_no_width_has_no_heads():
    f = lambda *shape: np.zeros(shape, np.float32)
    with pytest.raises(Exception, match="input 'Q' has shape 1x2x0 and q_num_heads is 4; needs a number of heads that divides"):
        harness.attention({"Q": f(1, 2, 0), "K": f(1, 5, 32), "V": f(1, 5, 48)}, {"q_num_heads": 4, "kv_num_heads": 2}, domain="kvshare")
