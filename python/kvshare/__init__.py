"""KV-shared attention for released ONNX Runtime.

    import kvshare
    session = kvshare.InferenceSession("model.onnx")    # an onnxruntime.InferenceSession; the model may be unchanged

inspect, rewrite and genai work on files; verify and doctor run a model in the caller's onnxruntime.
"""
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvshare._errors import InternalError, InvalidInputError, KvshareError, RefusedError
    from kvshare._libraries import get_ep_name, get_library_path, library_path
    from kvshare._results import (AttentionLayer, CacheRounding, CodesCheck, CudaPlacement, Diagnosis, EqualCache, GenaiReport,
                                  Inspection, NodeCount, RewriteReport, RuleOutcome, RuleSaving, StepDifference, Verification)
    from kvshare._registration import register
    from kvshare._session import InferenceSession, session_options
    from kvshare._tools import doctor, genai, inspect, rewrite, verify

    __version__: str

# Where each name lies. Modules are imported when a name of theirs is first asked for: kvshare.decoder needs no more than
# onnxruntime, and is used from a source tree as well.
_HOMES = {
    "_errors": ["InternalError", "InvalidInputError", "KvshareError", "RefusedError"],
    "_libraries": ["get_ep_name", "get_library_path", "library_path"],
    "_results": ["AttentionLayer", "CacheRounding", "CodesCheck", "CudaPlacement", "Diagnosis", "EqualCache", "GenaiReport",
                 "Inspection", "NodeCount", "RewriteReport", "RuleOutcome", "RuleSaving", "StepDifference", "Verification"],
    "_registration": ["register"],
    "_session": ["InferenceSession", "session_options"],
    "_tools": ["doctor", "genai", "inspect", "rewrite", "verify"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = [
    "AttentionLayer", "CacheRounding", "CodesCheck", "CudaPlacement", "Diagnosis", "EqualCache", "GenaiReport",
    "InferenceSession", "Inspection", "InternalError", "InvalidInputError", "KvshareError", "NodeCount", "RefusedError",
    "RewriteReport", "RuleOutcome", "RuleSaving", "StepDifference", "Verification", "doctor",
    "genai", "get_ep_name", "get_library_path", "inspect", "library_path", "register",
    "rewrite", "session_options", "verify",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("kvshare._native").version()
    if name not in _HOME_OF:
        raise AttributeError(f"module 'kvshare' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"kvshare.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
