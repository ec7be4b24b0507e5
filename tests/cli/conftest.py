"""The kvshare program and the test cases, for every test of the command line."""
import os
import pathlib
import subprocess

import pytest

DATA = pathlib.Path(__file__).resolve().parent.parent / "data"
EQUAL, DIFFERS, BAD_INPUT, REFUSED, NO_ORT, FAILED = range(6)


class Cases:
    """Paths of the cases under tests/data."""

    @staticmethod
    def folder(name):
        return str(DATA / name)

    @staticmethod
    def model(name):
        return str(DATA / name / "model.onnx")


@pytest.fixture
def case():
    return Cases


@pytest.fixture
def kvshare():
    """Runs the program; what it printed is in the result's stdout and stderr."""

    def run(*arguments, **environment):
        command = [os.environ["KVSHARE_BIN"], *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", timeout=120, env={**os.environ, **environment})
        assert done.returncode >= 0, f"{command} died of signal {-done.returncode}:\n{done.stderr}"
        return done

    return run
