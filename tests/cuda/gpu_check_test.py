"""`make gpu-check` without a card: what it says, what it writes down, and its Python over the emulated library."""
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from bench.gpu import NOT_RUN, capture, peers, report, rows  # noqa: E402

STEPS = "build conformance cases memcheck racecheck synccheck bench capture peers-ort peers-torch ncu".split()
TINY = """# a comment
2 2 4 2 1 40 64 0 f16 f16 full decode
1 1 4 1 1 40 64 16 f16 f16 sliding decode, D 64
1 1 2 1 12 12 32 5 f16 f16 sliding prompt
"""


class Machine:
    """A machine whose programs are scripts of the test, before those of this one."""

    def __init__(self, folder):
        self.folder, self.out = folder, folder / "out"
        self.tools = folder / "tools"
        self.tools.mkdir()
        self.program("nvidia-smi", "exit 9")

    def program(self, name, body, folder=None):
        path = (folder or self.tools) / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def card(self):
        self.program("nvidia-smi", 'if [ "$1" = -L ]; then echo "GPU 0: H100"; else echo "NVIDIA H100 80GB, 580.95"; fi')

    def check(self, *steps, **environment):
        return subprocess.run(
            [ROOT / "scripts/gpu_check.sh", *steps], capture_output=True, text=True, timeout=120,
            env={**os.environ, "PATH": f"{self.tools}:{os.environ['PATH']}", "OUT": str(self.out), "GPU_ARCH": "",
                 "BUILD": str(self.folder / "build"), "PYTHON": sys.executable, **environment})

    def results(self):
        return json.loads((self.out / "results.json").read_text())


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_without_a_card_each_step_says_so_in_a_line(machine):
    machine.program("nvcc", "exit 1")
    done = machine.check()
    *lines, last = done.stdout.splitlines()
    assert lines == [f"gpu_check: {step}: not run: no card: nvidia-smi finds none" for step in STEPS]
    assert last.startswith("gpu_check: ") and done.returncode == NOT_RUN and not done.stderr
    found = machine.results()
    assert [(s["step"], s["outcome"]) for s in found["steps"]] == [(step, "not run") for step in STEPS]
    assert found["card"] == found["driver"] == "none" and found["copy_tb_per_s"] is None
    assert all(side == {"not_run": "no card: nvidia-smi finds none"} for row in found["rows"] for side in row["sides"].values())


def test_an_unknown_step_is_refused_before_any_runs(machine):
    done = machine.check("cases", "sing")
    assert done.returncode == 64 and not done.stdout and not machine.out.exists()
    assert done.stderr == f"gpu_check: unknown step 'sing'; have pack {' '.join(STEPS)} \n"


def test_steps_that_fail_hang_or_pass_are_told_apart(machine):
    machine.card()
    built = machine.folder / "build"
    machine.program("gpu_check", 'echo 3 of 12 cases are wrong; exit 3', built)
    done = machine.check("cases")
    assert done.returncode == 1
    assert done.stdout.splitlines()[:2] == ["3 of 12 cases are wrong",
                                            "gpu_check: cases: failed: exit status 3; cases.txt has its words"]
    machine.program("gpu_check", "sleep 60", built)
    done = machine.check("cases", STEP_SECONDS="1")
    assert done.returncode == 1 and "gpu_check: cases: failed: not done in 1 seconds" in done.stdout
    machine.program("gpu_check", "echo fine", built)
    done = machine.check("cases", "conformance")
    assert done.returncode == 0, done.stdout + done.stderr
    # The line of a step that runs again is replaced; those of other calls stay.
    assert [(s["step"], s["outcome"], s["why"]) for s in machine.results()["steps"]] == [
        ("cases", "ok", ""), ("conformance", "not run", "step build has not made conformance_card")]
    machine.check("memcheck")
    assert [s["step"] for s in machine.results()["steps"]] == ["cases", "conformance", "memcheck"]
    assert (machine.results()["card"], machine.results()["driver"]) == ("NVIDIA H100 80GB", "580.95")


def test_a_package_that_is_missing_is_named(machine):
    machine.card()
    (machine.folder / "numpy.py").write_text("raise ImportError('no numpy here')\n")
    done = machine.check("capture", "peers-ort", "peers-torch", PYTHONPATH=str(machine.folder))
    why = "not run: python3 cannot import numpy: no numpy here"
    assert done.stdout.splitlines()[:3] == [f"gpu_check: {step}: {why}" for step in ("capture", "peers-ort", "peers-torch")]
    assert done.returncode == NOT_RUN


def made_up(folder):
    lines = {"facts.txt": "card NVIDIA H100 80GB HBM3\ndriver 580.95\ndate 2026-11-29T20:00:00Z\ncommit abc\n",
             "steps.tsv": "bench\tok\t61\t2026-11-29T20:01:00Z\t\n"
                          "peers-ort\tfailed\t600\t2026-11-29T20:11:00Z\tnot done in 600 seconds\n"
                          "peers-torch\tnot run\t0\t2026-11-29T20:11:00Z\tpython3 cannot import torch\n",
             "bench.jsonl": '{"copy_tb_per_s": 2.0}\n'
                            '{"row": "full decode", "side": "kvshare kernels", "ms": 1.5, "kernel": "k", "splits": 4}\n'
                            '{"row": "full decode", "side": "kvshare kernels, graph", "ms": 0.5, "kernel": "k", "splits": 4}\n',
             "peers-ort.jsonl": '{"row": "full decode", "side": "ONNX Runtime", "ms": 7.0, "error": 0.001}\n'
                                '{"row": "full decode", "side": "ONNX Runtime, graph", "not_run": "failed: no memory"}\n'
                                '{"row": "full decode", "side": "kvsh',  # what a killed step leaves
             "rows.txt": TINY}
    for name, text in lines.items():
        (folder / name).write_text(text, encoding="utf-8")
    return report.collect(folder, rows.read(folder / "rows.txt"))


def test_results_say_what_was_measured_and_why_the_rest_was_not(tmp_path):
    found = made_up(tmp_path)
    assert (found["card"], found["copy_tb_per_s"], found["steps"][0]["seconds"]) == ("NVIDIA H100 80GB HBM3", 2.0, 61)
    full, sliding, prompt = found["rows"]
    assert full["floor_ms"] == pytest.approx(2 * 2 * 2 * 2 * 40 * 64 * 2 / 2e12 * 1e3)  # layers, K and V, B, Hkv, T, D, bytes
    assert sliding["floor_ms"] == pytest.approx(2 * 16 * 64 * 2 / 2e12 * 1e3) and prompt["floor_ms"] is None
    assert full["sides"]["kvshare kernels"]["ms"] == 1.5 and full["sides"]["ONNX Runtime"]["error"] == 0.001
    assert {name: side["not_run"] for name, side in full["sides"].items() if "not_run" in side} == {
        "ONNX Runtime, graph": "failed: no memory",
        "kvshare in ONNX Runtime": "step peers-ort failed: not done in 600 seconds",
        "kvshare in ONNX Runtime, graph": "step peers-ort failed: not done in 600 seconds",
        "torch SDPA": "python3 cannot import torch", "torch SDPA, graph": "python3 cannot import torch"}
    assert sliding["sides"]["kvshare kernels"]["not_run"] == "step bench has no such row"


def test_the_tables_hold_the_results(tmp_path):
    found = made_up(tmp_path)
    found["rows"][0]["floor_ms"] = 0.25
    text = report.markdown(found)
    assert "| card | NVIDIA H100 80GB HBM3 |\n| driver | 580.95 |\n" in text and "| a copy, read and written | 2.00 TB/s |" in text
    assert "| peers-ort | failed: not done in 600 seconds | 600 | 2026-11-29T20:11:00Z |" in text
    assert "| full decode | 0.250 | 1.500 | 0.500 | – | – | 7.000 | – | – | – | 14.0 |" in text
    assert "| torch SDPA | python3 cannot import torch | all |" in text
    assert "| kvshare kernels | step bench has no such row | sliding decode, D 64; sliding prompt |" in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith(("| row", "| full", "| sliding decode, D 64 | "))}
    assert widths == {12}


def test_an_empty_folder_is_reported_too(tmp_path):
    found = report.collect(tmp_path, rows.read())
    assert found["steps"] == [] and "| card | not known |" in report.markdown(found)
    assert found["rows"][0]["sides"]["torch SDPA"] == {"not_run": "step peers-torch was not asked for"}


def test_the_rows_are_those_that_are_promised():
    def named(**wanted):
        return [row for row in rows.read() if all(getattr(row, name) == value for name, value in wanted.items())]
    assert {row.B for row in named(layers=20, S=1, T=32768, D=512, window=0, cache="f16")} == {1, 8}
    assert {row.cache for row in named(S=1)} == {"f16", "f32", "int8", "int4", "float8e4m3fn"}
    assert named(S=1, window=512) and named(S=1, D=256) and named(S=2048, D=512)
    names = [row.name for row in rows.read()]
    assert len(set(names)) == len(names) and not any(set(name) & set('"\\|\t') for name in names)


def test_the_card_program_measures_what_the_report_reads(tmp_path):
    (tmp_path / "rows.txt").write_text("1 1 4 1 1 20 64 0 f16 f16 a decode\n1 1 4 1 1 20 64 0 f16 int8 of codes\n", encoding="utf-8")
    subprocess.run([os.environ["KVSHARE_GPU_CHECK"], "bench", tmp_path / "rows.txt", tmp_path / "bench.jsonl", "1"], check=True,
                   timeout=300)
    found = report.collect(tmp_path, rows.read(tmp_path / "rows.txt"))
    assert found["copy_tb_per_s"] > 0
    assert all(row["sides"][name]["ms"] > 0 for row in found["rows"] for name in report.OURS[:2])


def test_what_the_card_program_cannot_read_is_named(tmp_path):
    (tmp_path / "rows.txt").write_text("20 1 8 one\n", encoding="utf-8")
    (tmp_path / "types.txt").write_text("1 1 4 1 1 20 64 0 f16 int16 a decode\n", encoding="utf-8")
    for path, message in ((tmp_path / "rows.txt", "not a row: 20 1 8 one"), (tmp_path / "types.txt", "no type 'int16'"), (tmp_path / "none.txt", "is not readable")):
        done = subprocess.run([os.environ["KVSHARE_GPU_CHECK"], "bench", path, tmp_path / "out"], capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr


def test_onnxruntime_with_and_without_kvshare_computes_the_rows(tmp_path, monkeypatch):
    """Over the emulated library, on the CPU; a graph there is a run like any other."""
    monkeypatch.setattr(peers, "BURSTS", 1)
    monkeypatch.setattr(peers, "MOST_RUNS", 1)
    (tmp_path / "rows.txt").write_text(TINY, encoding="utf-8")
    assert peers.main(["onnxruntime", str(tmp_path / "rows.txt"), str(tmp_path / "peers-ort.jsonl"), "--device", "cpu"]) == 0
    for row in report.collect(tmp_path, rows.read(tmp_path / "rows.txt"))["rows"]:
        for name in ("ONNX Runtime", "ONNX Runtime, graph", "kvshare in ONNX Runtime", "kvshare in ONNX Runtime, graph"):
            assert row["sides"][name].get("error", 1) < 2e-3, row


def test_a_peer_that_computes_something_else_is_not_timed():
    row = rows.Row(1, 1, 4, 2, 1, 30, 16, 0, "f16", "f16", "row")
    tensors = peers.inputs(row)
    right = peers.truth(row, tensors)
    assert peers.check(row, tensors, right.astype(np.float16)) < 2e-3
    for wrong in (right + 0.05 * np.abs(right).max(), np.full_like(right, np.nan)):
        with pytest.raises(Exception, match="wrong result: differs from float64"):
            peers.check(row, tensors, wrong)


def test_a_row_that_no_peer_computes_is_a_note(tmp_path, monkeypatch):
    (tmp_path / "rows.txt").write_text("1 1 4 1 1 20 64 0 f16 int8 of codes\n", encoding="utf-8")
    assert peers.main(["onnxruntime", str(tmp_path / "rows.txt"), str(tmp_path / "p.jsonl"), "--device", "cpu"]) == 0
    found = report.collect(tmp_path, rows.read(tmp_path / "rows.txt"))["rows"][0]["sides"]
    assert found["ONNX Runtime"]["not_run"] == "peers are measured in fp16 alone"


def test_kvshare_without_its_library_is_a_line_and_onnxruntime_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("KVSHARE_ORT_CUDA_LIBRARY", str(tmp_path / "libkvshare_ort_cuda.so"))
    monkeypatch.setattr(peers, "BURSTS", 1)
    (tmp_path / "rows.txt").write_text(TINY.splitlines()[2] + "\n", encoding="utf-8")
    assert peers.main(["onnxruntime", str(tmp_path / "rows.txt"), str(tmp_path / "p.jsonl"), "--device", "cpu"]) == 0
    sides = report.collect(tmp_path, rows.read(tmp_path / "rows.txt"))["rows"][0]["sides"]
    assert "ms" in sides["ONNX Runtime"]
    assert sides["kvshare in ONNX Runtime"]["not_run"] == (
        "no libkvshare_ort_cuda.so; where nvcc is: cmake --build build --target kvshare_ort_cuda")


def test_the_session_that_a_card_captures_follows_its_lengths(capsys):
    """Eager here: the emulated library runs in sessions on the CPU, which capture nothing."""
    assert capture.main(["--device", "cpu"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == len(capture.STEPS) + 1 and out[-1] == "0 outputs are wrong"


def test_a_session_that_keeps_old_lengths_is_seen(monkeypatch, capsys):
    from bench.gpu import ort_cuda
    put = ort_cuda.Bound.put
    monkeypatch.setattr(ort_cuda.Bound, "put", lambda bound, name, array: name == "seqlens_k" or put(bound, name, array))
    assert capture.main(["--device", "cpu"]) == 1
    assert "WRONG" in capsys.readouterr().out
