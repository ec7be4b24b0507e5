"""Paths come from the build: KVSHARE_BIN, and KVSHARE_ORT_LIBRARY where the operator library is built."""

import os
import pathlib
import shutil

import cases
import pytest


@pytest.fixture(scope="session", autouse=True)
def data(tmp_path_factory):
    """The cases are copied: tests that link weights leave the checked-in files single."""
    copy = tmp_path_factory.mktemp("data") / "cases"
    shutil.copytree(cases.DATA, copy)
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    cases.DATA = copy


@pytest.fixture(scope="session")
def kvshare():
    path = pathlib.Path(os.environ.get("KVSHARE_BIN", ""))
    assert path.is_file(), "KVSHARE_BIN must name the kvshare binary"
    return path


@pytest.fixture(scope="session")
def library():
    path = pathlib.Path(os.environ.get("KVSHARE_ORT_LIBRARY", ""))
    if not path.is_file():
        pytest.skip("KVSHARE_ORT_LIBRARY is not built")
    return path
