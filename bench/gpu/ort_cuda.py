"""ONNX Runtime's sessions on a card: what peers.py and capture.py share. `device` is cuda; tests say cpu."""
import ctypes
import json
import os
import pathlib

import numpy as np
import onnxruntime
from onnx import helper

from bench.gpu import NotRun

LIBRARY = pathlib.Path(__file__).parents[2] / "build/lib/libkvshare_ort_cuda.so"
OPSETS = (("", 21), ("com.microsoft", 1), ("kvshare", 1))


def library():
    """kvshare's ops for CUDA: KVSHARE_ORT_CUDA_LIBRARY, or what the build makes."""
    path = pathlib.Path(os.environ.get("KVSHARE_ORT_CUDA_LIBRARY") or LIBRARY)
    if not path.exists():
        raise NotRun(f"no {path.name}; where nvcc is: cmake --build build --target kvshare_ort_cuda")
    return str(path)


def served():
    """How many calls kvshare's kernels have served in this process."""
    stats = ctypes.CDLL(library()).kvshare_stats_json
    stats.restype, stats.argtypes = ctypes.c_size_t, [ctypes.c_char_p, ctypes.c_size_t]
    buffer = ctypes.create_string_buffer(stats(None, 0))
    stats(buffer, len(buffer))
    return json.loads(buffer.value)["ran"]


def need(device):
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    provider = f"{device.upper()}ExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise NotRun(f"onnxruntime {onnxruntime.__version__} has no {provider}; onnxruntime-gpu has")


def model(nodes, inputs, outputs, initializers=()):
    """inputs, outputs: (name, ONNX type, shape)."""
    graph = helper.make_graph(nodes, "gpu_check", [helper.make_tensor_value_info(*i) for i in inputs],
                              [helper.make_tensor_value_info(*o) for o in outputs], initializers)
    opsets = [helper.make_opsetid(*o) for o in OPSETS]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


class Bound:
    """A session whose inputs and outputs stay where they lie, so that it can be captured. All runs write the same memory."""

    def __init__(self, bytes_of_model, device, values, *, captured, kvshare):
        """values: name -> array, by input or output. kvshare: its ops are registered, those of com.microsoft replaced."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if kvshare:
            options.add_session_config_entry("kvshare.drop_in", "gqa")
            options.register_custom_ops_library(library())
        self.served_before = served() if kvshare else None
        provider = {"cuda": ("CUDAExecutionProvider", {"enable_cuda_graph": "1" if captured else "0"}),
                    "cpu": "CPUExecutionProvider"}[device]
        self.session = onnxruntime.InferenceSession(bytes_of_model, options, providers=[provider])
        used = self.session.get_providers()[0]
        if used != f"{device.upper()}ExecutionProvider":
            raise NotRun(f"onnxruntime fell back to {used}")
        self.values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0) for name, array in values.items()}
        self.binding = self.session.io_binding()

    def alias(self, output, value):
        """The output is the memory of that value."""
        self.binding.bind_ortvalue_output(output, self.values[value])

    def bind(self):
        for tensor in self.session.get_inputs():
            self.binding.bind_ortvalue_input(tensor.name, self.values[tensor.name])
        for tensor in self.session.get_outputs():
            if tensor.name in self.values:
                self.binding.bind_ortvalue_output(tensor.name, self.values[tensor.name])
        return self

    def put(self, name, array):
        self.values[name].update_inplace(np.ascontiguousarray(array))

    def run(self):
        self.session.run_with_iobinding(self.binding)

    def get(self, name):
        if self.served_before is not None and served() == self.served_before:
            raise NotRun("kvshare has served no call of the session")
        return self.values[name].numpy()
