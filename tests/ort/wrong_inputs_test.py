"""Random calls of both drop-in ops with extents, ranks and numbers that do not fit: refused by name, or served; never a crash.

The seeds are fixed; KVSHARE_PROPERTY_CASE=n runs the n-th alone."""
import os

import numpy as np
import pytest

import harness
from peer import Peer
from property_test import OPS, Draw

CASES = 150
CASE = os.environ.get("KVSHARE_PROPERTY_CASE")
# What ONNX Runtime says of a tensor before any kernel sees it.
EARLIER = ["ShapeInferenceError", "Got invalid dimensions", "a tensor of rank"]


def misfit(d, name, array):
    """Input `name` with one extent, its rank or one of its numbers changed."""
    axis = d.upto(0, array.ndim - 1) if array.ndim else None
    change = d.one("none", "one", "cut", "twice", "many", "wrap", "unwrap", "number")
    if change == "number" and array.dtype in (np.int32, np.int64) and array.size:
        changed = array.copy()
        number = d.one(-1, 0, 1, 7, 100, 2**31 - 1, -2**31)
        # A present has as many rows as total_sequence_length says.
        changed.flat[d.upto(0, array.size - 1)] = min(number, 100) if name == "total_sequence_length" else number
        return changed
    if axis is None or change == "number":
        return array
    extent = array.shape[axis]
    if change in ("twice", "many"):
        times = 2 if change == "twice" or array.size > 10_000 else 300
        return np.tile(array, [times if i == axis else 1 for i in range(array.ndim)])
    if change == "wrap":
        return array[None]
    if change == "unwrap":
        return np.asarray(array[0]) if array.shape[0] else array
    return array.take(range({"none": 0, "one": min(1, extent), "cut": max(0, extent - 1)}[change]), axis)


@pytest.mark.parametrize("op", OPS)
def test_inputs_that_do_not_fit_are_refused_by_name(op):
    draw, make, _ = OPS[op]
    refused = 0
    with Peer(harness.ORT_LIB, drop_in="1") as peer:
        for case in range(CASES) if CASE is None else [int(CASE)]:
            d = Draw(20261130, list(OPS).index(op), case)
            choices = draw(d)
            spec = make(d.rng, **choices)
            for name in sorted({d.one(*spec.inputs) for _ in range(d.one(1, 1, 2, 3))}):
                spec.inputs[name] = misfit(d, name, spec.inputs[name])
            spec.outputs = spec.outputs[:1] + tuple(name for name in spec.outputs[1:] if d.rng.random() < 0.8)
            where = f"KVSHARE_PROPERTY_CASE={case}: {choices}, { {n: a.shape for n, a in spec.inputs.items()} }"
            answer = peer.run(spec.model(), spec.inputs)
            assert answer.status in ("ran", "refused"), f"{where}\n{answer.status}: {answer.text}"
            if answer.status == "refused":
                refused += 1
                named = "'node': " in answer.text and "needs" in answer.text
                assert named or any(text in answer.text for text in EARLIER), f"{where}\n{answer.text}"
    assert CASE or refused > CASES // 3
