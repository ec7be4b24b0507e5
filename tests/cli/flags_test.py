"""The library's messages name options; the command line names its flags."""
import pytest

from conftest import BAD_INPUT, EQUAL, REFUSED


@pytest.mark.parametrize("flags,message", [
    (["--to", "onnx25", "--rope", "fold"], "--rope fold: ai.onnx's Attention takes a rotated query; needs --rope keep"),
    (["--to", "kvshare-attention", "--rope", "fold"], "--rope fold: kvshare::Attention takes a rotated query; needs --rope keep"),
    (["--to", "ort", "--min-ort", "1.26"], "--to ort --min-ort 1.26: releases before 1.27 refuse key and value of length 0"),
])
def test_a_refusal_names_flags(kvshare, case, flags, message):
    done = kvshare("rewrite", case.model("mixed_bias_asis"), "--dry-run", *flags)
    assert done.returncode == REFUSED and message in done.stderr, done.stderr
    assert "option '" not in done.stderr


@pytest.mark.parametrize("flag,names", [
    ("--to", "kvshare,kvshare-attention,ort,onnx25"), ("--own", "convert,keep"), ("--rope", "fold,keep"),
    ("--kv-cache", "int8,int4,fp8,bf16,fp16"), ("--via", "ep,ops,dropin"),
])
def test_a_name_that_a_flag_does_not_know_is_refused_with_those_that_it_knows(kvshare, case, flag, names):
    for wrong in ("0", "foo"):  # no number stands for a name
        done = kvshare("rewrite", case.model("mixed_bias_asis"), "--dry-run", *([] if flag == "--to" else ["--to", "kvshare"]), flag, wrong)
        assert (done.returncode, done.stderr.splitlines()[0]) == (BAD_INPUT, f"{flag}: {wrong} not in {{{names}}}"), done.stderr


def test_a_report_names_flags_also_as_json(kvshare, case):
    for json in ([], ["--json"]):
        done = kvshare("rewrite", case.model("head_shared_gqa"), "--dry-run", "--to", "ort", "--min-ort", "1.27", *json)
        assert done.returncode == EQUAL and "stay named (and copied) for --min-ort 1.27" in done.stdout, done.stdout
        assert "option 'min_ort'" not in done.stdout


def test_braces_in_a_models_path_stay(kvshare):
    done = kvshare("inspect", "{a}/{min_ort/{}/}.onnx")
    assert done.returncode == BAD_INPUT and "'{a}/{min_ort/{}/}.onnx': no such file" in done.stderr, done.stderr


@pytest.mark.parametrize("flag", [("--skip", "equal-caches"), ("--entry", "a.b=1"), ("--extent", "n=1")])
def test_a_flag_that_may_be_repeated_leaves_the_model_behind_it(kvshare, case, flag):
    verb = ["rewrite", "--to", "kvshare", "--dry-run"] if flag[0] == "--skip" else ["doctor"]
    done = kvshare(*verb, *flag, "no such model")
    assert (done.returncode, "'no such model': no such file" in done.stderr) == (BAD_INPUT, True), done.stderr


@pytest.mark.parametrize("flag,pairs", [("--entry", ["a.b=1", "a.b=2"]), ("--extent", ["n=1", "n=2"])])
def test_a_key_has_one_value(kvshare, case, flag, pairs):
    done = kvshare("doctor", case.model("mixed_bias_asis"), flag, pairs[0], flag, pairs[1])
    assert (done.returncode, f"{flag}: '{pairs[0][0:-2]}' is given twice" in done.stderr) == (BAD_INPUT, True), done.stderr


@pytest.mark.parametrize("flags,needs", [
    (["rewrite", "--to", "kvshare", "--dry-run", "--ort", "x"], "--ort requires --calibrate"),
    (["rewrite", "--to", "kvshare", "--dry-run", "--entry", "a=1"], "--entry requires --calibrate"),
    (["verify", "--golden", "x", "--steps", "3"], "--steps requires --against"),
    (["verify", "--golden", "x", "--prompt", "3"], "--prompt requires --against"),
    (["verify", "--golden", "x", "--seed", "3"], "--seed requires --against"),
])
def test_a_flag_without_an_effect_is_refused(kvshare, case, flags, needs):
    done = kvshare(*flags, case.model("mixed_bias_asis"))
    assert (done.returncode, needs in done.stderr) == (BAD_INPUT, True), done.stderr


@pytest.mark.parametrize("flags,message", [
    (["--tol", "nan"], ": needs a finite number of at least 0"), (["--tol", "-1"], ": needs a finite number of at least 0"),
    (["--tol", "inf"], ": needs a finite number of at least 0"), (["--prompt", "0"], ": needs at least 1 token"),
    (["--steps", "-1"], ": needs 0 to 100000 decode steps"), (["--steps", str(10**15)], ": needs 0 to 100000 decode steps"),
    (["--seed", "-1"], "needs a number of at least 0, got '-1'"),
])
def test_numbers_that_mean_nothing_are_refused(kvshare, case, flags, message):
    model = case.model("mixed_bias_asis")
    done = kvshare("verify", model, "--against", model, *flags)
    assert (done.returncode, message in done.stderr, flags[0] in done.stderr) == (BAD_INPUT, True, True), done.stderr
