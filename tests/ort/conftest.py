"""The same tests for the CPU and for CUDA's kernels: KVSHARE_BACKEND says which the libraries under test hold."""
import pathlib
import re

import harness
import pytest

KERNELS = pathlib.Path(__file__).resolve().parents[2] / "src/cuda/cuda_kernels.inc"


def pytest_collection_modifyitems(items):
    for item in items:
        if harness.ON_DEVICE and item.module.__name__ != "cuda_test" and re.search(r"\bf64\b", item.name):
            item.add_marker(pytest.mark.skip("no CUDA kernel for f64: cuda_test.py"))


@pytest.fixture(scope="module", autouse=True)
def every_call_ran_in_a_cuda_kernel():
    """"cuda" is a call that had nothing to compute."""
    if not harness.ON_DEVICE:
        yield
        return
    counters = harness.Counters()
    counters.reset()
    yield
    ran = {node["kernel"] for node in counters.read()["nodes"] if node["ran"]}
    names = set(re.findall(r"^KVSHARE_CUDA_\w+\((\w+),", KERNELS.read_text(), re.MULTILINE)) | {"Plain"}
    assert ran & names, "no call ran"
    assert ran <= names | {"cuda"}, ran
