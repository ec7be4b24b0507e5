"""What is not served here runs on ORT's own kernel with ORT's bits, is counted with its reason, and can be forbidden."""
import numpy as np
import pytest

from gqa_test import HQ, Problem
from harness import Counters, attention, folded, gqa


def output_qk():
    p = Problem(41, S=1, lens=[9], past=8, qk_output=2)
    return p, ("output", "present_key", "present_value", "output_qk"), "output output_qk"


KINDS = {"output_qk": output_qk}


def outcome(call):
    try:
        return call(), None
    except Exception as e:
        return None, str(e)


@pytest.mark.parametrize("kind", KINDS)
def test_gqa_gives_orts_bits_or_orts_refusal(kind):
    p, outputs, reason = KINDS[kind]()
    want, refused = outcome(lambda: gqa(p.inputs, p.attributes, outputs, lib=None))
    counters = Counters()
    counters.reset()
    got, error = outcome(lambda: gqa(p.inputs, p.attributes, outputs, drop_in="gqa"))
    if want is None:  # a release without the feature; its kernel may ignore what it does not know: never ask it
        assert got is None and "GroupQueryAttention" in error, (refused, error)
        return
    assert error is None, error
    for name in outputs:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)
    stats = counters.read()
    assert stats["ran"] == 0 and stats["delegated"] == 1
    assert [n["delegated"] for n in stats["nodes"] if n["delegated"]] == [{reason: 1}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("domain", ["com.microsoft", "kvshare"])
def test_delegate_0_refuses_with_the_reason(kind, domain):
    p, outputs, reason = KINDS[kind]()
    _, error = outcome(lambda: gqa(p.inputs, p.attributes, outputs, domain, drop_in="gqa", delegate="0"))
    assert f"GroupQueryAttention 'node': {reason} is not served here; needs kvshare.delegate = 1" in error


def qk_attention(mode):
    rng = np.random.default_rng(45)
    q, k, v = (rng.standard_normal((2, h, t, 16)).astype(np.float32) for h, t in ((HQ, 3), (2, 3), (2, 3)))
    return {"Q": q, "K": k, "V": v}, {"is_causal": 1, "qk_matmul_output_mode": mode}


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
@pytest.mark.parametrize("rank", [3, 4])
def test_attention_with_qk_matmul_output_gives_orts_bits(mode, rank):
    inputs, attributes = qk_attention(mode)
    if rank == 3:
        inputs = {n: folded(a) for n, a in inputs.items()}
        attributes.update(q_num_heads=HQ, kv_num_heads=2)
    outputs = ("Y", "qk_matmul_output")
    want, refused = outcome(lambda: attention(inputs, attributes, outputs, lib=None))
    got, error = outcome(lambda: attention(inputs, attributes, outputs, drop_in="attention"))
    if want is None:
        assert got is None, refused
        return
    assert error is None, error
    for name in outputs:
        np.testing.assert_array_equal(got[name], want[name])
    _, error = outcome(lambda: attention(inputs, attributes, outputs, drop_in="attention", delegate="0"))
    assert "Attention 'node': output qk_matmul_output is not served here" in error


def test_what_ort_does_not_know_is_not_delegated():
    inputs, attributes = qk_attention(0)
    _, error = outcome(lambda: attention(inputs, {**attributes, "local_window_size": 2}, ("Y", "qk_matmul_output"),
                                         drop_in="attention"))
    assert "ONNX Runtime's kernel has no attribute local_window_size" in error
