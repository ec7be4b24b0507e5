"""What the verbs print for programs: one JSON object each."""
import json
import os
import shutil
import subprocess

import onnx
import pytest
from conftest import BAD_INPUT, EQUAL, FAILED


def test_rewrite_tells_its_outcomes_as_json(kvshare, case, tmp_path):
    out = tmp_path / "out.onnx"
    done = kvshare("rewrite", case.model("mixed_bias_asis"), "-o", out, "--to", "kvshare", "--json")
    assert done.returncode == EQUAL and out.exists(), done.stderr
    report = json.loads(done.stdout)
    assert report["changed"]
    assert {o["rule"] for o in report["outcomes"] if o["applied"]} >= {"shared-attention", "own-layers"}
    assert all(o["reason"] for o in report["outcomes"] if not o["applied"])
    assert report["before"]["mask_nodes"] > report["after"]["mask_nodes"] == 0
    assert report["after"] == json.loads(kvshare("inspect", out, "--json").stdout)


def bytes_of_caches(inspection, tokens=32768):
    return sum(layer["row_bytes"] * (layer["cache_rows"] or tokens) for layer in inspection["layers"])


@pytest.mark.parametrize("model", ["mixed_bias_asis", "head_shared_gqa", "torch_gemma4"])
@pytest.mark.parametrize("options", [["--to", "kvshare"], ["--to", "ort"], ["--to", "kvshare", "--window-caches"]])
def test_a_dry_run_tells_what_each_rule_saves(kvshare, case, model, options):
    done = kvshare("rewrite", case.model(model), "--dry-run", "--json", *options)
    assert done.returncode == EQUAL, done.stderr
    report = json.loads(done.stdout)
    savings, before, after = report["savings"], report["before"], report["after"]
    applied = list(dict.fromkeys(outcome["rule"] for outcome in report["outcomes"] if outcome["applied"]))
    assert [saving["rule"] for saving in savings] == applied != []
    for saved, counts in {"nodes": ["nodes"], "mask_nodes": ["mask_nodes"], "copies": ["borrowed_copies", "repeat_nodes"],
                          "presents": ["named_unused_presents"]}.items():
        assert sum(saving[saved] for saving in savings) == sum(before[count] - after[count] for count in counts), saved
    assert sum(saving["cache_bytes"] for saving in savings) == bytes_of_caches(before) - bytes_of_caches(after)


def test_the_report_for_people_tells_savings_too(kvshare, case):
    done = kvshare("rewrite", case.model("mixed_bias_asis"), "--dry-run", "--to", "kvshare", "--window-caches")
    assert done.returncode == EQUAL, done.stderr
    by_rule = {line.split()[2]: line for line in done.stdout.splitlines() if " x " in line}
    assert "mask nodes" in by_rule["shared-attention"] and "that copy K/V" in by_rule["shared-attention"]
    assert " nodes" in by_rule["dead-nodes"].partition("; saves")[2]
    assert "of caches at 32768 tokens" in by_rule["window-caches"]


def test_the_program_tells_the_librarys_version(kvshare, case):
    done = kvshare("--version")
    assert done.returncode == EQUAL, done.stderr
    doctor = kvshare("doctor", case.model("head_shared_gqa"), "--entry", "kvshare.drop_in=1").stdout
    assert f"kvshare {done.stdout.strip()}, SIMD target" in doctor


def with_streams(streams, *arguments):
    """(exit code, standard error) of the program, started by a shell with `streams`, as in "2>&-"."""
    command = ["sh", "-c", f'exec "$@" {streams}', "sh", os.environ["KVSHARE_BIN"], *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("streams", [">/dev/full", ">&-"])
def test_a_report_that_cannot_be_printed_is_a_failure(case, streams, options):
    code, error = with_streams(streams, "inspect", case.model("mixed_bias_asis"), *options)
    assert code == FAILED and len(error.splitlines()) == 1, (code, error)


def test_help_that_cannot_be_printed_is_a_failure():
    assert with_streams(">/dev/full", "--help") == (FAILED, "kvshare: cannot print the report: No space left on device\n")


def test_the_exit_code_tells_where_no_message_can(case):
    assert with_streams("2>&-", "inspect", "absent.onnx")[0] == BAD_INPUT
    assert with_streams("2>&-", "inspect", case.model("mixed_bias_asis"))[0] == EQUAL


ODD = b'self\xff\n\x1b[31m"'  # no UTF-8, a line break, a terminal's command, a quote


@pytest.fixture
def odd_names(case, tmp_path):
    """A case whose attention nodes have names that a text must not hand on as they are."""
    model = onnx.load(case.model("mixed_bias_asis"), load_external_data=False)
    for node in model.graph.node:
        node.name = node.name.replace("self_attn", "s" * len(ODD))
    (tmp_path / "odd.onnx").write_bytes(model.SerializeToString().replace(b"s" * len(ODD), ODD))
    shutil.copy(case.model("mixed_bias_asis") + ".data", tmp_path)
    return tmp_path / "odd.onnx"


def test_names_of_a_model_stay_on_their_line(kvshare, odd_names):
    odd = r'self\xff\n\x1b[31m"'
    for verb in (["inspect"], ["rewrite", "--to", "kvshare", "--dry-run"], ["rewrite", "--to", "kvshare-attention", "--dry-run"]):
        done = kvshare(*verb, odd_names)
        assert done.returncode == EQUAL and odd in done.stdout and "\x1b" not in done.stdout, done.stdout
        report = json.loads(kvshare(*verb, odd_names, "--json").stdout)
        assert "self\ufffd" + ODD[5:].decode() in report.get("layers", report.get("outcomes"))[0]["node"]
    done = kvshare("inspect", odd_names.parent / "no\nsuch\x1b[1m.onnx")
    assert (done.returncode, done.stderr) == (BAD_INPUT, f"kvshare: '{odd_names.parent}/no\\nsuch\\x1b[1m.onnx': no such file\n")
