"""bench/model: its arithmetic, and a run of all sides at tiny sizes."""
import itertools
import json
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from bench.model import side, tables  # noqa: E402
from bench.model.sizes import E2B, TINY  # noqa: E402


def job(slack, in_place=True):
    return side.Job("", "stock", TINY, "decode", [], 1, 0, slack, in_place, "")


def test_e2b_has_its_layers_and_its_caches():
    assert [E2B.source(layer) for layer in (15, 18, 19, 34)] == [13, 13, 14, 14]
    assert E2B.cache_bytes(32768, None) == 32768 * 4 * 2 * (12 * 256 + 3 * 512)
    whole, small = (E2B.cache_bytes(32768, slack, E2B.sliding()) for slack in (None, 64))
    assert whole / small == 32768 / 576


def test_fast_prefill_is_bound_by_the_layers_that_own_their_keys():
    own, borrowing, _ = E2B.weights()
    assert E2B.fast_prefill_bound(1) == 1
    assert 3 < E2B.fast_prefill_bound(2048) < E2B.fast_prefill_bound(4096) < (own + borrowing) / own


def test_all_kinds_of_caches_hold_the_same_latest_tokens():
    whole, grown, small = (side.cached(kind, 0, 1, 40) for kind in (job(None), job(None, in_place=False), job(4)))
    assert (whole.shape[2], grown.shape[2], small.shape[2]) == (40, 39, 20)
    np.testing.assert_array_equal(whole[:, :, :39], grown)
    np.testing.assert_array_equal(small, grown[:, :, -20:])
    assert not whole[:, :, 39].any()
    short = side.cached(job(4), 0, 1, 9)
    np.testing.assert_array_equal(short[:, :, :8], grown[:, :, :8])
    assert short.shape[2] == 20 and not short[:, :, 8:].any()


def test_shares_are_of_the_last_run_of_each_row(tmp_path):
    def event(name, ts, dur, op=None):
        return {"name": name, "ts": ts, "dur": dur, "cat": "Node" if op else "Session", "args": {"op_name": op}}

    runs = [event("model_run", 100 * i, 90) for i in range(4)]
    nodes = [event("layers.0.attention_kernel_time", 100 * i + 1, 10 * (i + 1), "Attention") for i in range(4)]
    nodes += [event("mask.full_kernel_time", 100 * i + 50, 10, "Where") for i in range(4)]
    nodes += [event("layers.0.up_kernel_time", 100 * i + 60, 10, "MatMulNBits") for i in range(4)]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(runs + nodes))
    assert [share["attention"] for share in side.shares(path, 2)] == [30 / 40, 50 / 60]


def test_a_side_without_a_row_has_a_dash():
    rows = [{"side": "a", "phase": "decode", "length": 8, "seconds": 0.5, "peak": 2e9, "cache_bytes": 1e6, "apart": 0}]
    assert "| a | 2.0 | 2.00 | 1 | – | 0 |" in tables.decode_table(rows, ["a"])


def test_window_caches_are_judged_at_the_longest_row():
    rows = [{"side": side, "phase": "decode", "length": T, "peak": peak} for T, side, peak in (
        (512, "a", 1e9), (32768, "a", 3e9), (32768, "b", 2e9))]
    assert tables.sliding_caches(rows, E2B, "a", "b", 64) == (
        "At T = 32768 the own layers with windows have caches of 805.3 MB, window-sized 14.2 MB: 56.9 times less. The process's "
        "peak is 1000 MB lower.")
    assert tables.sliding_caches(rows, E2B, "a", "c", 64) == ""


def test_sides_of_all_files_and_engines_run_and_agree(tmp_path):
    only = "shared form|default form, |mixed graph unchanged|fast prefill"
    run = subprocess.run([sys.executable, "-m", "bench.model", "--plan", "tiny", "--threads", "1", "--only", only, "--out", str(tmp_path)],
                         cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "model.json").read_text())
    sides = {row["side"] for row in found["rows"]}
    assert len(sides) == 4 and not found["failures"]
    ran = {(row["side"], row["phase"], row["length"]) for row in found["rows"]}
    assert ran == set(itertools.product(sides, ("decode", "share", "prompt"), (16, 100)))
    timed = [row for row in found["rows"] if row["phase"] != "share"]
    assert max(row["apart"] for row in timed) < 1e-4
    assert all(row["seconds"] > 0 and row["peak"] > 0 for row in timed)
    assert all(0 < row["share"]["attention"] < 1 for row in found["rows"] if row["phase"] == "share")
    assert (tmp_path / "model.svg").read_text().count("<polyline") == 2 * len(sides)
    assert (tmp_path / "model.md").read_text().count("| shared form, ONNX Runtime |") == 2
