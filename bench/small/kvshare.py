"""Attention-24 in kvshare's drop-in mode, and in its execution provider."""
from bench.attention.kvshare import version  # noqa: F401  version is part of the protocol
from bench.small.graph import graph


def sides(row, data):
    return {"kvshare": lambda: graph(row, data, kvshare={"kvshare.drop_in": "attention"}),
            "kvshare EP, unchanged": lambda: graph(row, data, provider=True)}
