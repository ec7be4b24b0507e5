"""clang-tidy over the translation units of a build folder: tidy.py BUILD_DIR

Runs one process a core. A unit that passed leaves a mark in BUILD_DIR/tidy, named by a hash of all that clang-tidy saw
of it: the unit and the project's headers it includes, its compile command, .clang-tidy. While the mark fits, the unit
is skipped.
"""
import concurrent.futures
import hashlib
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
TIDY = ROOT / ".venv/bin/clang-tidy"
# Warnings are g++'s business; one Highway target instead of four holds the same code.
EXTRA = ["-Wno-error", "-Wno-unknown-warning-option", "-DHWY_COMPILE_ONLY_STATIC"]
INCLUDE = re.compile(rb'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


def project_files(unit, command):
    """The unit and every header of the project that it includes, directly or not."""
    roots = [pathlib.Path(a[2:]) for a in command if a.startswith("-I")] + [ROOT / "src"]
    seen, todo = set(), [unit]
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        for name in INCLUDE.findall(path.read_bytes()):
            for folder in [path.parent, *roots]:
                header = (folder / name.decode()).resolve()
                if header.is_file() and header.is_relative_to(ROOT):
                    todo.append(header)
                    break
    return sorted(seen)


def digest(unit, command):
    state = hashlib.sha256(shlex.join(command).encode())
    for path in [ROOT / ".clang-tidy", *project_files(unit, command)]:
        state.update(b"\0" + path.read_bytes())
    return state.hexdigest()


def check(build, unit, command):
    mark = build / "tidy" / f"{str(unit.relative_to(ROOT)).replace('/', '_')}.{digest(unit, command)}"
    if mark.exists():
        return unit, 0, ""
    done = subprocess.run(
        [TIDY, "-p", build, "--quiet", *(f"--extra-arg={a}" for a in EXTRA), unit], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode == 0:
        for old in mark.parent.glob(f"{mark.name.rsplit('.', 1)[0]}.*"):
            old.unlink()
        mark.touch()
        return unit, 0, ""
    return unit, done.returncode, done.stdout or done.stderr


def main():
    build = (ROOT / sys.argv[1]).resolve()
    (build / "tidy").mkdir(exist_ok=True)
    units = {}
    for entry in json.loads((build / "compile_commands.json").read_text()):
        unit = pathlib.Path(entry["file"]).resolve()
        if unit.is_relative_to(ROOT) and not unit.is_relative_to(ROOT / "build") and unit.suffix == ".cc":
            units[unit] = shlex.split(entry["command"])
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for job in concurrent.futures.as_completed(pool.submit(check, build, *item) for item in units.items()):
            unit, code, text = job.result()
            if code != 0:
                failed += 1
                print(f"--- {unit.relative_to(ROOT)}\n{text}", flush=True)
    print(f"clang-tidy: {len(units) - failed} of {len(units)} translation units are clean")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
