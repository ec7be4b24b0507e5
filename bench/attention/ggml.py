"""ggml's flash_attn_ext by ctypes. The query is fp32, the cache has the row's type; the mask's -inf rows are skipped."""
import ctypes
import importlib.metadata
import importlib.util
import pathlib

import numpy as np

from bench.attention import mask

POINTER, INT64, SIZE, FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t, ctypes.c_float
TYPE = {"fp32": 0, "fp16": 1}
PRECISE = 10  # GGML_PREC_F32


class InitParams(ctypes.Structure):
    _fields_ = [("mem_size", SIZE), ("mem_buffer", POINTER), ("no_alloc", ctypes.c_bool)]


class Plan(ctypes.Structure):
    """ggml_cplan's first fields; the rest is room for later releases."""
    _fields_ = [("work_size", SIZE), ("work_data", POINTER), ("n_threads", ctypes.c_int), ("rest", ctypes.c_char * 128)]


class PoolParams(ctypes.Structure):
    """ggml_threadpool_params, whose fields only ggml looks at."""
    _fields_ = [("bytes", ctypes.c_char * 1024)]


def _libraries():
    folder = pathlib.Path(importlib.util.find_spec("libggml").origin).parent / "lib64"
    return [ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL) for name in ("libggml-base.so", "libggml-cpu.so")]


BASE, CPU = _libraries()


def _function(library, name, result, *arguments):
    found = getattr(library, name)
    found.restype, found.argtypes = result, arguments
    return found


init = _function(BASE, "ggml_init", POINTER, InitParams)
new_tensor = _function(BASE, "ggml_new_tensor_4d", POINTER, POINTER, ctypes.c_int, INT64, INT64, INT64, INT64)
view = _function(BASE, "ggml_view_4d", POINTER, POINTER, POINTER, INT64, INT64, INT64, INT64, SIZE, SIZE, SIZE, SIZE)
data_of = _function(BASE, "ggml_get_data", POINTER, POINTER)
flash = _function(BASE, "ggml_flash_attn_ext", POINTER, POINTER, POINTER, POINTER, POINTER, POINTER, FLOAT, FLOAT, FLOAT)
precision = _function(BASE, "ggml_flash_attn_ext_set_prec", None, POINTER, ctypes.c_int)
new_graph = _function(BASE, "ggml_new_graph_custom", POINTER, POINTER, SIZE, ctypes.c_bool)
expand = _function(BASE, "ggml_build_forward_expand", None, POINTER, POINTER)
free = _function(BASE, "ggml_free", None, POINTER)
pool_params = _function(BASE, "ggml_threadpool_params_default", PoolParams, ctypes.c_int)
new_pool = _function(CPU, "ggml_threadpool_new", POINTER, ctypes.POINTER(PoolParams))
plan = _function(CPU, "ggml_graph_plan", Plan, POINTER, ctypes.c_int, POINTER)
compute = _function(CPU, "ggml_graph_compute", ctypes.c_int, POINTER, ctypes.POINTER(Plan))
_function(CPU, "ggml_cpu_init", None)()
POOLS = {}  # threads -> ggml_threadpool, kept while the process lives


def version():
    return importlib.metadata.version("libggml-python")


class Context:
    """A ggml context of the size that one row needs, and a graph a stretch."""

    def __init__(self, row, data):
        shape, item = row.shape, row.item_bytes
        output_bytes = 4 * row.S * shape.Hq * shape.D
        self.row = row
        self.handle = init(InitParams(2 * data.keys.nbytes + 2 * row.S * row.T + output_bytes * (data.count + 1)
                                      + data.count * (64 << 10) + (16 << 20), None, False))
        query = self._filled(0, np.ascontiguousarray(data.query.astype(np.float32).transpose(1, 0, 2)),
                             (shape.D, row.S, shape.Hq, 1))
        seen = self._filled(1, np.where(mask(row), 0, -np.inf).astype(np.float16), (row.T, row.S, 1, 1))
        pools = [self._filled(TYPE[row.dtype], flat, (flat.size, 1, 1, 1)) for flat in (data.keys, data.values)]
        self.results, self.plans, self.graphs, self.work = [], [], [], []
        if row.threads not in POOLS:
            POOLS[row.threads] = new_pool(ctypes.byref(pool_params(row.threads)))
        for i in range(data.count):
            key, value = (view(self.handle, pool, shape.D, row.T, shape.Hkv, 1, shape.D * item, row.T * shape.D * item,
                               shape.Hkv * row.T * shape.D * item, i * data.step * item) for pool in pools)
            result = flash(self.handle, query, key, value, seen, shape.D**-0.5, 0.0, 0.0)
            precision(result, PRECISE)
            graph = new_graph(self.handle, 16, False)
            expand(graph, result)
            planned = plan(graph, row.threads, POOLS[row.threads])
            if not self.work:  # all graphs are of one size
                self.work.append((ctypes.c_char * (planned.work_size + 64))())
            planned.work_data = ctypes.addressof(self.work[0])
            self.results.append(result)
            self.graphs.append(graph)
            self.plans.append(planned)
        self.last = 0

    def _filled(self, kind, array, extents):
        tensor = new_tensor(self.handle, kind, *extents)
        ctypes.memmove(data_of(tensor), array.ctypes.data, array.nbytes)
        return tensor

    def call(self, i):
        self.last = i
        compute(self.graphs[i], ctypes.byref(self.plans[i]))

    def output(self):
        count = self.row.S * self.row.shape.Hq * self.row.shape.D
        memory = (ctypes.c_float * count).from_address(data_of(self.results[self.last]))
        return np.frombuffer(memory, np.float32).reshape(self.row.S, -1).copy()

    def __del__(self):
        free(self.handle)


def _side(row, data):
    context = Context(row, data)
    return context.call, context.output


def sides(row, data):
    return {"ggml": lambda: _side(row, data)}
