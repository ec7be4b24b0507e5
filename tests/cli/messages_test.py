"""Models and files that verify and doctor cannot run: each message, with its exit code."""
import os
import pathlib
import shutil
import subprocess

import onnx
import pytest
from onnx import TensorProto, helper

from conftest import BAD_INPUT, EQUAL, NO_ORT, REFUSED

F32, I64 = TensorProto.FLOAT, TensorProto.INT64
IDS = [("input_ids", I64, ["B", "S"]), ("attention_mask", I64, ["B", "T"])]
LOGITS = ("logits", F32, ["B", "S", 8])
PAST, PRESENT = "past_key_values.0.key", "present.0.key"


def model(path, inputs, outputs, nodes=None):
    """Outputs are Constant nodes unless `nodes` makes them."""
    made = nodes or [helper.make_node("Constant", [], [name], value=helper.make_tensor("", kind, [0], []))
                     for name, kind, _ in outputs]
    infos = [[helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in values] for values in (inputs, outputs)]
    onnx.save(helper.make_model(helper.make_graph(made, "g", *infos), opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


DECODERS = {
    "no_ids": ([IDS[1]], [LOGITS], "the model has no input 'input_ids' or 'inputs_embeds': not a decoder"),
    "no_logits": (IDS, [("y", F32, [8])], "the model has no output 'logits': not a decoder"),
    "other_input": ([*IDS, ("image", F32, [8])], [LOGITS], "golden.npz has no array 'image'"),
    "symbolic_past": ([*IDS, (PAST, F32, ["B", "H", "P", 8])], [LOGITS, (PRESENT, F32, ["B", "H", "P", 8])],
                      "input 'past_key_values.0.key' has shape [-1, -1, -1, 8], and nothing tells the extent of its axis 1; needs "
                      "--extent H=N"),
    "no_present": ([*IDS, (PAST, F32, ["B", 2, "P", 8])], [LOGITS], "input 'past_key_values.0.key' has no output 'present.0.key'"),
}


@pytest.mark.parametrize("name", DECODERS)
def test_verify_names_what_is_no_decoder(kvshare, case, tmp_path, name):
    inputs, outputs, message = DECODERS[name]
    done = kvshare("verify", model(tmp_path / "m.onnx", inputs, outputs), "--golden", case.folder("head_shared_gqa"))
    assert (done.returncode, message in done.stderr) == (BAD_INPUT if name == "other_input" else REFUSED, True), done.stderr


def test_a_model_without_a_cache_is_compared_with_steps_0(kvshare, tmp_path):
    zeros = helper.make_tensor("", F32, [1, 1, 8], [0] * 8)
    nodes = [helper.make_node("Cast", ["input_ids"], ["ids"], to=F32), helper.make_node("Constant", [], ["zeros"], value=zeros),
             helper.make_node("Constant", [], ["last"], value=helper.make_tensor("", I64, [1], [2])),
             helper.make_node("Unsqueeze", ["ids", "last"], ["rows"]), helper.make_node("Add", ["rows", "zeros"], ["logits"])]
    same = model(tmp_path / "m.onnx", IDS, [LOGITS], nodes)
    done = kvshare("verify", same, "--against", same)
    message = "the model has no input past_key_values.* to go on with after a prefill; needs one, or --steps 0"
    assert (done.returncode, message in done.stderr) == (REFUSED, True), done.stderr
    assert kvshare("verify", same, "--against", same, "--steps", 0).returncode == EQUAL


TYPES = {
    "strings": ([("x", TensorProto.STRING, [1])], [("y", F32, [8])], None,
                "'x' has ONNX element type 8; needs f32, f16, bf16, f64, int32, int64, int8, uint8, float8e4m3fn or bool"),
    "numbers_that_do_not_suit": (
        [("x", F32, [2]), ("rows", I64, [1])], [("y", F32, None)],
        [helper.make_node("Constant", [], ["far"], value=helper.make_tensor("", I64, [1], [9])),
         helper.make_node("Add", ["rows", "far"], ["row"]), helper.make_node("Gather", ["x", "row"], ["y"])],
        "the inputs doctor invents do not suit this model ("),
}


@pytest.mark.parametrize("name", TYPES)
def test_doctor_names_what_it_cannot_feed(kvshare, tmp_path, name):
    inputs, outputs, nodes, message = TYPES[name]
    done = kvshare("doctor", model(tmp_path / "m.onnx", inputs, outputs, nodes))
    assert (done.returncode, message in done.stderr) == (REFUSED, True), done.stderr
    if nodes:
        assert ("); run your own program with KVSHARE_STATS=1 in its environment: the library prints the same counters when "
                "it ends") in done.stderr


def test_doctor_feeds_no_input_that_is_larger_than_memory(kvshare, tmp_path):
    """Its extents are the model's: more than 64 bits can count, or than there is."""
    identity = [helper.make_node("Identity", ["x"], ["y"])]
    done = kvshare("doctor", model(tmp_path / "m.onnx", [("x", F32, [2**40, 2**40])], [("y", F32, None)], identity))
    assert (done.returncode, "input 'x': shape [1099511627776, 1099511627776] has more elements than memory can hold" in done.stderr) == (
        REFUSED, True), done.stderr
    done = kvshare("doctor", model(tmp_path / "m.onnx", [("x", F32, [2**50])], [("y", F32, None)], identity))
    assert (done.returncode, "input 'x': shape [1125899906842624] takes 4503599627370496 bytes; needs at most" in done.stderr) == (
        REFUSED, True), done.stderr


def test_doctor_names_an_input_that_is_no_tensor(kvshare, tmp_path):
    graph = helper.make_graph([helper.make_node("SequenceLength", ["x"], ["y"])], "g",
                              [helper.make_tensor_sequence_value_info("x", F32, None)], [helper.make_tensor_value_info("y", I64, [])])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    done = kvshare("doctor", tmp_path / "m.onnx")
    assert (done.returncode, "'x' is not a tensor" in done.stderr) == (REFUSED, True), done.stderr


def test_files_that_are_not_there_are_named(kvshare, case, tmp_path):
    done = kvshare("doctor", tmp_path / "absent.onnx")
    assert (done.returncode, f"'{tmp_path / 'absent.onnx'}': no such file" in done.stderr) == (BAD_INPUT, True), done.stderr
    done = kvshare("doctor", case.model("head_shared_gqa"), "--lib", tmp_path / "absent.so")
    assert f"no library at '{tmp_path / 'absent.so'}'; name libkvshare_ort.so with --lib" in done.stderr
    assert done.returncode == REFUSED


@pytest.mark.skipif(pathlib.Path(os.environ["KVSHARE_BIN"]).read_bytes()[:2] == b"#!",
                    reason="in an emulator: what starts the tool may be moved, the tool itself stays")
@pytest.mark.parametrize("verb", ["verify", "doctor", "rewrite"])
def test_without_onnx_runtime_the_ways_to_name_one_are_told(case, tmp_path, verb):
    """A program that lies alone, run where no .venv is."""
    alone = shutil.copy(os.environ["KVSHARE_BIN"], tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "KVSHARE_ORT"}
    flags = {"verify": ["--golden", case.folder("head_shared_gqa")], "doctor": [],
             "rewrite": ["--to", "kvshare", "--dry-run", "--kv-cache", "int8", "--calibrate", "prompt.npz"]}[verb]
    done = subprocess.run([alone, verb, case.model("head_shared_gqa"), *flags], cwd=tmp_path, env=environment, capture_output=True,
                          text=True, check=False)
    assert done.returncode == NO_ORT
    assert ("no ONNX Runtime found; name libonnxruntime.so or a wheel's folder with --ort or KVSHARE_ORT, or install the wheel "
            "into .venv") in done.stderr
