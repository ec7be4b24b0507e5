"""The tests of a build, as ctest lists them, run one by one: the quickest first, so that a fault dies early."""
import functools
import json
import os
import re
import subprocess
import time
from dataclasses import dataclass


@dataclass(eq=False)
class Test:
    name: str
    command: list
    folder: str
    environment: dict
    skipped: str  # what its output says where it had nothing to run
    seconds: float = 0.0  # of the last time that it passed; 0 where it never did

    def passes(self, fault):
        """Whether it passes with that fault active; what hangs does not."""
        limit = 60 + 20 * self.seconds if self.seconds else 1800
        begin = time.monotonic()
        try:
            done = subprocess.run(self.command, cwd=self.folder, timeout=limit, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, env={**os.environ, **self.environment, "KVSHARE_FAULT": str(fault)})
            passed = done.returncode == 0 or bool(self.skipped and re.search(self.skipped, done.stdout.decode(errors="replace")))
        except subprocess.TimeoutExpired:
            passed = False
        if passed:
            self.seconds = time.monotonic() - begin
        return passed

    @functools.cached_property
    def is_sound(self):
        """Whether it passes without a fault."""
        return self.passes(0)


def list_tests(build, patterns):
    """Those tests of the build folder whose name one of the regular expressions finds."""
    done = subprocess.run(["ctest", "--show-only=json-v1"], cwd=build, check=True, capture_output=True, text=True)
    tests = []
    for entry in json.loads(done.stdout)["tests"]:
        if not any(re.search(pattern, entry["name"]) for pattern in patterns):
            continue
        properties = {p["name"]: p["value"] for p in entry["properties"]}
        if unknown := {"WILL_FAIL", "PASS_REGULAR_EXPRESSION", "FAIL_REGULAR_EXPRESSION", "SKIP_RETURN_CODE"} & properties.keys():
            raise ValueError(f"{entry['name']} has {', '.join(unknown)}, which is not read here")
        environment = dict(pair.split("=", 1) for pair in properties.get("ENVIRONMENT", []))
        tests.append(Test(entry["name"], entry["command"], properties.get("WORKING_DIRECTORY", build), environment,
                          "|".join(properties.get("SKIP_REGULAR_EXPRESSION", []))))
    return tests
