"""Attention-24 in ONNX Runtime."""
from bench.attention.ort import version  # noqa: F401  version is part of the protocol
from bench.small.graph import graph


def sides(row, data):
    return {"ort Attention": lambda: graph(row, data)}
