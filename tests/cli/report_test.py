"""What the verbs print for programs: one JSON object each."""
import json

from conftest import EQUAL


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


def test_the_program_tells_the_librarys_version(kvshare, case):
    done = kvshare("--version")
    assert done.returncode == EQUAL, done.stderr
    doctor = kvshare("doctor", case.model("head_shared_gqa"), "--entry", "kvshare.drop_in=1").stdout
    assert f"kvshare {done.stdout.strip()}, SIMD target" in doctor
