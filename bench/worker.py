"""python -m bench.worker TASK COMPETITOR: one competitor in a process of its own. A line of JSON in, a line out."""
import dataclasses
import importlib
import json
import os
import sys

from bench.common import Field, Row


def main():
    task, competitor = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a peer prints goes to the log
    try:
        module = importlib.import_module(f"bench.{task}.{competitor}")
        print(json.dumps({"version": module.version()}), file=answers)
    except ModuleNotFoundError as missing:
        print(json.dumps({"skipped": f"not installed ({missing.name})"}), file=answers)
        return
    except Exception as failure:  # an import of a peer may fail in its own way
        print(json.dumps({"skipped": "failed: " + " ".join(str(failure).split())[:200]}), file=answers)
        return
    field = Field(importlib.import_module(f"bench.{task}"), [module])
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "open":
            field.close()
            answer = field.open(Row.from_json(request["row"]), request["limit"])
        else:
            answer = dataclasses.asdict(field.slot(request["side"], request["seconds"]))
        print(json.dumps(answer), file=answers)


main()
