"""Bars of long work: on a terminal, and nowhere else."""
import os
import pty
import subprocess
import tempfile

import pytest

from conftest import DATA, EQUAL


def on_terminal(*arguments):
    """What the program writes to standard error where that is a terminal."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen([os.environ["KVSHARE_BIN"], *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=theirs)
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 4096):
            text += part
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert done.wait(timeout=120) == EQUAL, text
    return text.decode()


@pytest.fixture
def other_disk():
    """Where blocks of a file cannot be shared, so that it is copied."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield folder


def test_a_copy_has_a_bar(case, kvshare, other_disk):
    command = ["rewrite", case.model("mixed_bias_asis"), "-o", f"{other_disk}/m.onnx", "--to", "kvshare"]
    text = on_terminal(*command)
    assert "copying weights [" + "#" * 30 + "] 0.0 of 0.0 GB" in text and text.endswith("\r\x1b[K")
    assert kvshare(*command).stderr == ""


def test_a_copied_folder_has_a_bar(kvshare, tmp_path, other_disk):
    (tmp_path / "genai_config.json").write_text('{"model": {"decoder": {}}}')
    (tmp_path / "model.onnx.data").write_bytes(bytes(1 << 20))
    text = on_terminal("genai", tmp_path, "-o", f"{other_disk}/out")
    assert "copying weights [" + "#" * 30 + "]" in text and text.endswith("\r\x1b[K")
    assert kvshare("genai", tmp_path, "-o", f"{other_disk}/again").stderr == ""


def test_verify_counts_the_runs(case, kvshare):
    command = ["verify", case.model("head_shared_gqa"), "--golden", DATA / "head_shared_gqa"]
    text = on_terminal(*command)
    assert all(f"running the model [{'#' * (30 * done // 7):<30}] {done} of 7" in text for done in range(1, 8))
    assert text.endswith("\r\x1b[K") and kvshare(*command).stderr == ""
