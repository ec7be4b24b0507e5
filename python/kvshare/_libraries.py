"""Where the libraries of this package lie, and what they are called."""
import os

from kvshare._errors import InvalidInputError, RefusedError

EP_NAME = "KvshareExecutionProvider"
_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib")
_FILES = {"ort": "libkvshare_ort.so", "dropin": "libkvshare_dropin.so"}


def library_path(kind: str = "ort") -> str:
    """The absolute path of a library of this package.

    kind: "ort" is the execution provider and the custom ops of domain kvshare. "dropin" is the same library, but it
        replaces ONNX Runtime's own ops as soon as it is registered as a custom-op library.

    Raises RefusedError for "cuda", which no wheel has yet, and InvalidInputError for any other kind.
    """
    if kind == "cuda":
        raise RefusedError("library 'cuda' is not in this package, only in the source (target kvshare_ort_cuda); have "
                           + ", ".join(_FILES))
    if kind not in _FILES:
        raise InvalidInputError(f"library '{kind}' is not known; have {', '.join(_FILES)}")
    return os.path.join(_FOLDER, _FILES[kind])


def get_library_path() -> str:
    """The path of the execution provider's library, by the name that other provider packages use."""
    return library_path()


def get_ep_name() -> str:
    """The name of the execution provider, by the name that other provider packages use."""
    return EP_NAME
