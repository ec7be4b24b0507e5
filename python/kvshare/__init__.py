"""KV-shared attention for released ONNX Runtime.

    import kvshare
    session = kvshare.InferenceSession("model.onnx")    # an onnxruntime.InferenceSession; the model may be unchanged

inspect and rewrite work on files; verify and doctor run a model in the caller's onnxruntime.
"""
from kvshare._errors import InternalError, InvalidInputError, KvshareError, RefusedError
from kvshare._libraries import get_ep_name, get_library_path, library_path
from kvshare._native import version as _version
from kvshare._results import (AttentionLayer, Diagnosis, Inspection, NodeCount, RewriteReport, RuleOutcome, StepDifference,
                              Verification)
from kvshare._session import InferenceSession, register, session_options
from kvshare._tools import doctor, inspect, rewrite, verify

__version__: str = _version()
__all__ = [
    "AttentionLayer", "Diagnosis", "InferenceSession", "Inspection", "InternalError", "InvalidInputError", "KvshareError",
    "NodeCount", "RefusedError", "RewriteReport", "RuleOutcome", "StepDifference", "Verification", "doctor", "get_ep_name",
    "get_library_path", "inspect", "library_path", "register", "rewrite", "session_options", "verify",
]
