"""Runs models for verify and doctor in the caller's onnxruntime. The C++ side calls `load`, then `run` of what it returned.

Tensors cross as (ONNX element type, shape, bytes), so that no type depends on numpy having it.
"""
from __future__ import annotations

import ctypes
import math
from typing import Any, Sequence

import onnxruntime  # before numpy, which comes with it: a user who lacks both reads this name
import numpy as np

from kvshare._errors import RefusedError
from kvshare._registration import devices, register

Tensor = tuple[int, list[int], bytes]  # ONNX element type, shape, row-major bytes

# ONNX element type: (its name in onnxruntime, bytes of an element, a numpy type of that size)
_TYPES = {
    1: ("tensor(float)", 4, np.float32), 2: ("tensor(uint8)", 1, np.uint8), 3: ("tensor(int8)", 1, np.int8),
    6: ("tensor(int32)", 4, np.int32), 7: ("tensor(int64)", 8, np.int64), 9: ("tensor(bool)", 1, np.bool_),
    10: ("tensor(float16)", 2, np.float16), 11: ("tensor(double)", 8, np.float64), 16: ("tensor(bfloat16)", 2, np.uint16),
    17: ("tensor(float8e4m3fn)", 1, np.uint8),
}
_BY_NAME = {name: code for code, (name, _, _) in _TYPES.items()}


def _value_info(info: Any) -> tuple[str, int, list[int], list[str]]:
    """Name, element type (0: none that is served), shape with -1 for symbols, the symbols' names."""
    shape = [extent if isinstance(extent, int) else -1 for extent in info.shape]
    symbols = [extent if isinstance(extent, str) else "" for extent in info.shape]
    return info.name, _BY_NAME.get(info.type, 0), shape, symbols


class Session:
    """One model."""

    def __init__(self, session: Any, ort: Any) -> None:
        self._session, self._ort = session, ort
        self._outputs = [output.name for output in session.get_outputs()]

    def describe(self) -> tuple[list[tuple[str, int, list[int], list[str]]], list[tuple[str, int, list[int], list[str]]]]:
        return ([_value_info(info) for info in self._session.get_inputs()],
                [_value_info(info) for info in self._session.get_outputs()])

    def run(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        wanted = {info.name for info in self._session.get_inputs()}
        values = {name: self._to_value(*tensor) for name, tensor in feeds.items() if name in wanted}
        results = self._session.run_with_ort_values(self._outputs, values)
        return {name: self._from_value(value) for name, value in zip(self._outputs, results, strict=True)}

    def _to_value(self, code: int, shape: Sequence[int], data: bytes) -> Any:
        array: Any = np.frombuffer(data, _TYPES[code][2]).reshape(shape)
        if code in (16, 17):
            return self._ort.OrtValue.ortvalue_from_numpy_with_onnx_type(array, code)
        return self._ort.OrtValue.ortvalue_from_numpy(array)

    @staticmethod
    def _from_value(value: Any) -> Tensor:
        code = value.element_type()
        shape = list(value.shape())
        count = math.prod(shape) * _TYPES[code][1]
        return code, shape, ctypes.string_at(value.data_ptr(), count) if count else b""


class Runtime:
    """The caller's onnxruntime."""

    def version(self) -> str:
        return str(onnxruntime.__version__)

    def where(self) -> str:
        return str(onnxruntime.__file__)

    def load(self, path: str, entries: Sequence[tuple[str, str]], library: str, provider: str, model: bytes) -> Session:
        """`model`: in place of the file; empty: the file."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what onnxruntime logs of a failure, the failure itself says
        for key, value in entries:  # before the registration, which reads them
            options.add_session_config_entry(key, value)
        if library:
            options.register_custom_ops_library(library)
        if provider:
            register()
            options.add_provider_for_devices(devices(onnxruntime), {})
        try:
            session = onnxruntime.InferenceSession(model or path, options,
                                                   providers=None if provider else ["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has no common class for its failures
            raise RefusedError(str(error)) from error
        return Session(session, onnxruntime)
