"""The execution provider's library in the caller's onnxruntime."""
from __future__ import annotations

import threading
from typing import Any

from kvshare._errors import RefusedError
from kvshare._libraries import EP_NAME, library_path

FIRST_WITH_EP = (1, 24)
_REGISTRATION = "kvshare"
_lock = threading.Lock()


def version_of(ort: Any) -> tuple[int, ...]:
    """(1, 24) of onnxruntime 1.24.4."""
    return tuple(int(part) for part in ort.__version__.split(".")[:2])


def devices(ort: Any) -> list[Any]:
    """kvshare's device, once, however often the library was registered."""
    return [device for device in ort.get_ep_devices() if device.ep_name == EP_NAME][:1]


def register() -> None:
    """Registers kvshare's execution provider with the caller's onnxruntime. A second call does nothing.

    Raises RefusedError where onnxruntime is older than 1.24.
    """
    import onnxruntime as ort

    if version_of(ort) < FIRST_WITH_EP:
        raise RefusedError(f"onnxruntime {ort.__version__} has no kernel registry for plugin execution providers; needs 1.24 or "
                           "later, or kvshare.session_options() with this version")
    with _lock:
        if not devices(ort):
            ort.register_execution_provider_library(_REGISTRATION, library_path())
