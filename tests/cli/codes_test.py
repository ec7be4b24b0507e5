"""verify of caches that hold codes: logits beside those of the same codes in floats, rows beside what rounding does to them, and
the model without codes beside the one it was made from."""
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from conftest import DIFFERS, EQUAL

CASE = "mixed_bias_causal0"
TYPES = ["int8", "int4", "fp8"]


@pytest.fixture(params=TYPES)
def narrow(request, kvshare, case, tmp_path):
    """The case with such caches, calibrated on other tokens."""
    np.savez(tmp_path / "inputs.npz", input_ids=np.random.default_rng(3).integers(0, 160, (4, 100)))
    model = tmp_path / "model.onnx"
    done = kvshare("rewrite", case.model(CASE), "-o", model, "--to", "kvshare", "--kv-cache", request.param, "--calibrate", tmp_path / "inputs.npz")
    assert done.returncode == EQUAL, done.stderr
    return request.param, model


def verify(kvshare, case, model):
    done = kvshare("verify", model, "--against", case.model(CASE), "--json")
    assert done.returncode in (EQUAL, DIFFERS), done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)["codes"]


def scale(model, name, factor):
    tensor = next(entry for entry in model.graph.initializer if entry.name == name)
    tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) * factor).astype(np.float32), name))


def scales(model):
    return [entry.name for entry in model.graph.initializer if entry.name.endswith("_scale")]


def test_right_codes_are_equal(kvshare, case, narrow):
    for truth in (["--against", case.model(CASE)], ["--golden", case.folder(CASE)]):
        done = kvshare("verify", narrow[1], *truth)
        assert done.returncode == EQUAL, done.stdout + done.stderr
        assert "of the row's largest logit from the same codes in f32; needs" in done.stdout
        assert "present.0.key: rounding takes" in done.stdout


def test_weights_that_are_a_little_off_differ_whatever_rounding_takes(kvshare, case, narrow):
    """Every other weight of one layer by one per cent: far less than what codes change. (All of them would go unseen: a norm follows.)"""
    _, path = narrow
    model = onnx.load(path)
    weights = next(entry for entry in model.graph.initializer if "o_proj" in entry.name)
    scale(model, weights.name, np.resize([1, 1.01], weights.dims))
    onnx.save(model, path)
    done = kvshare("verify", path, "--against", case.model(CASE))
    assert done.returncode == DIFFERS
    assert "NOT equal: codes are right, and the model without them is not within 0.0001" in done.stdout


def test_a_model_whose_rows_rounding_turns_over_is_equal(kvshare, case, tmp_path):
    """Random weights and a sharp softmax: int4 takes more than the largest logit, and all of it is rounding."""
    np.savez(tmp_path / "inputs.npz", input_ids=np.random.default_rng(3).integers(0, 48, (4, 100)))
    path = tmp_path / "model.onnx"
    done = kvshare("rewrite", case.model("torch_gemma4"), "-o", path, "--to", "kvshare", "--kv-cache", "int4", "--calibrate", tmp_path / "inputs.npz")
    assert done.returncode == EQUAL, done.stderr
    for truth in (["--against", case.model("torch_gemma4")], ["--golden", case.folder("torch_gemma4")]):
        done = kvshare("verify", path, *truth, "--json")
        found = json.loads(done.stdout)
        assert done.returncode == EQUAL and found["codes"]["unrounded"]["difference"] <= found["tolerance"] == 1e-4
        assert max(step["relative"] for step in found["steps"]) > 0.5


@pytest.mark.parametrize("factor", [0.25, 4])
def test_a_scale_that_suits_no_channel_differs(kvshare, case, narrow, factor):
    """A small one clamps most values; a large one has few codes for them. fp8's steps follow the values: far larger hurts it."""
    kind, path = narrow
    model = onnx.load(path)
    scale(model, scales(model)[0], factor if kind != "fp8" else 0.1 if factor < 1 else 1e5)
    onnx.save(model, path)
    code, codes = verify(kvshare, case, path)
    assert code == DIFFERS and not codes["right"]
    assert sum(cache["share"] > codes["rounding"] for cache in codes["caches"]) == 1
    assert codes["difference"] <= codes["tolerance"], "the codes themselves are read as they were written"


def test_a_model_that_rounds_by_the_same_scales_is_equal_whether_they_suit_or_not(kvshare, case, narrow, tmp_path):
    kind, path = narrow
    model = onnx.load(path)
    scale(model, scales(model)[0], 0.25 if kind != "fp8" else 0.1)
    onnx.save(model, path)
    narrower = tmp_path / "windows.onnx"
    done = kvshare("rewrite", path, "-o", narrower, "--to", "kvshare", "--window-caches", "--weights", "windows.data")
    assert done.returncode == EQUAL, done.stderr
    done = kvshare("verify", narrower, "--against", path)
    assert done.returncode == EQUAL, done.stdout
    assert "by the other model's scales" in done.stdout
    scale(model, scales(model)[0], 1.5)
    onnx.save(model, path)
    done = kvshare("verify", narrower, "--against", path)
    assert done.returncode == DIFFERS and "another scale" in done.stdout


@pytest.mark.parametrize("side", [12, 13])
def test_a_layer_that_borrows_by_another_scale_differs(kvshare, case, narrow, side):
    """In every other channel, by half: within what the logits of a quantized model may differ by. (The same in all channels of
    values would go unseen for a right reason: a norm follows.)"""
    _, path = narrow
    model = onnx.load(path)
    node = [n for n in model.graph.node if n.op_type == "GroupQueryAttention"][-1]
    old = next(entry for entry in model.graph.initializer if entry.name == node.input[side])
    factors = np.resize(np.array([1, 1.5], np.float32), numpy_helper.to_array(old).shape)
    model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(old) * factors, "other_scale"))
    node.input[side] = "other_scale"
    onnx.save(model, path)
    code, codes = verify(kvshare, case, path)
    assert code == DIFFERS and not codes["right"]
    assert codes["difference"] > codes["tolerance"]
    assert all(cache["share"] <= codes["rounding"] and cache["far"] == 0 for cache in codes["caches"])


def test_a_tolerance_of_the_caller_s_own_is_all_that_counts(kvshare, case, narrow):
    done = kvshare("verify", narrow[1], "--against", case.model(CASE), "--tol", "1e9")
    assert done.returncode == EQUAL and "codes" not in done.stdout
