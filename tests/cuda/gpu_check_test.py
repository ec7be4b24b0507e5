"""`make gpu-check` without a card: what it says, what it writes down, and its Python over the emulated library."""
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from bench.gpu import NOT_RUN, capture, peers, report, rows  # noqa: E402

STEPS = "build conformance cases memcheck racecheck synccheck bench capture peers-ort peers-torch ncu".split()
TINY = """# a comment
2 2 2 4 2 1 40 64 0 f16 f16 full decode
1 1 1 4 1 1 40 64 16 f16 f16 sliding decode, D 64
1 1 1 2 1 12 12 32 5 f16 f16 sliding prompt
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

    def card(self, capability="9.0"):
        self.program("nvidia-smi", f"""case $* in
            -L) echo "GPU 0: H100" ;;
            *compute_cap*) {f"echo {capability}" if capability else "exit 2"} ;;
            *) echo "NVIDIA H100 80GB, 580.95" ;;
        esac""")

    def built(self, body):
        """What step build makes, as a script."""
        self.program("gpu_check", body, self.folder / "build")

    def check(self, *steps, script=ROOT / "scripts/gpu_check.sh", cwd=None, **environment):
        return subprocess.run(
            [script, *steps], capture_output=True, text=True, timeout=120, cwd=cwd,
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
    machine.built("echo 3 of 12 cases are wrong; exit 3")
    done = machine.check("cases")
    assert done.returncode == 1
    assert done.stdout.splitlines()[:2] == ["3 of 12 cases are wrong",
                                            "gpu_check: cases: failed: exit status 3; cases.txt has its words"]
    machine.built("sleep 60")
    done = machine.check("cases", STEP_SECONDS="1")
    assert done.returncode == 1 and "gpu_check: cases: failed: not done in 1 seconds" in done.stdout
    machine.built("echo fine")
    done = machine.check("cases", "conformance")
    assert done.returncode == 0, done.stdout + done.stderr
    # The line of a step that runs again is replaced; those of other calls stay.
    assert [(s["step"], s["outcome"], s["why"]) for s in machine.results()["steps"]] == [
        ("cases", "ok", ""), ("conformance", "not run", "step build has not made conformance_card")]
    machine.check("memcheck")
    assert [s["step"] for s in machine.results()["steps"]] == ["cases", "conformance", "memcheck"]
    assert (machine.results()["card"], machine.results()["driver"]) == ("NVIDIA H100 80GB", "580.95")


def lines_of(done):
    return [line for line in done.stdout.splitlines() if line.startswith("gpu_check: ")][:-1]  # the last one names the results


@pytest.mark.parametrize("capability, runs", [("7.5", False), ("8.0", True), ("12.0", True), (None, True)])
def test_a_card_that_is_too_old_is_named(machine, capability, runs):
    machine.card(capability)
    machine.built("echo fine")
    done = machine.check("cases")
    old = f"gpu_check: cases: not run: the card's compute capability is {capability}; needs 8.0 or more"
    assert lines_of(done) == ["gpu_check: cases: ok" if runs else old]


@pytest.mark.parametrize("says, release", [("Cuda compilation tools, release 11.8, V11.8.89", "11"), ("nonsense", "unknown")])
def test_a_compiler_that_is_too_old_is_named(machine, says, release):
    machine.card()
    machine.program("nvcc", f"echo '{says}'")
    done = machine.check("build")
    assert lines_of(done) == [f"gpu_check: build: not run: nvcc is of CUDA {release}; needs 12 or later"]


def test_headers_that_are_missing_are_named(machine):
    machine.card()
    machine.program("nvcc", "echo release 13.0, V13.0.88")
    done = machine.check("build", FMT_INCLUDE=str(machine.folder))
    assert lines_of(done) == [
        f"gpu_check: build: not run: no headers of {{fmt}} in {machine.folder}: FMT_INCLUDE names their folder"]


def test_it_may_be_called_from_any_folder(machine):
    done = machine.check("cases", script="../scripts/gpu_check.sh", cwd=ROOT / "docs")
    assert lines_of(done) == ["gpu_check: cases: not run: no card: nvidia-smi finds none"]


def test_each_compiler_gets_its_files(machine):
    """Compilers that only write down what they are asked for: each source exists, and what is linked was compiled."""
    machine.card()
    log = machine.folder / "log"
    for name in ("nvcc", "g++"):
        machine.program(name, f"""[ "$1" != --version ] || {{ echo release 12.4, V12.4.1; exit; }}
            echo {name} "$@" >> {log}
            while [ $# -gt 0 ]; do
              case $1 in
                -o) touch "$2"; chmod +x "$2" ;;
                *.cc | *.cu | *.o) [ -e "$1" ] || {{ echo "there is no $1"; exit 1; }} ;;
              esac
              shift
            done""")
    done = machine.check("build")
    assert done.returncode == 0, done.stdout
    calls = log.read_text().splitlines()
    assert [sum(call.startswith(f"nvcc -std=c++20 {flag}") for call in calls) for flag in ("", "-O3 -DNDEBUG")] == [3, 3]
    assert all("-arch=native" in call for call in calls if ".cu " in call)
    assert all((machine.folder / "build" / name).exists() for name in ("gpu_check", "conformance_card", "conformance_emulated"))
    machine.program("g++", "echo this compiler is broken; exit 1")
    done = machine.check("build")
    assert "this compiler is broken" in done.stdout and done.returncode == 1


@pytest.mark.parametrize("step, tool", [("memcheck", "compute-sanitizer"), ("ncu", "ncu")])
def test_a_tool_that_is_missing_is_named(machine, step, tool):
    machine.card()
    machine.built("echo fine")
    done = machine.check(step)
    assert lines_of(done) == [f"gpu_check: {step}: not run: no {tool}"]


def test_the_sanitizer_runs_the_cases_under_each_of_its_tools(machine):
    machine.card()
    machine.built('echo "cases of $1"')
    machine.program("compute-sanitizer", 'echo "$@"; for last; do :; done; [ "$2" != racecheck ] || exit 9')
    done = machine.check("memcheck", "racecheck", "synccheck")
    outcomes = [s["outcome"] for s in machine.results()["steps"]]
    assert outcomes == ["ok", "failed", "ok"] and done.returncode == 1
    for tool in ("memcheck", "racecheck", "synccheck"):
        assert f"--tool {tool} --error-exitcode 9 {machine.folder}/build/gpu_check cases" in done.stdout


@pytest.mark.parametrize("says, status, outcome", [
    ("dram__throughput.avg.pct_of_peak_sustained_elapsed % 80", 0, "ok"),
    ("dram__throughput.avg.pct_of_peak_sustained_elapsed % 80", 1, "failed: exit status 1; ncu.txt has its words"),
    ("==ERROR== ERR_NVGPUCTRPERM", 1, "not run: the driver shows counters to administrators alone (ERR_NVGPUCTRPERM)"),
    ("==WARNING== No kernels were profiled.", 0, "failed: exit status 1; ncu.txt has its words")])
def test_a_profiler_that_measured_nothing_has_not_passed(machine, says, status, outcome):
    machine.card()
    machine.built("echo fine")
    machine.program("ncu", f"echo '{says}'; exit {status}")
    assert lines_of(machine.check("ncu")) == [f"gpu_check: ncu: {outcome}"]


def test_an_onnxruntime_without_cuda_is_named(machine):
    machine.card()
    done = machine.check("capture", "peers-ort")
    why = f"not run: onnxruntime {onnxruntime.__version__} has no CUDAExecutionProvider; onnxruntime-gpu has"
    assert lines_of(done) == [f"gpu_check: {step}: {why}" for step in ("capture", "peers-ort")]


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
    lines = [line for line in text.splitlines() if line.startswith(("| row", "| full", "| sliding decode, D 64 | "))]
    widths = {line.count("|") for line in lines}
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
    (tmp_path / "rows.txt").write_text("3 2 1 4 1 1 20 64 0 f16 f16 a decode\n1 1 1 4 1 1 20 64 0 f16 int8 of codes\n",
                                       encoding="utf-8")
    subprocess.run([os.environ["KVSHARE_GPU_CHECK"], "bench", tmp_path / "rows.txt", tmp_path / "bench.jsonl", "1"], check=True,
                   timeout=300)
    found = report.collect(tmp_path, rows.read(tmp_path / "rows.txt"))
    assert found["copy_tb_per_s"] > 0
    assert all(row["sides"][name]["ms"] > 0 for row in found["rows"] for name in report.OURS[:2])


def test_a_profiler_gets_one_layer_of_each_row(tmp_path):
    (tmp_path / "rows.txt").write_text(TINY, encoding="utf-8")
    done = subprocess.run([os.environ["KVSHARE_GPU_CHECK"], "once", tmp_path / "rows.txt"], check=True, capture_output=True,
                          text=True)
    assert [line.split("  ")[0] for line in done.stdout.splitlines()] == ["full decode", "sliding decode, D 64", "sliding prompt"]


def test_wrappers_that_differ_are_named(tmp_path):
    program, words = os.environ["KVSHARE_CONFORMANCE"], tmp_path / "words"
    subprocess.run([program, words], check=True)
    subprocess.run([program, words, "--compare"], check=True)
    bits = bytearray(words.read_bytes())
    bits[6 * 4] ^= 1
    words.write_bytes(bits)
    done = subprocess.run([program, words, "--compare"], capture_output=True, text=True)
    assert done.returncode == 1 and "LdMatrixTrans: word 1 of thread 0 is " in done.stdout
    assert "conformance: 1 of " in done.stdout
    words.write_bytes(bits[:-4])
    done = subprocess.run([program, words, "--compare"], capture_output=True, text=True)
    assert done.returncode == 1 and f"'{words}' has " in done.stderr


def test_what_the_card_program_cannot_read_is_named(tmp_path):
    (tmp_path / "rows.txt").write_text("20 1 8 one\n", encoding="utf-8")
    (tmp_path / "types.txt").write_text("1 1 1 4 1 1 20 64 0 f16 int16 a decode\n", encoding="utf-8")
    messages = {"rows.txt": "not a row: 20 1 8 one", "types.txt": "no type 'int16'", "none.txt": "is not readable"}
    for name, message in messages.items():
        path = tmp_path / name
        done = subprocess.run([os.environ["KVSHARE_GPU_CHECK"], "bench", path, tmp_path / "out"], capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr


def test_layers_take_turns_with_the_caches():
    row = rows.Row(3, 2, 1, 4, 2, 1, 30, 16, 0, "f16", "f16", "row")
    assert peers.cache_names(row, 3) == [("key0", "value0"), ("key1", "value1"), ("key0", "value0")]
    assert peers.cache_names(row, 1) == [("key0", "value0")]
    for row in rows.read():
        assert row.S >= 512 or row.caches == row.layers or row.caches * row.floor_bytes >= row.layers * 2**28, row


def test_a_session_that_kvshare_does_not_serve_is_not_timed(tmp_path, monkeypatch):
    from bench.gpu import ort_cuda
    monkeypatch.setattr(ort_cuda, "served", lambda: 7)
    (tmp_path / "rows.txt").write_text(TINY.splitlines()[2] + "\n", encoding="utf-8")
    assert peers.main(["onnxruntime", str(tmp_path / "rows.txt"), str(tmp_path / "p.jsonl"), "--device", "cpu"]) == 0
    sides = report.collect(tmp_path, rows.read(tmp_path / "rows.txt"))["rows"][0]["sides"]
    assert sides["kvshare in ONNX Runtime"]["not_run"] == "kvshare has served no call of the session"


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
    row = rows.Row(1, 1, 1, 4, 2, 1, 30, 16, 0, "f16", "f16", "row")
    tensors = peers.inputs(row)
    right = peers.truth(row, tensors)
    assert peers.check(row, tensors, right.astype(np.float16)) < 2e-3
    for wrong in (right + 0.05 * np.abs(right).max(), np.full_like(right, np.nan)):
        with pytest.raises(Exception, match="wrong result: differs from float64"):
            peers.check(row, tensors, wrong)


def test_a_row_that_no_peer_computes_is_a_note(tmp_path, monkeypatch):
    (tmp_path / "rows.txt").write_text("1 1 1 4 1 1 20 64 0 f16 int8 of codes\n", encoding="utf-8")
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
