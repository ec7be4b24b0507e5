"""The step in ONNX Runtime's shared form: borrowers get a key and a value of length 0 and their source's present as past."""
from bench.attention.ort import version  # noqa: F401  version is part of the protocol
from bench.step.kvshare import graph, upstreams_borrow


def sides(row, data):
    return {"ort shared": lambda: graph(row, data, "com.microsoft", upstreams_borrow)}
