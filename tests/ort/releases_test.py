"""The same graphs and the op tests on older releases, each in a process of its own."""
import json
import os
import subprocess
import sys

import pytest

import golden_cases

RELEASES = os.environ["KVSHARE_ORT_RELEASES"]
HERE = os.path.dirname(os.path.abspath(__file__))


def environment(release):
    folder = os.path.join(RELEASES, release)
    if not os.path.isdir(folder):
        pytest.fail(f"onnxruntime {release} is not unpacked in {RELEASES}; run scripts/setup.sh")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([folder, HERE])}


@pytest.mark.parametrize("release", ["1.24.4", "1.27.0", "1.30.0"])
def test_unchanged_graphs_give_the_golden_logits(release):
    done = subprocess.run([sys.executable, os.path.join(HERE, "golden_cases.py"), "dropin"], env=environment(release),
                          capture_output=True, text=True)
    results = {r["case"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert sorted(results) == golden_cases.NAMES, done.stderr[-2000:]
    for name, result in results.items():
        assert result["ort"] == release
        assert "error" not in result, result
        assert result["worst"] <= result["tolerance"] and result["ran"] > 0, result


@pytest.mark.parametrize("release", ["1.24.4", "1.27.0", "1.30.0"])
def test_op_tests_pass(release):
    # The half types' kernels know nothing of the release: fp32 says it all.
    files = [os.path.join(HERE, f) for f in ("gqa_test.py", "attention_test.py", "kvshare_ops_test.py", "onnx_backend_test.py")]
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", "not f16", *files],
                          env=environment(release), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
