"""bench/: its arithmetic, and runs of the driver without peers."""
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from bench import attention, common, report, results_table, step  # noqa: E402


def test_visible_rows_and_pairs_are_those_of_the_mask():
    for row in {(row.shape, row.S, row.T): row for row in attention.ROWS if row.T <= 4096 and row.batch == 1}.values():
        mask = attention.mask(row)
        assert (row.pairs, row.visible) == (mask.sum(), mask.any(axis=0).sum()), row.name


def test_a_ragged_batch_has_the_rows_of_its_lengths():
    row = common.Row("attention", "decode", attention.SHAPES[1], "fp32", 1, 4096, 1, 4, True)
    assert row.lengths == [4096, 3072, 2048, 1024] and row.visible == row.pairs == 10240


def test_bf16_rounds_to_nearest_even():
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, -0.3], np.float32)  # the middle ones lie between two neighbours
    assert common.as_float(common.stored(values, "bf16")).tolist() == [1.0, 1.0, 1 + 2**-6, -0.30078125]


def test_peak_memory_is_what_was_taken_in_between():
    before = np.ones(20_000_000, np.uint8)  # another peak, before
    del before
    memory = common.PeakMemory()
    taken = np.ones(9_000_000, np.uint8)
    del taken
    assert 8_000_000 <= memory.bytes() <= 12_000_000


def test_a_rotation_visits_every_stretch():
    for count in range(1, 200):
        assert len({i * common.stride(count) % count for i in range(count)}) == count


def test_the_step_has_the_layers_of_e2b():
    assert [step.LAYERS.count(shape) for shape in (step.SLIDING, step.FULL)] == [28, 7]
    assert all(step.LAYERS[source] == shape for shape, source in step.SOURCE.items())


def test_the_plot_has_a_line_a_side_and_one_for_the_floor():
    results = [{"row": {"phase": "decode", "dtype": "fp32", "threads": 1, "batch": 1, "T": T, "shape": {"name": "x"}},
                "floor": {"ms": T / 1e4}, "sides": {"kvshare": {"ms": T / 5e3}, "absent": {"skipped": "not installed"}}}
               for T in (512, 4096)]
    assert report.plots(results, "machine")["decode"].count("<polyline") == 2
    assert report.plots(results[:1], "machine") == {}


def test_the_results_table_reads_what_the_driver_writes(tmp_path):
    def side(ms, disturbed=False):
        return {"ms": ms, "disturbed": disturbed, "spread": 1, "error": 1e-8, "peak_bytes": 2_500_000, "calls": 9, "dropped": 0}

    result = {"name": "decode llama fp32 S1 T512 1t", "roof": {"gbs": 10, "read_gbs": 9, "gflops": 100},
              "floor": {"ms": 0.5, "by": "bytes"},
              "sides": {"kvshare": side(1), "kvshare, Attention + mask": side(2), "ort shared": side(3),
                        "ort Attention + mask": side(5, disturbed=True), "ggml": side(4), "torch": {"skipped": "not installed"}}}
    (tmp_path / "results.txt").write_text("machine: x\n\n" + report.table(result) + "\n")
    assert "      2.5 MB  error 1e-08" in report.table(result)
    (name, (bound, sides)), = results_table.read(tmp_path / "results.txt").items()
    assert results_table.line(name, bound, sides) == (
        "decode llama fp32 S1 T512 1t", "1.000", "2.00 (bytes)", "3.0 (shared)", "4.0 (ggml)", "2.000", "2.5*")


EP, SHARED = "kvshare EP, unchanged", {"ort shared", "ort shared, presents", "ort own cache"}
OURS = {"kvshare", "kvshare, own cache", EP}
MASKED = {"kvshare, Attention + mask", "kvshare EP, masked"}
SMALL = {"kvshare", EP, "ort Attention"}


@pytest.mark.parametrize("row, ran", [
    ("decode e2b_sliding fp32 S1 T512 1t", OURS | MASKED | SHARED | {"ort Attention + mask"}),
    ("decode llama bf16 S1 T512 1t", OURS | MASKED),
    ("decode llama int8 S1 T512 1t", OURS | SHARED - {"ort shared"}),
    ("decode mha fp32 S1 T4096 1t B4 ragged", OURS | SHARED),
    ("cost, decode e2b_sliding fp32 S1 T4096 1t",
     {"kvshare", "RoPE", "own cache", "own cache, RoPE", "odd T", "softcap", "bias", "sinks", "all"}),
    ("small d33 fp32 S1 T512 1t", SMALL), ("small d64 fp32 S16 T64 1t", SMALL), ("small d64 fp32 S256 T1 1t", SMALL),
    ("small alibi fp32 S256 T512 1t", SMALL),
    ("step e2b_35_layers fp32 S1 T512 1t", {"kvshare", EP, "ort shared"})])
def test_the_driver_runs_every_side_of_this_process_and_names_absent_peers(tmp_path, row, ran):
    run = subprocess.run([sys.executable, "-m", "bench.run", "--only", f"^{row}$", "--rounds", "1", "--slot", "0.001",
                          "--roof", os.environ["KVSHARE_ROOF"], "--python", str(tmp_path / "none"), "--out", str(tmp_path)],
                         cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    (result,) = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {name for name, side in result["sides"].items() if "error" in side} == ran, result["sides"]
    assert all(side["peak_bytes"] >= 0 for side in result["sides"].values() if "error" in side)
    if "ort Attention + mask" in ran:
        assert result["sides"]["torch"]["skipped"].startswith("not installed")
