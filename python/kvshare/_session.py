"""Sessions of the caller's onnxruntime that run attention in kvshare."""
from __future__ import annotations

import os
import warnings
import weakref
from typing import TYPE_CHECKING, Any, Mapping, Sequence

from kvshare import _tools
from kvshare._errors import InvalidInputError
from kvshare._libraries import EP_NAME, library_path
from kvshare._registration import devices, register

if TYPE_CHECKING:
    import onnxruntime


# Azure's calls services and stands in every CPU wheel's get_available_providers(); it runs no model on a device.
_WITHOUT_DEVICE = {"CPUExecutionProvider", "AzureExecutionProvider"}

# What SessionOptions got for kvshare's provider or operators here. onnxruntime neither tells nor takes it back.
_options_given: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()
_entries_given: weakref.WeakKeyDictionary[Any, dict[str, str]] = weakref.WeakKeyDictionary()


def _split(providers: Sequence[Any] | None, available: Sequence[str]) -> tuple[dict[str, str], list[Any]]:
    """The options that `providers` has for kvshare's provider, and its entries for other devices.

    What onnxruntime has not `available` would not run: many programs name CUDA's provider wherever they run.
    """
    ours: dict[str, str] = {}
    others = []
    for entry in providers or []:
        if not isinstance(entry, str) and len(entry) != 2:
            raise InvalidInputError(f"providers has {entry!r}; needs a name, or a name and its options")
        name, options = (entry, {}) if isinstance(entry, str) else entry
        if name == EP_NAME:
            ours = dict(options)
        elif name in available and name not in _WITHOUT_DEVICE:
            others.append(entry)
    return ours, others


def InferenceSession(  # noqa: N802  the name of the class that it returns
    path_or_bytes: str | bytes | os.PathLike[str],
    sess_options: onnxruntime.SessionOptions | None = None,
    providers: Sequence[Any] | None = None,
    provider_options: Sequence[Mapping[str, str]] | None = None,
    *,
    kvshare_options: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> onnxruntime.InferenceSession:
    """A plain onnxruntime.InferenceSession in which kvshare runs attention. The model may be unchanged.

    kvshare_options: options of kvshare's provider: mode = fuse | nodes | off,
        causal_alignment = auto | spec | lower_right.
    All other arguments are those of onnxruntime.InferenceSession. sess_options keep kvshare's provider, with its options.

    Where `providers` names another device's provider, such as CUDA's, and this onnxruntime has it, the session is theirs alone,
    and a warning says so.
    Raises RefusedError where onnxruntime is older than 1.24; kvshare.session_options() serves those. Raises InvalidInputError
    where sess_options have the provider with other options already.
    """
    import onnxruntime as ort

    register()
    if provider_options is not None and providers is not None:
        if len(provider_options) != len(providers):
            raise InvalidInputError(f"provider_options has {len(provider_options)} entries; needs {len(providers)}, one a provider")
        providers = [(entry, dict(options)) for entry, options in zip(providers, provider_options)]
    model = os.fspath(path_or_bytes) if isinstance(path_or_bytes, os.PathLike) else path_or_bytes
    ours, others = _split(providers, ort.get_available_providers())
    if others:
        names = ", ".join(entry if isinstance(entry, str) else entry[0] for entry in others)
        warnings.warn(f"kvshare stands aside: providers has {names}, and kvshare's provider is for the CPU", stacklevel=2)
        return ort.InferenceSession(model, sess_options, providers=[*others, "CPUExecutionProvider"], **kwargs)
    options = sess_options if sess_options is not None else ort.SessionOptions()
    # Options that made a session before have the provider already. A name in `providers` would not do: the domain of
    # rewritten models comes with the device, and a wrong option would only send the model to the CPU's provider.
    wanted = {**ours, **_tools.texts("kvshare_options", kvshare_options)}
    if not options.has_providers():
        options.add_provider_for_devices(devices(ort), wanted)
        _options_given[options] = wanted
    elif _options_given.get(options, wanted) != wanted:
        raise InvalidInputError(f"sess_options have {EP_NAME} with options {_options_given[options]} already, and {wanted} "
                                "are given; needs new SessionOptions")
    # Without it onnxruntime 1.24's Python answers a wrong option with a session on the CPU's provider.
    session = ort.InferenceSession(model, options, **{"enable_fallback": 0, **kwargs})
    if EP_NAME not in session.get_providers():
        warnings.warn(f"kvshare stands aside: sess_options have providers already, and {EP_NAME} is none of them", stacklevel=2)
    return session


def session_options(
    model: str | os.PathLike[str] | None = None,
    sess_options: onnxruntime.SessionOptions | None = None,
    *,
    causal_alignment: str = "lower_right",
) -> onnxruntime.SessionOptions:
    """SessionOptions for any onnxruntime from 1.19 on: kvshare's custom ops, and its ops in place of ONNX Runtime's.

    model: the path of the model that the session will load. Its attention layers tell which ops are
        replaced. Without a model, and for a rewritten model without other layers, nothing is replaced.
    sess_options: options to add to; new ones where it is None. They serve every model that needs the same operators.
    causal_alignment: where the causal triangle of an Attention node without past stands, "lower_right" or "spec".
        Exporters of shared layers mean the lower right; the ONNX specification says the top left.

    Raises InvalidInputError for a model that cannot be read, and where sess_options have the operators for another model
    already.
    """
    import onnxruntime as ort

    if not isinstance(causal_alignment, str):  # onnxruntime would end the process
        raise InvalidInputError(f"option 'causal_alignment' = {causal_alignment!r}: needs str")
    options = sess_options if sess_options is not None else ort.SessionOptions()
    entries: dict[str, str] = {}
    if model is not None:
        if drop_in := _tools.drop_in_for(model):
            entries["kvshare.drop_in"] = drop_in
        entries["kvshare.causal_alignment"] = causal_alignment
    if options in _entries_given:
        if _entries_given[options] != entries:
            raise InvalidInputError(f"sess_options have kvshare's operators with {_entries_given[options]} already, and {entries} "
                                    "are needed; needs new SessionOptions")
        return options
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    options.register_custom_ops_library(library_path("ort"))
    _entries_given[options] = entries
    return options
