"""kvshare verify: exit codes and what it prints."""
import pathlib
import shutil

import pytest

from conftest import BAD_INPUT, DIFFERS, EQUAL, NO_ORT, REFUSED


@pytest.mark.parametrize("name", ["head_shared_gqa", "mixed_bias_causal0", "mixed_bias_b2_ragged_causal0",
                                  "head_b2_ragged", "default_attention", "e2b35_head_shared_gqa", "e2b_heads"])
def test_a_right_model_is_equal_to_its_golden_logits(kvshare, case, name):
    done = kvshare("verify", case.model(name), "--golden", case.folder(name))
    assert done.returncode == EQUAL, done.stdout + done.stderr
    assert "prefill" in done.stdout and "decode 0" in done.stdout


@pytest.mark.parametrize("name", ["mixed_bias_asis", "mixed_bool_asis", "e2b35_mixed_bias_asis"])
def test_an_old_mixed_graph_differs_in_decode_only(kvshare, case, name):
    done = kvshare("verify", case.model(name), "--golden", case.folder(name))
    assert done.returncode == DIFFERS
    lines = {line.rsplit(" max diff ")[0].strip(): float(line.rsplit(" ")[-1])
             for line in done.stdout.splitlines() if " max diff " in line}
    assert lines.pop("prefill") < 1e-4
    assert lines and all(difference > 1 for difference in lines.values())


@pytest.mark.parametrize("name", ["head_shared_gqa_fp16", "webgpu_constant_empty"])
def test_a_model_in_half_precision_is_judged_by_its_type(kvshare, case, name):
    verify = ("verify", case.model(name), "--golden", case.folder(name))
    done = kvshare(*verify)
    assert done.returncode == EQUAL and "the default for a model in f16" in done.stdout, done.stdout + done.stderr
    assert kvshare(*verify, "--tol", "1e-4").returncode == DIFFERS


def test_half_precision_does_not_hide_a_wrong_model(kvshare, case):
    done = kvshare("verify", case.model("mixed_bias_fp16_asis"), "--golden", case.folder("mixed_bias_fp16_asis"))
    assert done.returncode == DIFFERS, done.stdout + done.stderr


def test_one_network_in_two_forms_is_equal_and_the_seed_is_told(kvshare, case):
    done = kvshare("verify", case.model("mixed_bias_causal0"), "--against", case.model("head_shared_gqa"), "--seed", 42)
    assert done.returncode == EQUAL, done.stdout + done.stderr
    assert "seed 42" in done.stdout
    assert "decode 7" in done.stdout


def test_the_broken_form_differs_from_the_right_one(kvshare, case):
    done = kvshare("verify", case.model("mixed_bias_asis"), "--against", case.model("head_shared_gqa"), "--steps", 2)
    assert done.returncode == DIFFERS
    assert "decode 2" not in done.stdout


def test_two_seeds_give_two_prompts(kvshare, case):
    outputs = {kvshare("verify", case.model("mixed_bias_asis"), "--against", case.model("head_shared_gqa"),
                       "--seed", seed).stdout.split("\n", 1)[1] for seed in (1, 2)}
    assert len(outputs) == 2


def test_no_onnx_runtime_has_its_own_exit_code(kvshare, case):
    verify = ("verify", case.model("head_shared_gqa"), "--golden", case.folder("head_shared_gqa"))
    missing = kvshare(*verify, "--ort", "no/such/libonnxruntime.so")
    assert missing.returncode == NO_ORT
    assert "no/such/libonnxruntime.so" in missing.stderr
    assert kvshare(*verify, KVSHARE_ORT="no/such/folder").returncode == NO_ORT
    assert kvshare(*verify, "--ort", case.model("head_shared_gqa")).returncode == NO_ORT


def test_malformed_models_are_bad_input_in_one_line(kvshare, case, tmp_path):
    whole = pathlib.Path(case.model("head_shared_gqa")).read_bytes()
    for name, content in {"empty": b"", "text": b"no model\n", "cut": whole[:len(whole) // 2],
                          "zip": pathlib.Path(case.folder("head_shared_gqa"), "golden.npz").read_bytes()}.items():
        model = tmp_path / f"{name}.onnx"
        model.write_bytes(content)
        done = kvshare("verify", model, "--golden", case.folder("head_shared_gqa"))
        assert done.returncode == BAD_INPUT, name
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_missing_model_or_case_is_bad_input(kvshare, case, tmp_path):
    assert kvshare("verify", "no.onnx", "--golden", case.folder("head_shared_gqa")).returncode == BAD_INPUT
    assert kvshare("verify", case.model("head_shared_gqa"), "--golden", tmp_path).returncode == BAD_INPUT


def test_a_damaged_golden_file_is_bad_input(kvshare, case, tmp_path):
    golden = tmp_path / "golden.npz"
    shutil.copy(pathlib.Path(case.folder("head_shared_gqa"), "golden.npz"), golden)
    golden.write_bytes(golden.read_bytes()[:3000])
    done = kvshare("verify", case.model("head_shared_gqa"), "--golden", tmp_path)
    assert done.returncode == BAD_INPUT
    assert "golden.npz" in done.stderr


def test_another_cases_golden_logits_do_not_fit(kvshare, case):
    done = kvshare("verify", case.model("head_shared_gqa"), "--golden", case.folder("head_b2_ragged"))
    assert done.returncode == BAD_INPUT
    assert "expected [2, 33, 144]" in done.stderr


def test_flags_that_do_not_fit_are_bad_input(kvshare, case):
    model = case.model("head_shared_gqa")
    assert kvshare("verify", model).returncode == BAD_INPUT
    assert kvshare("verify", model, "--golden", "a", "--against", "b").returncode == BAD_INPUT
    assert kvshare("verify", model, "--golden", "a", "--entry", "no_value").returncode == BAD_INPUT
    assert kvshare("verify", model, "--golden", "a", "--steps", "-1").returncode == BAD_INPUT


def test_an_asked_for_library_that_is_missing_is_refused(kvshare, case):
    done = kvshare("verify", case.model("head_shared_gqa"), "--golden", case.folder("head_shared_gqa"),
                   "--lib", "no/such/libkvshare_ort.so")
    assert done.returncode == REFUSED
    assert "--lib" in done.stderr


def test_a_library_without_ops_is_refused(kvshare, case):
    done = kvshare("verify", case.model("head_shared_gqa"), "--golden", case.folder("head_shared_gqa"),
                   "--lib", shutil.which("true"))
    assert done.returncode == REFUSED
