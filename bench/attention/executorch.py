"""executorch's llama.custom_sdpa: caches [1, T, Hkv, D], position of the first query, no update. It knows no window: a
windowed row passes a mask, which replaces its causal triangle. Its pool has a thread for every CPU, whatever torch is
told."""
import importlib.metadata
import importlib.util
import os
import pathlib

os.environ["OMP_NUM_THREADS"] = "1"  # else torch's pool works beside executorch's; read when torch is loaded
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
    if row.threads != os.cpu_count():
        raise Skip(f"its pool always has {os.cpu_count()} threads")
    return {"executorch": lambda: _side(row, data)}
