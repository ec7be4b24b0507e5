"""Seeded faults: does a test of its area fail for each? mutate.py [--check] [--jobs N] [NAME...]

faults.toml holds them. All are compiled into one copy of the tree, build/mutate/tree, each behind a number that the environment
variable KVSHARE_FAULT makes active; src/ holds none. Each then runs the tests of its area until one fails that passes without
it: the one that failed the last time, then the quickest. --jobs faults run side by side. --check only looks whether every old text still occurs exactly
once. NAME: a fault, or an area with all of its; those alone.
"""
import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import tomllib
from concurrent import futures

import area_tests

ROOT = pathlib.Path(__file__).resolve().parents[2]
TREE = ROOT / "build/mutate/tree"
KILLERS = ROOT / "build/mutate/killers.json"
SECONDS = ROOT / "build/mutate/seconds.json"
FAULTS = pathlib.Path(__file__).resolve().parent / "faults.toml"
SWITCH = """#pragma once
#pragma GCC diagnostic ignored "-Wunused-variable"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-function"
#include <cstdlib>
namespace kvshare_fault {
inline const int active = std::getenv("KVSHARE_FAULT") ? std::atoi(std::getenv("KVSHARE_FAULT")) : 0;
}
"""


def load():
    """The faults, numbered from 1, each with the tests of its area unless it names others."""
    data = tomllib.loads(FAULTS.read_text())
    for number, fault in enumerate(data["fault"], 1):
        fault["number"] = number
        tests = fault.get("tests", data["areas"][fault["area"]])
        fault["tests"] = [tests] if isinstance(tests, str) else tests
    return data["fault"]


def wrapped(fault):
    """The old text beside the new one: statements behind an if, else an expression."""
    active = f"kvshare_fault::active == {fault['number']}"
    if fault["old"].endswith(";"):
        return f"{{ if ({active}) {{ {fault['new']} }} else {{ {fault['old']} }} }}"
    return f"({active} ? ({fault['new']}) : ({fault['old']}))"


def outermost(text):
    """What stands in no bracket of the text; None where a bracket has no partner."""
    open_brackets, outside = [], []
    for char in text:
        if char in "([{":
            open_brackets.append(")]}"["([{".index(char)])
        elif char in ")]}":
            if not open_brackets or open_brackets.pop() != char:
                return None
        elif not open_brackets:
            outside.append(char)
    return None if open_brackets else "".join(outside)


def unfit(fault):
    """Why old and new text cannot stand side by side, or None."""
    outside = [outermost(fault[text]) for text in ("old", "new")]
    if None in outside:
        return "a bracket has no partner; old and new text are statements or an expression"
    if not fault["old"].endswith(";") and any(re.search(r",|(?<![=!<>])=(?!=)", text) for text in outside):
        return "an expression has a comma or an assignment outside of brackets; ?: takes neither"
    return None


def faulty(text, faults):
    """A source file with its faults in it, and what is wrong with them."""
    places, wrong = [], []
    for fault in faults:
        count = text.count(fault["old"])
        if count != 1:
            wrong.append(f"{fault['name']}: its old text occurs {count} times in {fault['file']}; needs 1")
            continue
        if why := unfit(fault):
            wrong.append(f"{fault['name']}: {why}")
        begin = text.index(fault["old"])
        places.append((begin, begin + len(fault["old"]), fault))
    places.sort(key=lambda place: place[0])
    for (_, end, a), (begin, _, b) in zip(places, places[1:]):
        if begin < end:
            wrong.append(f"{a['name']} and {b['name']} overlap in {a['file']}")
    out, at = ['#include "kvshare_fault.h"\n'], 0
    for begin, end, fault in places:
        out += [text[at:begin], wrapped(fault)]
        at = end
    return "".join([*out, text[at:]]), wrong


def sources(faults):
    """{file: its text with faults}; exits where one does not apply."""
    by_file, out, wrong = collections.defaultdict(list), {}, []
    for fault in faults:
        by_file[fault["file"]].append(fault)
    for name, count in collections.Counter(f["name"] for f in faults).items():
        if count > 1:
            wrong.append(f"{name} is the name of {count} faults")
    for file, its in by_file.items():
        path = ROOT / file
        if not path.exists():
            wrong.append(f"{', '.join(f['name'] for f in its)}: there is no {file}")
            continue
        out[file], its_wrong = faulty(path.read_text(), its)
        wrong += its_wrong
    if wrong:
        sys.exit("\n".join([*wrong, f"Bring {FAULTS.relative_to(ROOT)} up to the code."]))
    return out


def write(path, content):
    """Only what changed, so that the build does no more than it must."""
    if not path.exists() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def lay_tree(changed):
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                            capture_output=True, text=True).stdout.split("\0")
    files = {name for name in listed if name and (ROOT / name).is_file()}
    for path in TREE.rglob("*"):
        if path.is_file() and not path.is_symlink() and not path.is_relative_to(TREE / "build"):
            if path.relative_to(TREE).as_posix() not in files:
                path.unlink()
    for name in files:
        write(TREE / name, changed[name].encode() if name in changed else (ROOT / name).read_bytes())
        (TREE / name).chmod((ROOT / name).stat().st_mode)
    write(TREE / "src/kvshare_fault.h", SWITCH.encode())
    for link in (".venv", "build/deps"):
        (TREE / link).parent.mkdir(exist_ok=True)
        if not (TREE / link).is_symlink():
            (TREE / link).symlink_to((ROOT / link).resolve())


def build(jobs):
    for command in (["cmake", "--preset", "dev", "-DKVSHARE_BUILD_BENCH=OFF"], ["cmake", "--build", "build", "-j", str(jobs), "--", "-k", "0"]):
        done = subprocess.run(command, cwd=TREE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            sys.exit(f"the copy with faults does not build:\n{done.stdout[-4000:]}")


def recall(path):
    return json.loads(path.read_text()) if path.exists() else {}


def killer(fault, tests, last):
    """(the first test that fails with the fault and passes without, or None; seconds). The last run's killer comes first, then
    the quickest."""
    begin = time.monotonic()
    its = [test for test in tests if any(re.search(pattern, test.name) for pattern in fault["tests"])]
    for test in sorted(its, key=lambda t: (t.name != last, t.seconds)):
        if not test.passes(fault["number"]) and test.is_sound:
            return test.name, time.monotonic() - begin
    return None, time.monotonic() - begin


def judge(faults, tests, jobs):
    """Runs each; returns the names of those that were not as faults.toml says."""
    odd, killers = [], recall(KILLERS)
    with futures.ThreadPoolExecutor(jobs) as pool:
        results = pool.map(lambda fault: killer(fault, tests, killers.get(fault["name"])), faults)
        for fault, (failed, seconds) in zip(faults, results):
            why = fault.get("survives")
            if (failed is None) != (why is not None):
                odd.append(fault["name"])
            verdict = f"killed by {failed}" if failed else f"survives: {why}" if why else "SURVIVED"
            print(f"{fault['area']:<10} {fault['name']:<60} {seconds:6.1f} s  {verdict}"
                  f"{' (faults.toml says that it survives)' if failed and why else ''}", flush=True)
            killers[fault["name"]] = failed
            KILLERS.write_text(json.dumps(killers, indent=1))
            SECONDS.write_text(json.dumps({**recall(SECONDS), **{test.name: test.seconds for test in tests if test.seconds}}, indent=1))
    return odd


def summary(faults, odd, seconds):
    """Lines of a table: area, faults, of them killed, explained, odd."""
    yield "| area | faults | killed | survive, and why is known | not so |\n|---|---|---|---|---|"
    for area in dict.fromkeys(f["area"] for f in faults):
        its = [f for f in faults if f["area"] == area]
        wrong = sum(f["name"] in odd for f in its)
        known = sum("survives" in f and f["name"] not in odd for f in its)
        yield f"| {area} | {len(its)} | {len(its) - wrong - known} | {known} | {wrong} |"
    yield f"{len(faults) - len(odd)} of {len(faults)} faults are as faults.toml says, in {seconds:.0f} s"
    if odd:
        yield f"not so: {'; '.join(odd)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    faults = load()
    sources(faults)
    if given.check:
        return 0
    if unknown := set(given.names) - {f[key] for f in faults for key in ("name", "area")}:
        sys.exit(f"no fault and no area is called {', '.join(sorted(unknown))}")
    chosen = [f for f in faults if not given.names or {f["name"], f["area"]} & set(given.names)]
    lay_tree(sources(faults))
    build(given.jobs)
    begin = time.monotonic()
    tests = area_tests.list_tests(TREE / "build", {pattern for f in chosen for pattern in f["tests"]})
    for test in tests:
        test.seconds = recall(SECONDS).get(test.name, 0.0)
    odd = judge(chosen, tests, given.jobs)
    print("\n".join(summary(chosen, odd, time.monotonic() - begin)))
    if broken := [test.name for test in tests if "is_sound" in vars(test) and not test.is_sound]:
        print(f"these fail without a fault, and killed none: {'; '.join(broken)}")
    return 1 if odd or broken else 0


if __name__ == "__main__":
    sys.exit(main())
