"""The real exported graphs, unchanged, in the execution provider: golden logits, and every attention layer ran there."""
import json
import os
import subprocess
import sys

import pytest

import golden_cases
import golden_in_ep

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


@pytest.mark.parametrize("release", ["1.24.4", "1.27.0", "1.30.0"])
def test_it_does_on_other_releases(release):
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
