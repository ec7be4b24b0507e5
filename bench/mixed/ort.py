"""ONNX Runtime alone: the mixed graph, and upstream's shared form of the same layers."""
from bench import ort_session
from bench.attention.ort import version  # noqa: F401  version is part of the protocol
from bench.mixed import graph


def sides(row, data):
    def run(**form):
        return graph.side(ort_session.open_model(graph.model(row, **form), row.threads), row, data)

    return {"ort mixed": run, "ort shared": lambda: run(shared=True)}
