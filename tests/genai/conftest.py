"""The library, registered once a process, and the program."""
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests/ort")]
BUILD = ROOT / "build"
for name, value in {"KVSHARE_ORT_LIB": BUILD / "lib/libkvshare_ort.so", "KVSHARE_DROPIN_LIB": BUILD / "lib/libkvshare_dropin.so",
                    "KVSHARE_BIN": BUILD / "bin/kvshare", "KVSHARE_TEST_DATA": ROOT / "tests/data"}.items():
    os.environ.setdefault(name, str(value))

import onnxruntime_genai  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(scope="session")
def genai():
    """onnxruntime-genai as a program has it that registered the library."""
    onnxruntime_genai.register_execution_provider_library("kvshare", os.environ["KVSHARE_ORT_LIB"])
    return onnxruntime_genai


@pytest.fixture
def kvshare():
    """Runs the program, which has to succeed; returns what it printed."""

    def run(*arguments):
        return subprocess.run([os.environ["KVSHARE_BIN"], *map(str, arguments)], check=True, capture_output=True, text=True).stdout

    return run
