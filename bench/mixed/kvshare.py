"""The mixed graph unchanged in kvshare's execution provider, and rewritten for kvshare's operators."""
import pathlib
import subprocess
import tempfile

import onnx

from bench import ort_session
from bench.attention.kvshare import version  # noqa: F401  version is part of the protocol
from bench.mixed import graph

TOOL = pathlib.Path(__file__).parents[2] / "build/bin/kvshare"


def rewritten(proto):
    """What `kvshare rewrite --to kvshare` makes of it."""
    with tempfile.TemporaryDirectory() as folder:
        before, after = (pathlib.Path(folder) / name for name in ("mixed.onnx", "rewritten.onnx"))
        onnx.save(proto, before)
        subprocess.run([TOOL, "rewrite", before, "-o", after, "--to", "kvshare"], check=True, capture_output=True)
        return onnx.load(after)


def sides(row, data):
    def run(proto, **where):
        return graph.side(ort_session.open_model(proto, row.threads, **where), row, data)

    return {"kvshare": lambda: run(rewritten(graph.model(row)), kvshare={}),
            "kvshare EP, unchanged": lambda: run(graph.model(row), provider=True)}
