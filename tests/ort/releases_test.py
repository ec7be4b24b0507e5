"""The real exported graphs on older releases, each in a process of its own; `make matrix` has all releases and the op tests."""
import json
import os
import subprocess
import sys

import pytest

import golden_cases
from peer import release_folder

HERE = os.path.dirname(os.path.abspath(__file__))


@pytest.mark.parametrize("release", ["1.24.4", "1.27.0", "1.30.0"])
def test_unchanged_graphs_give_the_golden_logits(release):
    done = subprocess.run([sys.executable, os.path.join(HERE, "golden_cases.py"), "dropin"], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([release_folder(release), HERE])})
    results = {r["case"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert sorted(results) == golden_cases.NAMES, done.stderr[-2000:]
    for name, result in results.items():
        assert result["ort"] == release
        assert "error" not in result, result
        assert result["worst"] <= result["tolerance"] and result["ran"] > 0, result
