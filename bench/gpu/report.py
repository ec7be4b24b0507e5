"""What `make gpu-check` has found, as results.json and results.md: python3 -m bench.gpu.report FOLDER ROWS

Reads of FOLDER, each as far as it is there:

    facts.txt      "name value" a line: card, driver, date, commit
    steps.tsv      step, outcome (ok, failed, not run), seconds, when it ended, why
    *.jsonl        a measurement a line: {"copy_tb_per_s"}, or {"row", "side", and "ms" or "not_run": why}

Standard library only.
"""
import json
import pathlib
import sys

from bench.gpu import rows

STEP_FIELDS = ("step", "outcome", "seconds", "date", "why")
OURS = ("kvshare kernels", "kvshare kernels, graph", "kvshare in ONNX Runtime", "kvshare in ONNX Runtime, graph")
PEERS = ("ONNX Runtime", "ONNX Runtime, graph", "torch SDPA", "torch SDPA, graph")
# The step that measures a side: where it did not run, its reason is the side's.
STEP = {side: "peers-torch" if side.startswith("torch") else "peers-ort" for side in (*OURS, *PEERS)}
STEP.update({side: "bench" for side in OURS[:2]})


def lines(path):
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def measurements(folder):
    """What is measured, by (row, side), and the copy's rate. A line that its writer could not end is left out."""
    sides, rate = {}, None
    for path in sorted(folder.glob("*.jsonl")):
        for line in lines(path):
            try:
                found = json.loads(line)
            except ValueError:
                continue
            rate = found.get("copy_tb_per_s", rate)
            if "row" in found:
                sides[found.pop("row"), found.pop("side")] = found
    return sides, rate


def why_not(side, steps):
    """Of a side without a measurement."""
    step = next((s for s in steps if s["step"] == STEP[side]), None)
    if step is None:
        return f"step {STEP[side]} was not asked for"
    if step["outcome"] == "ok":
        return f"step {STEP[side]} has no such row"
    return f"step {STEP[side]} failed: {step['why']}" if step["outcome"] == "failed" else step["why"]


def collect(folder, row_list):
    folder = pathlib.Path(folder)
    facts = dict(line.split(" ", 1) for line in lines(folder / "facts.txt") if " " in line)
    steps = [dict(zip(STEP_FIELDS, line.split("\t"))) for line in lines(folder / "steps.tsv")]
    for step in steps:
        step["seconds"] = int(step["seconds"])
    sides, rate = measurements(folder)
    table = []
    for row in row_list:
        found = {side: sides.get((row.name, side), {"not_run": why_not(side, steps)}) for side in (*OURS, *PEERS)}
        table.append({"row": row.name, "floor_ms": row.floor_ms(rate) if rate else None, "sides": found})
    return {**facts, "copy_tb_per_s": rate, "steps": steps, "rows": table}


def cell(side):
    return f"{side['ms']:.3f}" if "ms" in side else "–"


def fastest(sides, names):
    return min((sides[name]["ms"] for name in names if "ms" in sides[name]), default=None)


def markdown(results):
    """Tables: steps, then milliseconds of each row; below, what was not run and why, each reason once."""
    out = ["# kvshare on a card", "", "| fact | value |", "|---|---|"]
    out += [f"| {name} | {results.get(name, 'not known')} |" for name in ("card", "driver", "date", "commit")]
    rate = results["copy_tb_per_s"]
    out += [f"| a copy, read and written | {f'{rate:.2f} TB/s' if rate else 'not measured'} |", ""]
    out += ["| step | outcome | seconds | ended |", "|---|---|---|---|"]
    for step in results["steps"]:
        outcome = step["outcome"] + (f": {step['why']}" if step["why"] else "")
        out.append(f"| {step['step']} | {outcome} | {step['seconds']} | {step['date']} |")
    names = (*OURS, *PEERS)
    out += ["", "Milliseconds of all layers of a row. The floor is K and V, read once for each layer at the copy's rate; a cache "
            "that fits the card's L2 can be faster.", ""]
    out += ["| row | floor | " + " | ".join(names) + " | fastest peer / fastest kvshare |", "|---" * (len(names) + 3) + "|"]
    for row in results["rows"]:
        ours, peer = fastest(row["sides"], OURS), fastest(row["sides"], PEERS)
        floor = "–" if row["floor_ms"] is None else f"{row['floor_ms']:.3f}"
        times = f"{peer / ours:.1f}" if ours and peer else "–"
        out.append(f"| {row['row']} | {floor} | " + " | ".join(cell(row["sides"][n]) for n in names) + f" | {times} |")
    missing = {}
    for row in results["rows"]:
        for name in names:
            if "not_run" in row["sides"][name]:
                missing.setdefault((name, row["sides"][name]["not_run"]), []).append(row["row"])
    if missing:
        out += ["", "| not run | why | rows |", "|---|---|---|"]
        out += [f"| {name} | {why} | {'all' if len(of) == len(results['rows']) else '; '.join(of)} |"
                for (name, why), of in missing.items()]
    return "\n".join(out) + "\n"


def main(folder, rows_path):
    results = collect(folder, rows.read(rows_path))
    folder = pathlib.Path(folder)
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(markdown(results), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
