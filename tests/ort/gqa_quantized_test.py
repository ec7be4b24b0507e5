"""int8, int4 and fp8 caches: ORT's own kernel's codes and outputs where it has one, float64 on the dequantized cache else."""
import ml_dtypes
import numpy as np
import pytest

import harness
from gqa_test import D, HKV, HQ, STEPS, Problem
from harness import VERSION, assert_close, folded, gqa

F8 = np.dtype(ml_dtypes.float8_e4m3fn)
BITS = {"int8": 8, "int4": 4, "fp8": 8}
ORT_HAS_QUANTIZED = VERSION >= (1, 27)


def pack(codes):
    """int4 codes [..., D] as ORT stores them: two a byte, the even channel low, each plus 8."""
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], -1)
    return ((codes[..., 0::2] + 8) | ((codes[..., 1::2] + 8) << 4)).astype(np.uint8)


def unpack(pairs, head_size):
    both = np.stack([pairs & 15, pairs >> 4], -1).astype(np.int64) - 8
    return both.reshape(*pairs.shape[:-1], -1)[..., :head_size]


class Quantized(Problem):
    """`codes` of the cache; past_k and past_v are what they mean."""

    def __init__(self, cache, per_channel, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.cache, self.per_channel = cache, per_channel
        self.quantize()

    def quantize(self):
        rng, D = self.rng, self.D
        for name, side in (("past_key", "k"), ("past_value", "v")):
            shape = (self.B, HKV, self.past, D)
            spread = {"int8": 128, "int4": 8, "fp8": 1}[self.cache]
            scale = rng.uniform(0.5, 1, HKV * D if self.per_channel else 1).astype(np.float32) * np.float32(3 / spread)
            wide = scale.reshape(1, HKV, 1, D) if self.per_channel else scale
            if self.cache == "fp8":
                codes = stored = rng.standard_normal(shape).astype(np.float32).astype(F8)
            else:
                codes = rng.integers(-spread, spread, shape)
                stored = codes.astype(np.int8) if self.cache == "int8" else pack(codes)
            self.inputs[name], self.inputs[f"{side}_scale"] = stored, scale
            setattr(self, f"past_{side}", codes.astype(np.float64) * wide)
        kind = "PER_CHANNEL" if self.per_channel else "PER_TENSOR"
        self.attributes.update(k_quant_type=kind, v_quant_type=kind, kv_cache_bit_width=BITS[self.cache])

    def least(self):
        return harness.CODES if self.cache != "fp8" else 0.0

    def meaning(self, present, side):
        scale = self.inputs[f"{side}_scale"]
        codes = unpack(present, self.D) if self.cache == "int4" else np.asarray(present).astype(np.float64)
        return codes * (scale.reshape(1, HKV, 1, self.D) if self.per_channel else scale)

    def truth(self):
        """Of the cache as it is stored: new rows are read back quantized."""
        names = ("output", "present_key", "present_value")
        present = run(self, names) if self.kind != "shared" else None
        keep = self.k, self.v, self.past_k, self.past_v
        if present is not None:
            keys, values = self.meaning(present["present_key"], "k"), self.meaning(present["present_value"], "v")
            self.kind, kind = "shared", self.kind
            self.past_k, self.past_v = keys, values
            result = super().truth()
            self.kind = kind
        else:
            result = super().truth()
        self.k, self.v, self.past_k, self.past_v = keep
        return result


def run(p, outputs=("output", "present_key", "present_value"), **kwargs):
    return gqa(p.inputs, p.attributes, outputs, drop_in="gqa", **kwargs)


def check(p, got):
    want = p.truth()[0]
    real = p.real()
    assert_close(got["output"][real], want[real], p.dtype, "output", least=p.least())


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
@pytest.mark.parametrize("cache", BITS)
def test_an_own_layer_appends_and_reads_codes(cache, per_channel, step):
    p = Quantized(cache, per_channel, 61, **STEPS[step], do_rotary=1)
    got = run(p)
    check(p, got)
    # Codes are the nearest: half a step from the number, where it is not clamped.
    if cache != "fp8":
        side = p.meaning(got["present_value"], "v")
        scale = p.inputs["v_scale"].reshape(1, HKV, 1, -1) if per_channel else p.inputs["v_scale"]
        for b, n in enumerate(p.lens):
            start = 0 if p.first() else n - p.S
            fresh = p.v[b, :, :n - start].astype(np.float64)
            limit = 2**(BITS[cache] - 1)
            clamped = np.clip(fresh, (-limit * scale)[0], ((limit - 1) * scale)[0]) if per_channel else np.clip(
                fresh, -limit * scale, (limit - 1) * scale)
            assert (np.abs(side[b, :, start:n] - clamped) <= 0.5001 * np.broadcast_to(scale, (1, HKV, 1, p.D))[0]).all()


@pytest.mark.skipif(not ORT_HAS_QUANTIZED, reason="this release has no quantized cache")
@pytest.mark.parametrize("variant", [{}, {"do_rotary": 1}, {"local_window_size": 4, "softcap": 3.0}, {"smooth_softmax": 1}],
                         ids=["plain", "rotary", "window_softcap", "smooth"])
@pytest.mark.parametrize("step", ["first_prompt", "decode", "decode_ragged", "decode_static_cache", "chunk"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
@pytest.mark.parametrize("cache", ["int8", "int4"])
def test_codes_and_output_are_orts(cache, per_channel, step, variant):
    p = Quantized(cache, per_channel, 62, **STEPS[step], **variant)
    got, want = run(p), gqa(p.inputs, p.attributes, lib=None)
    for name in ("present_key", "present_value"):
        for b, n in enumerate(p.lens):
            ours, theirs = got[name][b, :, :n].astype(np.int64), want[name][b, :, :n].astype(np.int64)
            if cache == "int4":
                ours, theirs = unpack(got[name][b, :, :n], p.D), unpack(want[name][b, :, :n], p.D)
            assert np.abs(ours - theirs).max() <= (1 if "do_rotary" in variant else 0), name  # a border, rotated by other sums
            assert (ours != theirs).mean() <= 1e-3, name
    real = p.real()
    np.testing.assert_allclose(got["output"][real], want["output"][real], atol=3e-2 if cache == "int4" else 6e-3)


@pytest.mark.parametrize("form", ["shared", "external"])
@pytest.mark.parametrize("per_channel", [False, True], ids=["per_tensor", "per_channel"])
@pytest.mark.parametrize("cache", BITS)
def test_borrowed_codes_are_read_and_passed_through(cache, per_channel, form):
    # ORT refuses a quantized borrowed cache without presents.
    p = Quantized(cache, per_channel, 63, S=1, lens=[12, 5], past=16, kind="shared", do_rotary=1)
    want = p.truth()[0]
    if form == "external":
        for name in ("key", "value"):
            del p.inputs[name]
            p.inputs[f"external_{name}"] = p.inputs.pop(f"past_{name}")
    got = run(p, ("output",))
    assert_close(got["output"], want, np.float32, least=p.least())
    passed = run(p)
    np.testing.assert_array_equal(passed["output"], got["output"])
    source = p.inputs["external_key" if form == "external" else "past_key"]
    for b, n in enumerate(p.lens):
        np.testing.assert_array_equal(passed["present_key"][b, :, :n].view(np.uint8), source[b, :, :n].view(np.uint8))


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("cache", BITS)
def test_queries_of_16_bits_read_codes(cache, dtype):
    p = Quantized(cache, True, 64, S=1, lens=[12, 5], past=11, dtype=dtype)
    check(p, run(p))


@pytest.mark.parametrize("head_size", [7, 20, 33])
def test_int4_of_any_head_size(head_size):
    p = Quantized("int4", True, 65, S=1, lens=[12, 5], past=11, D=head_size)
    got = run(p)
    assert got["present_key"].shape[3] == (head_size + 1) // 2
    check(p, got)


@pytest.mark.parametrize("outputs", [("output",), ("output", "present_key", "present_value")])
def test_presents_may_stay_unnamed(outputs):
    p = Quantized("int8", False, 66, **STEPS["decode_ragged"])
    check(p, run(p, outputs))


def test_key_and_value_may_be_quantized_differently():
    p = Quantized("int8", True, 67, S=1, lens=[12], past=11)
    p.attributes["v_quant_type"] = "per_tensor"
    p.inputs["v_scale"] = np.array([0.02], np.float32)
    got = run(p)
    p.per_channel = True
    keys = p.meaning(got["present_key"], "k")
    values = got["present_value"].astype(np.float64) * 0.02
    want = harness.reference(p.q, keys, values, True, 1 / np.sqrt(D))
    assert_close(got["output"], folded(want), np.float32, least=p.least())


ERRORS = {
    "no scale": (lambda p: p.inputs.pop("k_scale"), "input 'k_scale' is absent; needs the scale of the quantized cache"),
    "too few scales": (lambda p: p.attributes.update(k_quant_type="PER_CHANNEL"),
                       f"input 'k_scale' has shape 1; needs {HKV * D} elements, one a channel, kv_num_heads*D"),
    "no quantization": (lambda p: p.attributes.update(v_quant_type="NONE"),
                        "attribute 'v_quant_type' is NONE; needs PER_TENSOR or PER_CHANNEL for a cache of int8"),
    "another word": (lambda p: p.attributes.update(v_quant_type="PER_ROW"),
                     "attribute 'v_quant_type' is 'PER_ROW'; needs NONE, PER_TENSOR or PER_CHANNEL"),
    "width": (lambda p: p.attributes.update(kv_cache_bit_width=4),
              "attribute 'kv_cache_bit_width' is 4; needs 8 for a cache of int8"),
    "uint8 without a width": (lambda p: [p.attributes.pop("kv_cache_bit_width"),
                                         p.inputs.update(past_key=p.inputs["past_key"].view(np.uint8),
                                                         past_value=p.inputs["past_value"].view(np.uint8))],
                              "attribute 'kv_cache_bit_width' is 0; needs 4 for a cache of uint8"),
}


@pytest.mark.parametrize("spoil,message", ERRORS.values(), ids=ERRORS.keys())
def test_what_a_quantized_cache_cannot_be_is_named(spoil, message):
    p = Quantized("int8", False, 68, S=1, lens=[12], past=11)
    spoil(p)
    with pytest.raises(Exception) as error:
        run(p)
    assert f"GroupQueryAttention 'node': {message}" in str(error.value)


def test_a_float_cache_is_not_quantized():
    p = Problem(69, S=1, lens=[12], past=11, k_quant_type="PER_TENSOR")
    with pytest.raises(Exception) as error:
        gqa(p.inputs, p.attributes, drop_in="gqa")
    assert "attribute 'k_quant_type' is a quantization; needs NONE for a cache of f32" in str(error.value)
