"""Random calls of both drop-in ops: the kernels here against float64, and float64 against ORT's own op where it takes the model.

The seeds are fixed, and so is how many there are: 400 an op, times KVSHARE_TEST_ROUNDS (`make ci-full`: 10).
KVSHARE_PROPERTY_CASE=n runs the n-th alone."""
import collections
import os

import ml_dtypes
import numpy as np
import pytest

import harness
import specs
from peer import Peer

BF16 = ml_dtypes.bfloat16
COUNT = 400 * int(os.environ.get("KVSHARE_TEST_ROUNDS", "1"))
CASE = os.environ.get("KVSHARE_PROPERTY_CASE")
CASES = range(COUNT) if CASE is None else [int(CASE)]


class Draw:
    def __init__(self, *seed):
        self.rng = np.random.default_rng(seed)

    def one(self, *of):
        return of[self.rng.integers(len(of))]

    def maybe(self, chance, value, otherwise):
        return value if self.rng.random() < chance else otherwise

    def upto(self, low, high):
        return int(self.rng.integers(low, high + 1))


def draw_gqa(d):
    form = d.one("own", "own", "packed", "shared", "external")
    B, S = d.maybe(0.03, 0, d.one(1, 1, 2, 3)), d.one(1, 1, 1, 2, 3, 9, 20)
    D, Hkv = d.one(8, 16, 32, 64, 64, 128, 256, 6, 20), d.one(1, 2, 3)
    total = S if d.rng.random() < 0.4 else S + d.one(1, 7, 16, 33, 70, 300, 700)  # from 256 keys on, several units share them
    first = S == total
    lens = [d.upto(1 if first else S, total) if d.rng.random() < 0.6 else total for _ in range(B)]
    if B and form in ("own", "packed"):
        lens[0] = total  # the batch's maximum
    past = {"own": 0, "packed": 0}.get(form, total) if first else total - S if form in ("own", "packed") else total
    past += d.maybe(0.4, d.one(1, 5, 40), 0)
    dtype = d.one(np.float32, np.float32, np.float32, np.float16, BF16)
    window = d.maybe(0.4, d.one(1, 2, 5, 16, 40, 270), -1)
    rotary = d.maybe(0.4, (d.one(D // 2, max(1, D // 4)), d.one(False, True)), None)
    bias = d.maybe(0.25, (d.one(False, True), d.one(False, True)), None)
    appends = form in ("own", "packed")
    quant = d.maybe(0.25, (d.one("int8", "int4", "fp8"), d.one(False, True)), None) if past else None
    # A window-sized cache, whose borrower sees one token at a time; a padded chunk.
    windowed = window > 0 and (appends or S == 1) and d.rng.random() < 0.5
    counts = [d.upto(0, min(S, n)) for n in lens] if appends and past and B and d.rng.random() < 0.2 else None
    if counts and not windowed:
        past = max(past, total)
    return dict(form=form, lens=lens, S=S, past=None if windowed else past, past_given=past > 0 or windowed or d.one(False, True),
                total=total, Hq=Hkv * d.one(1, 2, 3, 8), Hkv=Hkv, D=D, dtype=dtype, quant=quant, counts=counts,
                norms=d.rng.random() < 0.15, capacity=window + d.one(0, 1, 6) if windowed else None,
                cache=d.maybe(0.2, d.one(np.float32, np.float16, BF16), None) if past and not quant else None,
                presents=d.one(True, True, False), scale=d.maybe(0.3, 0.375, 0.0), softcap=d.maybe(0.3, 2.5, 0.0),
                causal=1 if window >= 0 else d.one(1, 1, 0), window=window, bias=bias, hide=d.one(0.0, 0.3, 0.9),
                sink=d.rng.random() < 0.2, smooth=d.one(0, 0, 1), rotary=rotary, position_ids=bool(rotary) and d.one(False, True),
                qk_output=0 if windowed else d.one(0, 0, 1, 2))


def draw_attention(d):
    opset = d.one(23, 24, 25)
    B, S = d.maybe(0.03, 0, d.one(1, 2, 3)), d.one(1, 1, 2, 3, 9, 20)
    past = d.maybe(0.4, d.one(0, 1, 7, 33, 600), None)
    new = d.one(S, S, 0, 1, 5, 40, 300) if past is None else d.one(S, S, S, 0)
    Hkv, dtype = d.one(1, 2, 3), d.one(np.float32, np.float32, np.float32, np.float16, BF16, np.float64)
    v_dtype = None if dtype == np.float64 else d.maybe(0.1, d.one(np.float32, np.float16, BF16), None)
    T = new + (past or 0)
    mask = d.maybe(0.5, d.one("", "S", "1", "HS", "1S", "H1", "BHS", "B1S", "B11", "1HS", "11S", "111", "1H1"), None)
    short = d.one(0, 0, 1, 2) if opset > 23 and T > 2 else 0
    floats = (dtype,) if dtype == np.float64 else (dtype, np.float32)
    causal = d.one(0, 1, 1)
    local = d.maybe(0.2, d.one(1, 2, 7), -1) if causal else -1
    sides = (-1, -1) if opset < 25 or local > 0 else (d.one(-1, 0, 2, 9), d.one(-1, 0, 1, 4))
    return dict(S=S, new=new, past=past, B=B, Hq=Hkv * d.one(1, 2, 3, 8), Hkv=Hkv, D=d.one(8, 16, 16, 32, 256, 6, 20),
                Dv=d.one(None, None, 24, 5),
                rank=d.one(3, 4), kv_rank=d.maybe(0.1, d.one(3, 4), None), dtype=dtype, v_dtype=v_dtype, mask=mask,
                mask_dtype=d.one(bool, *floats), short=short, hide=d.one(0.0, 0.3, 0.9, 1.0),
                nonpad=[d.upto(0, T) for _ in range(B)] if opset > 23 and past is None and d.rng.random() < 0.3 else None, causal=causal,
                window=local, left=sides[0], right=sides[1], scale=d.maybe(0.3, 0.375, None), softcap=d.maybe(0.3, 2.5, 0.0),
                mode=d.maybe(0.3, d.one(0, 1, 2, 3), None), presents=d.one(False, True) if past is not None else d.maybe(0.1, True, False),
                opset=opset)


# Where ONNX Runtime 1.32 is known not to be right; see docs/compatibility.md.
def orts_gqa_fault(c, fault):
    if c["form"] in ("own", "packed") and c["past"] and not c["presents"]:
        return "without presents the past is ignored, and memory behind the new keys read"
    if c["bias"] and c["hide"] and "finite" in fault:
        return "a row of the bias that is all -inf gives NaN"
    if c["quant"] and c["rotary"] and c["dtype"] == np.float16 and fault.startswith("present_key"):
        return "a rotated key is rounded to fp16 before it is rounded to a code"
    return None


def orts_attention_fault(c, fault):
    if c["mode"] == 2 and "-inf" in fault:
        return "a hidden score is the lowest finite number"
    if c["kv_rank"] not in (None, c["rank"]):
        return "ranks that differ are against ONNX, and not refused"
    return None


OPS = {"gqa": (draw_gqa, specs.gqa, orts_gqa_fault), "attention": (draw_attention, specs.attention, orts_attention_fault)}
ORTS_F64 = 1e-6  # it computes 1 / sqrt(D) in float32, whatever the type


@pytest.mark.parametrize("op", OPS)
def test_random_calls_agree(op, record_property):
    draw, make, known_fault = OPS[op]
    answers = collections.Counter()
    with Peer() as peer:
        for case in CASES:
            d = Draw(20261124, list(OPS).index(op), case)
            choices = draw(d)
            if harness.ON_DEVICE and choices["dtype"] == np.float64:
                continue  # refused there, as cuda_test.py sees
            where = f"KVSHARE_PROPERTY_CASE={case}: {choices}"
            spec = make(d.rng, **choices)
            model = spec.model()
            counters = harness.Counters()
            counters.reset()
            try:
                got = harness.run(harness.session(model, drop_in="1"), spec.inputs)
            except Exception as e:
                raise AssertionError(f"{where}\nrefused here: {e}") from None
            assert counters.read()["ran"] == 1, where
            fault = spec.fault(got)
            assert fault is None, f"{where}\n{fault}"
            answer = peer.run(model, spec.inputs)
            if answer.status != "ran":
                answers[answer.status] += 1
                continue
            theirs = spec.fault(answer.outputs, ORTS_F64)
            known = known_fault(choices, theirs) if theirs else "ok"
            assert known, f"{where}\nright here by the reference, but ONNX Runtime's {theirs}"
            answers[known] += 1
    print(f"{op}: {len(CASES)} cases right here; ONNX Runtime {harness.VERSION}: {dict(answers)}")
    record_property("onnxruntime", dict(answers))
    assert CASE or answers["ok"] >= COUNT // 10
