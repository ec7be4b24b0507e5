"""Bad input is refused before memory is read, with one line that names node, input, value and want."""
import ml_dtypes
import numpy as np
import pytest

import harness
from gqa_test import HKV, HQ, Problem
from harness import ATTENTION_INPUTS, ATTENTION_OUTPUTS, OPSET, attention, gqa


def refusal(call):
    with pytest.raises(Exception) as caught:
        call()
    return str(caught.value)


def decode(**attributes):
    return Problem(50, S=1, lens=[12, 5], past=11, **attributes)


def shared():
    p = Problem(51, S=1, lens=[12, 5], past=12, kind="shared", do_rotary=1)
    return p


def external():
    p = shared()
    inputs = {n: a for n, a in p.inputs.items() if n not in ("key", "value", "past_key", "past_value")}
    return p, {**inputs, "external_key": p.past_k, "external_value": p.past_v}


def without(inputs, *names):
    return {n: a for n, a in inputs.items() if n not in names}


def changed(name, change):
    def apply(inputs):
        inputs[name] = change(inputs[name])
        return inputs
    return apply


def i32(*values):
    return np.array(values, np.int32)


OWN = {
    "query_rank": (changed("query", lambda a: a[:, 0]), "input 'query' has rank 2 (shape 2x128); needs rank 3"),
    "query_heads": (changed("query", lambda a: a[:, :, :126]), "input 'query' has shape 2x1x126; needs a last extent that 4 heads divide"),
    "key_rank": (changed("key", lambda a: a[:, 0]), "input 'key' has rank 2 (shape 2x64); needs rank 3"),
    "key_heads": (changed("key", lambda a: a[:, :, :32]), "input 'key' has shape 2x1x32; needs 2x1x64"),
    "value_differs": (changed("value", lambda a: a[:, :, :32]), "input 'value' has shape 2x1x32; needs 2x1x64, that of 'key'"),
    "key_without_value": (lambda i: without(i, "value"), "input 'value' is absent while 'key' is given; needs both or neither"),
    "past_half": (lambda i: without(i, "past_value"), "input 'past_value' is absent while 'past_key' is given; needs both or neither"),
    "past_rank": (changed("past_key", lambda a: a[0]), "input 'past_key' has rank 3 (shape 2x11x32); needs rank 4"),
    "past_heads": (changed("past_key", lambda a: a[:, :1]), "input 'past_key' has shape 2x1x11x32; needs 2x2xTx32, [B, kv_num_heads, T, D]"),
    "seqlens_negative": (changed("seqlens_k", lambda a: i32(11, -1)), "input 'seqlens_k' has seqlens_k[1] = -1; needs 0 to 11"),
    "seqlens_over": (changed("seqlens_k", lambda a: i32(12, 4)), "input 'seqlens_k' has seqlens_k[0] = 12; needs 0 to 11"),
    "seqlens_int_max": (changed("seqlens_k", lambda a: i32(11, 2**31 - 1)), "seqlens_k[1] = 2147483647; needs 0 to 11"),
    "seqlens_2x2": (changed("seqlens_k", lambda a: np.zeros((2, 2), np.int32)), "input 'seqlens_k' has shape 2x2; needs [B], or B among dimensions of 1, with B = 2"),
    "seqlens_scalar": (changed("seqlens_k", lambda a: np.array(3, np.int32)), "input 'seqlens_k' has shape scalar; needs [B]"),
    "total_zero": (changed("total_sequence_length", lambda a: np.array(0, np.int32)), "input 'total_sequence_length' is 0; needs at least 1"),
    "total_vector": (changed("total_sequence_length", lambda a: i32(12, 12)), "input 'total_sequence_length' has shape 2; needs one number"),
    "bias_columns": (lambda i: {**i, "attention_bias": np.zeros((1, 1, 1, 11), np.float32)}, "input 'attention_bias' has shape 1x1x1x11; needs 2x4x1x12"),
    "bias_rank": (lambda i: {**i, "attention_bias": np.zeros((1, 12), np.float32)}, "input 'attention_bias' has rank 2 (shape 1x12); needs rank 4"),
    "query_seqlens": (lambda i: {**i, "query_seqlens": np.zeros(3, np.int32)}, "input 'query_seqlens' has shape 3; needs [B] = [2]"),
    "seqlens_under": (lambda i: {**i, "query": np.repeat(i["query"], 3, 1), "key": np.repeat(i["key"], 3, 1), "value": np.repeat(i["value"], 3, 1),
                                 "seqlens_k": i32(11, 1)}, "input 'seqlens_k' has seqlens_k[1] = 1; needs at least 2: the last of the S = 3 new tokens"),
    "seqlens_behind_past": (lambda i: {**i, "past_key": i["past_key"][:, :, :5], "past_value": i["past_value"][:, :, :5]},
                            "input 'seqlens_k' has seqlens_k[0] = 11; needs at most 5: 5 past rows and 1 new ones"),
    "query_norm": (lambda i: {**i, "q_norm_weight": np.ones(31, np.float32), "k_norm_weight": np.ones(32, np.float32)}, "input 'q_norm_weight' has shape 31; needs [D] = [32]"),
    "key_norm": (lambda i: {**i, "q_norm_weight": np.ones(32, np.float32), "k_norm_weight": np.ones(31, np.float32)}, "input 'k_norm_weight' has shape 31; needs [D] = [32]"),
    "sink": (lambda i: {**i, "head_sink": np.zeros(3, np.float32)}, "input 'head_sink' has shape 3; needs [num_heads] = [4]"),
}


@pytest.mark.parametrize("domain", ["com.microsoft", "kvshare"])
@pytest.mark.parametrize("case", OWN)
def test_a_wrong_input_of_an_own_layer_is_named(case, domain):
    change, text = OWN[case]
    p = decode()
    message = refusal(lambda: gqa(change(dict(p.inputs)), p.attributes, domain=domain, drop_in="gqa"))
    assert f"GroupQueryAttention 'node': " in message and text in message


ROTARY = {
    "tables_differ": (lambda i: {**i, "sin_cache": np.zeros((64, 15), np.float32)}, "input 'sin_cache' has shape 64x15; needs 64x16, that of 'cos_cache'"),
    "table_rank": (lambda i: {**i, "cos_cache": np.zeros(64, np.float32), "sin_cache": np.zeros(64, np.float32)}, "input 'cos_cache' has rank 1 (shape 64); needs rank 2 [max_positions, rotary_dim / 2]"),
    "no_tables": (lambda i: without(i, "cos_cache", "sin_cache"), "input 'cos_cache' is absent; needs both tables, because do_rotary is 1"),
    "one_table": (lambda i: without(i, "sin_cache"), "input 'sin_cache' is absent while 'cos_cache' is given"),
    "too_wide": (lambda i: {**i, "cos_cache": np.zeros((64, 17), np.float32), "sin_cache": np.zeros((64, 17), np.float32)}, "input 'cos_cache' has shape 64x17; needs 1 to 16 columns"),
    "too_short": (lambda i: {**i, "cos_cache": np.zeros((10, 16), np.float32), "sin_cache": np.zeros((10, 16), np.float32)}, "input 'cos_cache' has 10 rows; needs a row for position 11 of batch 0"),
    "position_over": (lambda i: {**i, "position_ids": np.array([[3], [64]], np.int64)}, "input 'position_ids' puts token 0 of batch 1 at 64; needs 0 to 63"),
    "position_negative": (lambda i: {**i, "position_ids": np.array([[3], [-1]], np.int64)}, "input 'position_ids' puts token 0 of batch 1 at -1"),
    "position_shape": (lambda i: {**i, "position_ids": np.array([3, 4], np.int64)}, "input 'position_ids' has shape 2; needs 2x1, [B, S]"),
}


@pytest.mark.parametrize("case", ROTARY)
def test_a_wrong_rotary_table_or_position_is_named(case):
    change, text = ROTARY[case]
    p = decode(do_rotary=1)
    assert text in refusal(lambda: gqa(change(dict(p.inputs)), p.attributes, drop_in="gqa"))


EXTERNAL = {
    "half": (lambda i: without(i, "external_value"), "input 'external_value' is absent while 'external_key' is given; needs both or neither"),
    "other_half": (lambda i: without(i, "external_key"), "input 'external_key' is absent while 'external_value' is given; needs both or neither"),
    "with_key": (lambda i: {**i, "key": np.zeros((2, 1, 64), np.float32), "value": np.zeros((2, 1, 64), np.float32)}, "input 'external_key' is given together with 'key'; needs key, value, past_key and past_value absent"),
    "with_past": (lambda i: {**i, "past_key": i["external_key"], "past_value": i["external_value"]}, "input 'external_key' is given together with 'past_key'"),
    "rank": (changed("external_key", lambda a: a[0]), "input 'external_key' has rank 3 (shape 2x12x32); needs rank 4"),
    "heads": (changed("external_key", lambda a: a[:, :1]), "input 'external_key' has shape 2x1x12x32; needs 2x2xTx32"),
    "head_size": (changed("external_key", lambda a: a[..., :16]), "input 'external_key' has shape 2x2x12x16; needs 2x2xTx32"),
    "value": (changed("external_value", lambda a: a[:, :, :11]), "input 'external_value' has shape 2x2x11x32; needs 2x2x12x32, that of 'external_key'"),
    "length": (changed("seqlens_k", lambda a: i32(11, 12)), "input 'seqlens_k' has seqlens_k[1] = 12; needs 0 to 11"),
    "total": (changed("total_sequence_length", lambda a: np.array(13, np.int32)), "input 'total_sequence_length' is 13; needs at most 12, the rows of 'external_key'"),
}


@pytest.mark.parametrize("domain", ["com.microsoft", "kvshare"])
@pytest.mark.parametrize("case", EXTERNAL)
def test_a_wrong_external_pair_is_named(case, domain):
    change, text = EXTERNAL[case]
    p, inputs = external()
    assert text in refusal(lambda: gqa(change(inputs), p.attributes, ("output",), domain, drop_in="gqa"))


def test_shared_form_wants_a_past_that_covers_total():
    p = shared()
    message = refusal(lambda: gqa(without(p.inputs, "past_key", "past_value"), p.attributes, ("output",), drop_in="gqa"))
    assert "input 'key' has length 0 and there is no past" in message
    p.inputs["total_sequence_length"] = np.array(13, np.int32)
    message = refusal(lambda: gqa(p.inputs, p.attributes, ("output",), drop_in="gqa"))
    assert "input 'total_sequence_length' is 13; needs at most 12, the rows of 'past_key'" in message


def test_one_present_without_the_other_is_refused():
    p = decode()
    message = refusal(lambda: gqa(p.inputs, p.attributes, ("output", "present_key"), drop_in="gqa"))
    assert "output 'present_value' is absent while 'present_key' is named; needs both or neither" in message


@pytest.mark.parametrize("attributes,text", [
    ({"num_heads": 0}, "attribute 'num_heads' is 0; needs at least 1"),
    ({"num_heads": 2**62, "kv_num_heads": 2**62}, "attribute 'num_heads' is 4611686018427387904; needs at most 2147483647"),
    ({"kv_num_heads": 0}, "attribute 'kv_num_heads' is 0; needs at least 1"),
    ({"num_heads": 3}, "attribute 'num_heads' is 3; needs a multiple of kv_num_heads = 2"),
    ({"causal": 2}, "attribute 'causal' is 2; needs 0 or 1"),
    ({"local_window_size": 4, "causal": 0}, "attribute 'local_window_size' is 4; needs causal = 1"),
    ({"local_window_size": 0}, "attribute 'local_window_size' is 0; needs at least 1"),
    ({"qk_output": 3}, "attribute 'qk_output' is 3; needs 0 (none), 1 (before the softmax) or 2 (after)"),
    ({"softcap": float("inf")}, "attribute 'softcap' is inf; needs a finite number >= 0"),
])
def test_a_wrong_attribute_of_gqa_is_named(attributes, text):
    p = decode(**attributes)
    assert text in refusal(lambda: gqa(p.inputs, p.attributes, domain="kvshare"))


@pytest.mark.parametrize("name,type,text", [
    ("key", np.float16, "input 'key' has type f16; needs f32, that of the inputs before it"),
    ("external_key", np.float16, "input 'external_value' has type f32; needs f16, that of the inputs before it"),
    ("seqlens_k", np.int64, "input 'seqlens_k' has type int64; needs int32"),
    ("total_sequence_length", np.uint64, "input 'total_sequence_length' has type uint64; needs int32"),
])
@pytest.mark.parametrize("domain", ["com.microsoft", "kvshare"])
def test_types_that_do_not_fit_are_refused_by_name(domain, name, type, text):
    p, inputs = external() if name == "external_key" else (decode(), None)
    inputs = dict(inputs or p.inputs)
    inputs[name] = inputs[name].astype(type)
    outputs = ("output",) if name == "external_key" else ("output", "present_key", "present_value")
    message = refusal(lambda: gqa(inputs, p.attributes, outputs, domain, drop_in="gqa",
                                  output_types={"output": np.float32, "present_key": np.float32, "present_value": np.float32}))
    assert f"GroupQueryAttention 'node': {text}" in message, message


def small_attention(**extra):
    draw = np.random.default_rng(52).standard_normal
    f = lambda *s: draw(s).astype(np.float32)
    inputs = {"Q": f(2, 3, HQ * 16), "K": f(2, HKV, 8, 16), "V": f(2, HKV, 8, 16)}
    return inputs, {"q_num_heads": HQ, "kv_num_heads": HKV, "is_causal": 1, **extra}


ATTENTION = {
    "query_rank": (changed("Q", lambda a: a[0]), {}, "input 'Q' has rank 2 (shape 3x64); needs rank 3"),
    "query_heads": (lambda i: i, {"q_num_heads": 5}, "input 'Q' has shape 2x3x64 and q_num_heads is 5; needs a number of heads that divides"),
    "key_heads": (lambda i: i, {"kv_num_heads": 4}, "input 'K' has 2 heads (shape 2x2x8x16); needs kv_num_heads = 4"),
    "head_size": (changed("K", lambda a: a[..., :8]), {}, "input 'key' has D = 8"),
    "batch": (changed("K", lambda a: a[:1]), {}, "input 'key' has B = 1"),
    "value_tokens": (changed("V", lambda a: a[:, :, :7]), {}, "input 'V' has 7 tokens (shape 2x2x7x16); needs 8 like 'K'"),
    "value_tokens_behind_a_past": (lambda i: {**i, "past_key": i["K"], "past_value": i["V"], "V": i["V"][:, :, :7]}, {},
                                   "input 'V' has 7 tokens (shape 2x2x7x16); needs 8 like 'K'"),
    "past_half": (lambda i: {**i, "past_key": i["K"]}, {}, "input 'past_value' is absent while 'past_key' is given"),
    "past_value_rank": (lambda i: {**i, "past_key": i["K"], "past_value": i["V"][0]}, {}, "input 'past_value' has rank 3 (shape 2x8x16); needs rank 4 [B, Hkv, P, Dv]"),
    "nonpad_with_past": (lambda i: {**i, "past_key": i["K"], "past_value": i["V"], "nonpad_kv_seqlen": np.array([8, 8])}, {}, "input 'nonpad_kv_seqlen' is given together with 'past_key'; needs one of them"),
    "mask_rank": (lambda i: {**i, "attn_mask": np.zeros((1, 1, 1, 3, 8), bool)}, {}, "input 'attn_mask' has rank 5"),
    "mask_shape": (lambda i: {**i, "attn_mask": np.zeros((2, 8), bool)}, {}, "input 'attn_mask' has shape 2x8; needs one that broadcasts to 2x4x3x8"),
    "nonpad_over": (lambda i: {**i, "nonpad_kv_seqlen": np.array([8, 9])}, {}, "input 'nonpad_kv_seqlen' has nonpad_kv_seqlen[1] = 9; needs 0 to 8"),
    "nonpad_shape": (lambda i: {**i, "nonpad_kv_seqlen": np.array([8])}, {}, "input 'nonpad_kv_seqlen' has shape 1; needs [B] = [2]"),
    "window_zero": (lambda i: i, {"local_window_size": 0}, "attribute 'local_window_size' is 0; needs at least 1"),
    "window_not_causal": (lambda i: i, {"local_window_size": 4, "is_causal": 0}, "attribute 'local_window_size' is 4; needs is_causal = 1"),
    "two_windows": (lambda i: i, {"local_window_size": 4, "left_window_size": 3}, "attribute 'local_window_size' is 4; needs left_window_size = -1"),
    "left_window": (lambda i: i, {"left_window_size": -2}, "attribute 'left_window_size' is -2; needs -1 or more"),
    "right_window": (lambda i: i, {"right_window_size": -2}, "attribute 'right_window_size' is -2; needs -1 or more"),
    "query_heads_negative": (lambda i: i, {"q_num_heads": -1}, "attribute 'q_num_heads' is -1; needs 0 to 2147483647"),
    "kv_heads_negative": (lambda i: i, {"kv_num_heads": -1}, "attribute 'kv_num_heads' is -1; needs 0 to 2147483647"),
}


@pytest.mark.parametrize("domain", ["", "kvshare"])
@pytest.mark.parametrize("case", ATTENTION)
def test_a_wrong_input_or_attribute_of_attention_is_named(case, domain):
    change, attributes, text = ATTENTION[case]
    inputs, attributes = (lambda pair: (change(pair[0]), pair[1]))(small_attention(**attributes))
    message = refusal(lambda: attention(inputs, attributes, domain=domain, drop_in="attention"))
    assert "Attention 'node': " in message and text in message, message


@pytest.mark.parametrize("name,domain,text", [
    ("attn_mask", "", "input 'attn_mask' has type float8e4m3fn; needs bool, a type of floats from f16 to f64, or one of integers"),
    ("attn_mask", "kvshare", "input 'attn_mask' has type float8e4m3fn; needs bool, a type of floats from f16 to f64, or one of integers"),
    ("key_mask", "kvshare", "input 'key_mask' has type float8e4m3fn; needs int64, int32 or bool"),
])
def test_a_mask_of_a_type_that_is_not_served_fails_the_session(name, domain, text):
    inputs, attributes = small_attention()
    inputs[name] = np.zeros((2, 8) if name == "key_mask" else (3, 8), ml_dtypes.float8_e4m3fn)
    m = harness.model("Attention", domain, ATTENTION_INPUTS if domain else ATTENTION_INPUTS[:7], ATTENTION_OUTPUTS, inputs, ("Y",),
                      attributes, opset=OPSET)
    assert f"Attention 'node': {text}" in refusal(lambda: harness.session(m, drop_in="attention"))


@pytest.mark.parametrize("mask,text", [
    (np.ones((2, 9), np.int64), "input 'key_mask' has shape 2x9; needs 2x8, [B, T] of the keys"),
    (np.ones((2, 1, 8), np.int64), "input 'key_mask' has shape 2x1x8; needs 2x8"),
    (np.ones((2, 8), np.float32), "input 'key_mask' has type f32; needs int64, int32 or bool"),
])
def test_a_key_mask_of_another_shape_or_type_is_named(mask, text):
    inputs, attributes = small_attention()
    assert text in refusal(lambda: attention({**inputs, "key_mask": mask}, attributes, domain="kvshare"))


def test_a_key_mask_beside_a_past_has_a_column_for_each_key():
    inputs, attributes = small_attention()
    past = np.zeros((2, *inputs["K"].shape[1:2], 4, inputs["K"].shape[-1]), np.float32)
    inputs |= {"past_key": past, "past_value": past, "key_mask": np.ones((2, 8), np.int64)}
    assert ("input 'key_mask' has shape 2x8; needs 2x12, [B, T] of the keys"
            in refusal(lambda: attention(inputs, attributes, domain="kvshare")))


def test_key_mask_stands_alone_and_covers_the_queries():
    inputs, attributes = small_attention()
    both = {**inputs, "key_mask": np.ones((2, 8), np.int64), "nonpad_kv_seqlen": np.array([8, 8])}
    assert ("input 'nonpad_kv_seqlen' is given together with 'key_mask'; needs one of them"
            in refusal(lambda: attention(both, attributes, domain="kvshare")))
    short = {**inputs, "key_mask": np.ones((2, 2), np.int64)}
    assert ("input 'key_mask' has T = 2 columns; needs at least S = 3: queries are the last columns"
            in refusal(lambda: attention(short, attributes, domain="kvshare")))


# No token asks, so nothing is attended. The keys would go into a present of the query's batch.
@pytest.mark.parametrize("outputs", [("Y", "present_key"), ("Y", "present_value"), ("Y", "present_key", "present_value")])
def test_keys_of_another_batch_than_a_query_of_no_tokens_are_named(outputs):
    inputs, attributes = small_attention()
    keys = np.zeros((40, HKV, 3000, 16), np.float32)
    inputs = {"Q": inputs["Q"][:1, :0], "K": keys, "V": keys}
    assert "input 'key' has B = 40" in refusal(lambda: attention(inputs, attributes, outputs, drop_in="attention"))


def test_a_tensor_of_rank_9_is_refused():
    p = decode()
    inputs = {**p.inputs, "attention_bias": np.zeros([1] * 9, np.float32)}
    assert "a tensor of rank 9; needs at most 8" in refusal(lambda: gqa(inputs, p.attributes, drop_in="gqa"))
