"""python -m bench.run [--quick] [--only REGEX]: every competitor beside kvshare, in rounds with the machine's roof.

ONNX Runtime and kvshare run in this process, the other peers in one process each (bench/worker.py), driven over pipes; at
any time only one side works. Writes build/bench/results.{txt,json} and decode.svg, prefill.svg, group.svg.
"""
import argparse
import dataclasses
import json
import pathlib
import re
import resource
import subprocess
import time

from bench import attention, common, cost, machine, mixed, ort_session, report, small, step
from bench.attention import kvshare, ort
from bench.cost import kvshare as cost_kvshare
from bench.mixed import kvshare as mixed_kvshare, ort as mixed_ort
from bench.small import kvshare as small_kvshare, ort as small_ort
from bench.step import kvshare as step_kvshare, ort as step_ort

ROOT = pathlib.Path(__file__).parents[1]
HERE = {"attention": (attention, [kvshare, ort]), "cost": (cost, [cost_kvshare]), "step": (step, [step_kvshare, step_ort]),
        "small": (small, [small_kvshare, small_ort]), "mixed": (mixed, [mixed_kvshare, mixed_ort])}
PEERS_TYPES = ("fp32", "fp16")
PEERS = ("torch", "executorch", "openvino", "ggml")  # of task attention
SWEPT = "(e2b_sliding/(f32|int8)/T32768|(e2b_full|llama)/(f32|int8)/T4096)$"
REST_SECONDS = {1: 0.01, 2: 0.25}  # by threads, between two sides: the workers of the one before spin, ggml's for 0.2 s
WHOLE = re.compile(r"(decode (e2b_\w+|llama|mha) (fp32|fp16|bf16|int8) S1 T(512|4096|32768) 1t"
                   r"|decode e2b_\w+ fp32 S1 T131072 1t|decode group\d+ fp32 S1 T4096 1t"
                   r"|decode \w+ fp32 S1 T4096 1t B4.*|decode (e2b_\w+|llama) (fp32|int8) S1 T4096 2t"
                   r"|(prefill|chunk) (e2b_\w+|llama) (fp32|bf16) S(2048|256) \S+ 1t"
                   r"|(prefill|chunk) e2b_sliding fp32 S(2048|256) \S+ 2t|cost, .*|step \S+ fp32 S1 \S+ 1t"
                   r"|step \S+ fp32 S1 T4096 2t|mixed .* 1t|small .* 1t|small (d64|alibi) .* S(1|16) .* 2t)$")
QUICK = re.compile(r"(decode (e2b_\w+ fp32 \S+ \S+|llama fp32 S1 T(512|4096|32768)) 1t|decode e2b_full fp32 S1 T4096 2t"
                   r"|decode (e2b_\w+|llama) (fp16|bf16|int8) S1 T4096 1t|chunk e2b_sliding fp32 \S+ \S+ 1t|(step|mixed) \S+ fp32 S1 T4096 1t)$")


class Peer:
    """A competitor in a process of its own. `skipped` holds the reason where it cannot run at all."""

    def __init__(self, name, python, log):
        self.name, self.version, self.skipped = name, None, None
        if not python.exists():
            self.skipped = "not installed (scripts/setup.sh bench)"
            return
        self.process = subprocess.Popen([python, "-m", "bench.worker", "attention", name], cwd=ROOT, text=True, bufsize=1,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        hello = self.answer()
        self.version, self.skipped = hello.get("version"), hello.get("skipped")

    def ask(self, **request):
        try:
            print(json.dumps(request), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            self.skipped = "its process has ended; see peers.log"

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.skipped = f"its process ended with status {self.process.wait()}; see peers.log"
            return {"skipped": self.skipped}
        return json.loads(line)

    def slot(self, side, seconds):
        self.ask(do="slot", side=side, seconds=seconds)
        answer = self.answer()
        return common.Slot([], []) if self.skipped else common.Slot(**answer)

    def close(self):
        if hasattr(self, "process"):
            self.process.stdin.close()
            self.process.wait()


def measure(row, peers, roof, args):
    """One row: open everywhere, then rounds of all sides in rotating order, the roof once in each."""
    task, competitors = HERE[row.task]
    here = common.Field(task, competitors)
    peers = peers if row.task == "attention" and row.dtype in PEERS_TYPES and row.batch == 1 else []
    live = [peer for peer in peers if not peer.skipped]
    for peer in live:
        peer.ask(do="open", row=dataclasses.asdict(row), limit=args.limit)
    sides = here.open(row, args.limit)
    slots = {name: lambda name=name: here.slot(name, args.slot) for name in here.sides}
    for peer in live:
        opened = peer.answer()
        if peer.skipped:
            continue
        sides.update(opened)
        slots.update({name: lambda peer=peer, name=name: peer.slot(name, args.slot)
                      for name, side in opened.items() if "error" in side})
    sides.update({peer.name: {"skipped": peer.skipped} for peer in peers if peer.skipped})
    taken = {name: [] for name in slots}
    roof.start()
    for r in range(args.rounds):
        roof.slot(row.threads)
        names = list(slots)
        for name in names[r % len(names):] + names[:r % len(names)]:
            time.sleep(REST_SECONDS[row.threads])
            taken[name].append(slots[name]())
    here.close()
    for name, taken_slots in taken.items():
        sides[name] = {**sides[name], **common.summary(taken_slots)}
    top, (floor_bytes, floor_flops) = roof.summary(), task.floor(row)
    by_bytes, by_flops = floor_bytes / top["gbs"] * 1e-6, floor_flops / top["gflops"] * 1e-6
    floor = {"ms": max(by_bytes, by_flops), "by": "bytes" if by_bytes >= by_flops else "FMA", "bytes": floor_bytes,
             "flops": floor_flops}
    return {"name": row.name, "row": dataclasses.asdict(row), "roof": top, "floor": floor, "sides": sides}


def after_a_sweep(seconds):
    """Lines of decode_bench: the core alone, also after 64 MB of other memory, as weights, have passed through the caches."""
    bench, side = ROOT / "build/bin/decode_bench", ROOT / "build/lib/libdecode_side.so"
    command = [bench, "--rows", SWEPT, "--seconds", str(seconds), "--sweep", side]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def arguments():
    parser = argparse.ArgumentParser(prog="bench", description="kvshare beside its peers")
    parser.add_argument("--quick", action="store_true", help="a few rows, 3 rounds: under 3 minutes")
    parser.add_argument("--only", metavar="REGEX", help="rows whose name matches, of all that there are")
    parser.add_argument("--list", action="store_true", help="print the names of the rows that would run and stop")
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--slot", type=float, help="seconds a side may take in a round, at least one call; default 0.03")
    parser.add_argument("--limit", type=float, help="a side whose call takes longer, in seconds, is not timed")
    parser.add_argument("--roof", default=str(ROOT / "build/bin/kvshare_roof"), help="the roof program")
    parser.add_argument("--python", type=pathlib.Path, default=ROOT / "build/bench-venv/bin/python", help="of the peers")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build/bench")
    args = parser.parse_args()
    defaults = {"rounds": 3, "slot": 0.03, "limit": 0.3} if args.quick else {"rounds": 3, "slot": 0.03, "limit": 1.0}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    return args


def main():
    args = arguments()
    rows = [row for row in attention.ROWS + cost.ROWS + small.ROWS + step.ROWS + mixed.ROWS
            if (re.search(args.only, row.name) if args.only else (QUICK if args.quick else WHOLE).match(row.name))]
    if args.list:
        print("\n".join(row.name for row in rows))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    started, load_before = time.time(), machine.load()
    with open(args.out / "peers.log", "w") as log, open(args.out / "results.txt", "w") as text:
        def say(line):
            print(line, flush=True)
            print(line, file=text, flush=True)

        peers = [Peer(name, args.python, log) for name in PEERS]
        roof = machine.Roof(args.roof)
        versions = {"kvshare": kvshare.version(), "onnxruntime": ort.version(),
                    **{peer.name: peer.version or peer.skipped for peer in peers}}
        say(f"machine: {machine.describe()}; load {load_before:.2f}")
        say("versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()))
        say(f"K/V rotate over {common.cold_bytes() >> 20} MB or more; {args.rounds} rounds, medians of undisturbed calls, "
            "± half the interquartile range, * where every call was disturbed; MB: what the first two calls add to the "
            "peak of the process's memory")
        say(f"an empty run of ONNX Runtime through this binding takes {ort_session.empty_run_seconds() * 1e6:.0f} us\n")
        results = []
        for row in rows:
            results.append(measure(row, peers, roof, args))
            say(report.table(results[-1]))
        for closing in [*peers, roof]:
            closing.close()
        swept = "" if args.only else after_a_sweep(1 if args.quick else 2)
        if swept:
            say("the core alone, one thread, K/V cold; then the same after a read of 64 MB\n" + swept)
        load_after = machine.load()
        document = {"machine": machine.describe(), "load": [load_before, load_after], "versions": versions,
                    "rounds": args.rounds, "cold_bytes": common.cold_bytes(), "swept": swept, "started": started,
                    "seconds": time.time() - started, "results": results}
        (args.out / "results.json").write_text(json.dumps(document, indent=1) + "\n")
        for name, svg in report.plots(results, machine.describe()).items():
            (args.out / f"{name}.svg").write_text(svg)
        say(f"\n{len(results)} rows in {document['seconds']:.0f} s; load {load_before:.2f} before, {load_after:.2f} after; at most "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MB of memory in this process")
        if load_before > machine.BUSY:
            say("the machine was busy when this began: not for publication")


if __name__ == "__main__":
    main()
