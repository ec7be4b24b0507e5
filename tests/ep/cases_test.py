"""The real exported graphs, unchanged, in the execution provider: golden logits, and every attention layer ran there."""
import json
import os
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import ep_harness
import golden_cases
import golden_in_ep
import harness

HERE = os.path.dirname(os.path.abspath(__file__))
RELEASES = os.environ["KVSHARE_ORT_RELEASES"]


def check(result):
    assert "error" not in result, result
    assert result["worst"] <= result["tolerance"], result
    assert result["layers"] == result["want"] > 0 and not result["elsewhere"], result
    assert result["ran"] % result["layers"] == 0 and result["ran"] > 0, result


@pytest.mark.parametrize("mode", golden_in_ep.MODES)
@pytest.mark.parametrize("name", golden_cases.NAMES)
def test_an_unchanged_graph_gives_the_golden_logits(name, mode):
    check(golden_in_ep.result(name, mode))


TORCH = [name for name in golden_cases.NAMES if name.startswith("torch_")]
EXTENTS = {"batch": 2, "seq": 3, "past": 5}


def torch_model(name, total, fixed):
    """The export's bytes, with its input extents as numbers if `fixed`, and what to feed it: row 1 is padded on the left."""
    extents = {**EXTENTS, "total": total}
    model = onnx.load(golden_in_ep.path(name))
    rng, feeds = np.random.default_rng(3), {}
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        shape = [extents.get(d.dim_param, d.dim_value) for d in dims]
        if fixed:
            for dim, extent in zip(dims, shape):
                dim.dim_value = extent
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
        else:
            feeds[value.name] = rng.integers(0, 20, shape)
    feeds["attention_mask"] = np.ones((2, total), np.int64)
    feeds["attention_mask"][1, :2] = 0
    feeds["position_ids"] = np.array([[5, 6, 7], [3, 4, 5]])
    return model.SerializeToString(), feeds


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize("spare", [0, 3])  # columns of attention_mask that have no key
@pytest.mark.parametrize("name", TORCH)
def test_a_pytorch_export_gives_what_onnx_runtime_gives(name, spare, fixed, capfd):
    model, feeds = torch_model(name, 8 + spare, fixed)
    sess = ep_harness.session(model, log_severity=2)
    nodes = {op for _, op in ep_harness.assigned(sess)}
    # With fixed extents, ONNX Runtime folds the mask's comparisons and its indices into constants, which are read, too.
    assert {"Expand", "Attention", "GatherND"} <= nodes and not ep_harness.attention_elsewhere(sess)
    want = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, feeds)
    for got, expected in zip(sess.run(None, feeds), want):
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4)
    assert "Expected shape" not in capfd.readouterr().err


@pytest.mark.parametrize("name", TORCH)
def test_a_mask_that_is_a_constant_gives_what_onnx_runtime_gives(name):
    """With fixed extents and a fixed attention_mask, ONNX Runtime folds the whole mask; nothing of it stays to be computed."""
    bytes_of_model, feeds = torch_model(name, 8, fixed=True)
    model = onnx.load_from_string(bytes_of_model)
    kept = [value for value in model.graph.input if value.name != "attention_mask"]
    del feeds["attention_mask"], model.graph.input[:]
    model.graph.input.extend(kept)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((2, 8), np.int64), "attention_mask"))
    sess = ep_harness.session(model.SerializeToString())
    assert "GatherND" not in {op for _, op in ep_harness.assigned(sess)} and not ep_harness.attention_elsewhere(sess)
    want = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)
    for got, expected in zip(sess.run(None, feeds), want):
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", golden_in_ep.MODES)
@pytest.mark.parametrize("name", ["torch_gemma3", "torch_gemma4", "mixed_bias_causal0", "default_attention"])
def test_plans_hold_when_onnx_runtime_asks_again(name, mode, tmp_path):
    """Gelu in fp16 has no kernel: ONNX Runtime puts its nodes into the graph after masks have become one node, and asks again."""
    folder = golden_in_ep.path(name).removesuffix("model.onnx")
    model = onnx.load(folder + "model.onnx")
    half = [("Cast", "logits", "late_half", {"to": onnx.TensorProto.FLOAT16}), ("Gelu", "late_half", "late_gelu", {}),
            ("Cast", "late_gelu", "late", {"to": onnx.TensorProto.FLOAT})]
    model.graph.node.extend(onnx.helper.make_node(op, [source], [made], **attributes) for op, source, made, attributes in half)
    model.graph.output.append(onnx.helper.make_tensor_value_info("late", onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights")
    sess = ep_harness.session(str(tmp_path / "model.onnx"), mode=mode)
    assert not ep_harness.attention_elsewhere(sess)
    worst, decode, tolerance, _ = golden_cases.differences(name, harness.ORT_LIB, session=sess)
    assert max(worst, decode) <= tolerance


@pytest.mark.parametrize("mode", golden_in_ep.MODES)
@pytest.mark.parametrize("past", [0, 20])
def test_masks_of_image_blocks_stay_and_borrowed_keys_are_not_copied(mode, past):
    path, rng, new = golden_in_ep.path("mobius_vision"), np.random.default_rng(2), 16
    sess = ep_harness.session(path, mode=mode)
    nodes = {op for _, op in ep_harness.assigned(sess)}
    assert ("Transpose" in nodes) == (mode == "fuse") and not ep_harness.attention_elsewhere(sess)
    feeds = {value.name: rng.standard_normal((2, 1, past, value.shape[3])).astype(np.float32) for value in sess.get_inputs()
             if value.name.startswith("past")}
    feeds["input_ids"] = rng.integers(3, 31, (2, new))
    feeds["input_ids"][:, 3:14] = 31  # an image, longer than the window
    feeds |= {"attention_mask": np.ones((2, past + new), np.int64), "position_ids": np.tile(np.arange(past, past + new), (2, 1))}
    want = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)
    for got, expected in zip(sess.run(None, feeds), want):
        np.testing.assert_allclose(got, expected, atol=1e-4, rtol=1e-4)


def test_a_mask_of_columns_has_one_for_each_key():
    model, feeds = torch_model("torch_llama", 7, fixed=False)
    with pytest.raises(Exception, match="the mask of keys has 7 columns; needs one for each of 8 keys"):
        ep_harness.session(model).run(None, feeds)


@pytest.mark.parametrize("release", ["1.24.4", "1.27.0", "1.30.0"])
def test_every_case_gives_golden_logits_on_other_releases(release):
    folder = os.path.join(RELEASES, release)
    if not os.path.isdir(folder):
        pytest.fail(f"onnxruntime {release} is not unpacked in {RELEASES}; run scripts/setup.sh test")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, os.environ["PYTHONPATH"]])}
    done = subprocess.run([sys.executable, os.path.join(HERE, "golden_in_ep.py")], env=environment, capture_output=True, text=True)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(golden_cases.NAMES) * len(golden_in_ep.MODES), done.stderr[-2000:]
    for result in results:
        assert result["ort"] == release
        check(result)
