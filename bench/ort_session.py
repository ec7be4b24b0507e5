"""ONNX Runtime sessions whose inputs and outputs are bound memory: what kvshare's and ONNX Runtime's sides share."""
import os
import pathlib
import statistics

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from bench import common

ONNX_TYPE = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16,
             "int8": TensorProto.INT8}
OPSETS = (("", 24), ("com.microsoft", 1), ("kvshare", 1))


def library():
    return os.environ.get("KVSHARE_LIBRARY") or str(pathlib.Path(__file__).parents[1] / "build/lib/libkvshare_ort.so")


PROVIDER = "KvshareExecutionProvider"


def provider_devices():
    """kvshare's execution provider, registered at the first call; ONNX Runtime 1.24 or later."""
    if not any(d.ep_name == PROVIDER for d in onnxruntime.get_ep_devices()):
        onnxruntime.register_execution_provider_library("kvshare", os.path.abspath(library()))
    return [d for d in onnxruntime.get_ep_devices() if d.ep_name == PROVIDER][:1]


def model(nodes, inputs, outputs, initializers=()):
    """A ModelProto; inputs, outputs: (name, ONNX type, shape)."""
    graph = helper.make_graph(nodes, "bench", [helper.make_tensor_value_info(*i) for i in inputs],
                              [helper.make_tensor_value_info(*o) for o in outputs], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid(*o) for o in OPSETS], ir_version=11)


def open_model(proto, threads, kvshare=None, provider=False):
    """A session. kvshare: the session entries of kvshare's library, if it is to be there. provider: the graph runs in
    kvshare's execution provider."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # what fails is in the table
    if kvshare is not None:
        for entry in kvshare.items():
            options.add_session_config_entry(*entry)
        options.register_custom_ops_library(library())
    if provider:
        options.add_provider_for_devices(provider_devices(), {})
        return onnxruntime.InferenceSession(proto.SerializeToString(), options)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def session(nodes, inputs, outputs, threads, initializers=(), **where):
    """A session of model() in one of the ways of open_model()."""
    return open_model(model(nodes, inputs, outputs, initializers), threads, **where)


def on(array):
    """An OrtValue on the array's own memory; uint16 is bf16's bits."""
    if array.dtype == np.uint16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, TensorProto.BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def empty_run_seconds():
    """The median run of a graph that does nothing: what the binding costs every side here."""
    one = np.zeros(1, np.float32)
    bound = Bound(session([helper.make_node("Identity", ["x"], ["y"])], [("x", TensorProto.FLOAT, [1])],
                          [("y", TensorProto.FLOAT, [1])], 1), 1)
    bound.add({"x": one}, {"y": np.empty_like(one)})
    call, _ = bound.side([])
    return statistics.median(common.run_slot(lambda: call(0), 0.02).seconds)


class Bound:
    """A session and one IO binding a stretch of the cache."""

    def __init__(self, made, output_rows):
        self.session, self.output_rows = made, output_rows
        self.bindings, self.keep = [], []

    def add(self, inputs, outputs):
        """name -> array or OrtValue."""
        binding = self.session.io_binding()
        for bind, named in ((binding.bind_ortvalue_input, inputs), (binding.bind_ortvalue_output, outputs)):
            for name, array in named.items():
                tensor = on(array) if isinstance(array, np.ndarray) else array
                self.keep += [tensor, array]
                bind(name, tensor)
        self.bindings.append(binding)

    def side(self, results):
        """(call, output); results: the arrays that the outputs are bound to, one a layer."""
        def call(i):
            self.session.run_with_iobinding(self.bindings[i])

        def output():
            return np.concatenate([common.as_float(r).reshape(self.output_rows, -1) for r in results], axis=1)

        return call, output
