"""Caches bound onto each other's memory (IOBinding): served where in place is right, refused by name where it is not."""
import numpy as np
import pytest

import harness
from gqa_test import Problem
from harness import assert_close

OUTPUTS = {"GroupQueryAttention": ("output", "present_key", "present_value"), "Attention": ("Y", "present_key", "present_value")}


def gqa(B=2, past=8, lens=None, total=None, **kind):
    p = Problem(80, S=1, lens=lens or [past + 1] * B, past=past, total=total, **kind)
    return p.inputs, p.attributes, (B, 2, max(p.total, past), 32)


def attention(B=2, past=8, Hkv=2, S=1):
    f = lambda *s: np.random.default_rng(81).standard_normal(s).astype(np.float32)
    inputs = {"Q": f(B, 4, S, 32), "K": f(B, Hkv, S, 32), "V": f(B, Hkv, S, 32)}
    if past:
        inputs |= {"past_key": f(B, Hkv, past, 32), "past_value": f(B, Hkv, past, 32)}
    return inputs, {"is_causal": 1}, (B, Hkv, past + S, 32)


def call(op, domain, problem, places):
    """The outputs with the tensors of `places` {name: (buffer, first element)} in shared memory, and without."""
    inputs, attributes, present = problem
    names = (harness.GQA_INPUTS if op != "Attention" else harness.ATTENTION_INPUTS[:None if domain else 7])
    m = harness.model(op, domain, names, OUTPUTS[op], inputs, OUTPUTS[op], attributes,
                      opset=harness.OPSET if domain else 23)
    session = harness.session(m, drop_in="1")
    want = harness.run(session, inputs)
    buffers = {buffer: np.zeros(4 * max(np.prod(present), *(a.size for a in inputs.values())), np.float32)
               for buffer, _ in places.values()}
    at = lambda name, size: buffers[places[name][0]][places[name][1]:][:size]
    binding = session.io_binding()
    for name, array in inputs.items():
        if name not in places:
            binding.bind_cpu_input(name, array)
            continue
        at(name, array.size)[:] = array.ravel()
        binding.bind_input(name, "cpu", 0, np.float32, array.shape, at(name, array.size).ctypes.data)
    for name in OUTPUTS[op]:
        if name in places:
            binding.bind_output(name, "cpu", 0, np.float32, present, at(name, np.prod(present)).ctypes.data)
        else:
            binding.bind_output(name, "cpu")
    session.run_with_iobinding(binding)
    got = dict(zip(OUTPUTS[op], [None if name in places else v.numpy() for name, v in zip(OUTPUTS[op], binding.get_outputs())]))
    for name in OUTPUTS[op]:
        if name in places:
            got[name] = at(name, np.prod(present)).reshape(present).copy()
    return got, want


OPS = [("GroupQueryAttention", "com.microsoft"), ("GroupQueryAttention", "kvshare")] + (
    [("Attention", ""), ("Attention", "kvshare")] if harness.VERSION >= (1, 24) else [("Attention", "kvshare")])
ROW = 32

REFUSED = {
    "key_onto_a_longer_present": ({"past_key": ("a", 0), "present_key": ("a", 0)},
                                  "input 'past_key' shares memory with 'present_key' and has 8 rows; needs its first element and its 9 rows, or memory of its own"),
    "value_onto_a_longer_present": ({"past_value": ("a", 0), "present_value": ("a", 0)},
                                    "input 'past_value' shares memory with 'present_value' and has 8 rows"),
    "both": ({"past_key": ("a", 0), "present_key": ("a", 0), "past_value": ("b", 0), "present_value": ("b", 0)}, "input 'past_key' shares memory"),
    "key_one_row_before": ({"past_key": ("a", 0), "present_key": ("a", ROW)}, "input 'past_key' shares memory with 'present_key'"),
    "value_inside_present": ({"past_value": ("a", 5 * ROW), "present_value": ("a", 0)}, "input 'past_value' shares memory with 'present_value'"),
    "key_onto_value": ({"past_key": ("a", 0), "present_value": ("a", 0)}, "input 'past_key' shares memory with 'present_value'; needs memory of its own"),
    "value_onto_key": ({"past_value": ("a", 0), "present_key": ("a", 0)}, "input 'past_value' shares memory with 'present_key'; needs memory of its own"),
    "one_present": ({"present_key": ("a", 0), "present_value": ("a", 0)}, "output 'present_value' shares memory with 'present_key'; needs memory of its own"),
}


@pytest.mark.parametrize("op,domain", OPS)
@pytest.mark.parametrize("case", REFUSED)
def test_memory_that_would_be_overwritten_before_it_is_read_is_refused(case, op, domain):
    places, text = REFUSED[case]
    with pytest.raises(Exception) as caught:
        call(op, domain, attention() if op == "Attention" else gqa(), places)
    assert f"{op} 'node': {text}" in str(caught.value), str(caught.value)


@pytest.mark.parametrize("op,domain", OPS)
@pytest.mark.parametrize("new", ["key", "value"])
def test_new_rows_in_the_memory_of_a_present_are_refused(new, op, domain):
    name = {"key": "K", "value": "V"}[new] if op == "Attention" else new
    problem = attention(past=0, S=6) if op == "Attention" else (lambda p: (p.inputs, p.attributes, (2, 2, 6, 32)))(Problem(82, S=6, lens=[6, 6]))
    for present in ("present_key", "present_value"):
        with pytest.raises(Exception, match=f"input '{new}' shares memory with '{present}'; needs memory of its own"):
            call(op, domain, problem, {name: ("a", 0), present: ("a", 0)})


@pytest.mark.parametrize("op,domain", OPS)
def test_one_head_of_one_sequence_grows_in_place(op, domain):
    inputs, attributes, present = attention(B=1, Hkv=1) if op == "Attention" else gqa(B=1)
    if op != "Attention":
        attributes["kv_num_heads"] = 1
        inputs = {n: a[:, :1] if n.startswith("past") else a[..., :32] if n in ("key", "value") else a for n, a in inputs.items()}
        present = (1, 1, *present[2:])
    got, want = call(op, domain, (inputs, attributes, present),
                     {"past_key": ("a", 0), "present_key": ("a", 0), "past_value": ("b", 0), "present_value": ("b", 0)})
    for name in want:
        assert_close(got[name], want[name], np.float32, name)


@pytest.mark.parametrize("domain", ["com.microsoft", "kvshare"])
def test_a_static_cache_is_appended_in_place_and_pasts_may_share_memory(domain):
    problem = gqa(past=12, lens=[9, 5], total=9)
    got, want = call("GroupQueryAttention", domain, problem,
                     {"past_key": ("a", 0), "present_key": ("a", 0), "past_value": ("b", 0), "present_value": ("b", 0)})
    assert_close(got["output"], want["output"], np.float32)
    problem[0]["past_value"] = problem[0]["past_key"]
    got, want = call("GroupQueryAttention", domain, problem, {"past_key": ("a", 0), "past_value": ("a", 0)})
    assert_close(got["output"], want["output"], np.float32)


@pytest.mark.parametrize("read,written", [("external_key", "present_value"), ("external_value", "present_key")])
def test_a_borrowed_cache_under_the_other_present_is_refused(read, written):
    p = Problem(83, S=1, lens=[9, 5], past=9, kind="shared")
    inputs = {n: a for n, a in p.inputs.items() if n not in ("key", "value", "past_key", "past_value")}
    problem = {**inputs, "external_key": p.past_k, "external_value": p.past_v}, p.attributes, (2, 2, 9, 32)
    with pytest.raises(Exception, match=f"input '{read}' shares memory with '{written}'; needs memory of its own"):
        call("GroupQueryAttention", "kvshare", problem, {read: ("a", 0), written: ("a", 0)})
    got, want = call("GroupQueryAttention", "kvshare", problem,
                     {"external_key": ("a", 0), "present_key": ("a", 0), "external_value": ("b", 0), "present_value": ("b", 0)})
    assert_close(got["output"], want["output"], np.float32)
