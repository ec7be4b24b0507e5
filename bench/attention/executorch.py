"""executorch's llama.custom_sdpa: caches [1, T, Hkv, D], position of the first query, no update. It knows no window: a
windowed row passes a mask, which replaces its causal triangle."""
import importlib.metadata
import importlib.util
import pathlib

import numpy as np
import torch

from bench.attention import mask
from bench.common import Skip


def version():
    folder = importlib.util.find_spec("executorch").submodule_search_locations[0]
    torch.ops.load_library(str(pathlib.Path(folder, "extension/llm/custom_ops/libcustom_ops_aot_lib.so")))
    return importlib.metadata.version("executorch")


def _side(row, data):
    query = torch.from_numpy(data.query)[None]
    caches = [[torch.from_numpy(np.ascontiguousarray(x.transpose(0, 2, 1, 3))) for x in pair] for pair in data.pairs()]
    seen = None
    if row.shape.window:
        seen = torch.from_numpy(np.where(mask(row), np.float32(0), np.float32(-np.inf)))
    result = []

    def call(i):
        result[:] = [torch.ops.llama.custom_sdpa(query, *caches[i], row.T - row.S, seen, 0.0, seen is None,
                                                 row.shape.D**-0.5)]

    return call, lambda: result[0].reshape(row.S, -1).numpy()


def sides(row, data):
    if row.dtype != "fp32":
        raise Skip("custom_sdpa is fp32")
    torch.set_num_threads(row.threads)
    return {"executorch": lambda: _side(row, data)}
