"""Every message of docs/errors.md was raised by a test, from each file that has it: raised.py BUILD_DIR

BUILD_DIR counts lines (preset `coverage`), and its tests have run: `make coverage`. triggers.py is the quick check, of
what the tests say; this one watches.
"""
import json
import pathlib
import subprocess
import sys

import triggers
from triggers import ROOT, errors_doc


def lines_that_ran(build):
    """{source file: the lines of which every block ran}; "if (...) return Status::...;" on one line has two."""
    ran = {}
    for counters in sorted(build.glob("src/**/*.gcda")):
        done = subprocess.run(["gcov", "--json-format", "--stdout", counters], capture_output=True, text=True, check=True)
        for file in json.loads(done.stdout)["files"]:
            path = pathlib.Path(file["file"])
            if path.suffix == ".cc" and path.is_relative_to(ROOT):
                lines = {line["line_number"] for line in file["lines"] if line["count"] > 0 and not line["unexecuted_block"]}
                ran.setdefault(path.relative_to(ROOT).as_posix(), set()).update(lines)
    return ran


def main():
    ran = lines_that_ran(pathlib.Path(sys.argv[1]).resolve())
    places = {}
    for path, _, message in errors_doc.all_messages():
        places.setdefault((path, message.text), []).append(message.lines)
    silent = {(path, text): lines for (path, text), lines in places.items()
              if text not in triggers.UNTESTED and all(ran.get(path, set()).isdisjoint(at) for at in lines)}
    for (path, text), lines in silent.items():
        print(f"{path}:{lines[0].start}: no test raises: {text}")
    print(f"{len(places) - len(silent)} of {len(places)} messages were raised, or are known to be out of reach")
    return 1 if silent else 0


if __name__ == "__main__":
    sys.exit(main())
