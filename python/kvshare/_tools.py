"""inspect, rewrite, genai, verify and doctor: thin calls of the C++ library that take paths or onnx.ModelProto."""
from __future__ import annotations

import contextlib
import json
import operator
import os
import pathlib
import tempfile
from typing import TYPE_CHECKING, Any, Iterator, Mapping, Sequence, TypeAlias, Union

from kvshare import _errors, _native
from kvshare._errors import InvalidInputError
from kvshare._libraries import library_path
from kvshare._results import Diagnosis, GenaiReport, Inspection, RewriteReport, Verification

if TYPE_CHECKING:
    import numpy as np
    import onnx

Model: TypeAlias = Union[str, "os.PathLike[str]", "onnx.ModelProto"]


def _checked(answer: tuple[str, str]) -> str:
    """What a native function answers; its failure as this package's exception."""
    code, text = answer
    if code != "ok":
        raise _errors.class_for(code)(text)
    return text


# The types of options that are passed on as they are.
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("cuda", "to", "own", "rope", "min_ort", "weights", "via"), (str,)),
    **dict.fromkeys(("scale_per_tensor", "fast_prefill", "prune_inputs", "link_weights", "dry_run", "progress"), (bool,)),
    **dict.fromkeys(("undo", "hard"), (bool,)),
    "kv_cache": (str, type(None)), "tolerance": (float, int, type(None))}


def _call(function: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
    for name, value in options.items():
        kinds = _KINDS.get(name, (object,))
        if not isinstance(value, kinds):
            raise InvalidInputError(f"option '{name}' = {value!r}: needs {' or '.join(kind.__name__ for kind in kinds)}")
    fields: dict[str, Any] = json.loads(_checked(function(*arguments, **options)))
    return fields


def _path(name: str, value: Any) -> str:
    """A path as the library takes it."""
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(path, str):
        raise InvalidInputError(f"{name} is a {type(path).__name__}; needs a path")
    if "\0" in path or any("\ud800" <= letter <= "\udfff" for letter in path):
        raise InvalidInputError(f"{name} = {path!r} is no text in UTF-8; needs a path that is, without zeros")
    return path


def _count(name: str, value: Any, lowest: int = -2**63, highest: int = 2**63 - 1) -> int:
    """A number as the library takes it, which judges what it means."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not lowest <= operator.index(value) <= highest:
        raise InvalidInputError(f"option '{name}' = {value!r}: needs an integer from {lowest} to {highest}")
    return operator.index(value)


def texts(name: str, values: Mapping[str, str] | None) -> dict[str, str]:
    """Texts by name."""
    for key, value in (values or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise InvalidInputError(f"option '{name}' has {value!r} for {key!r}; needs text for text")
    return dict(values or {})


@contextlib.contextmanager
def as_file(model: Any) -> Iterator[str]:
    """The path of a model; a ModelProto becomes a file for the time of the call."""
    if isinstance(model, (str, os.PathLike)):
        yield _path("model", model)
        return
    if not hasattr(model, "SerializeToString"):
        raise InvalidInputError(f"model is a {type(model).__name__}; needs a path or an onnx.ModelProto")
    if any(tensor.data_location == 1 for tensor in model.graph.initializer):
        raise InvalidInputError("model has weights in files beside it; needs the model's path, or "
                                "onnx.load_external_data_for_model")
    try:
        data = model.SerializeToString()
    except Exception as error:  # protobuf's class for it changes
        raise InvalidInputError(f"model does not become bytes ({error}); needs the model's path") from error
    with tempfile.TemporaryDirectory(prefix="kvshare") as folder:
        path = pathlib.Path(folder) / "model.onnx"
        path.write_bytes(data)
        yield str(path)


def inspect(model: Model, *, cuda: str = "") -> Inspection:
    """What attention a model holds: its layers, who owns K and V and who borrows them, masks, copies, known traps.

    model: a path, whose external weights are checked but not read, or an onnx.ModelProto.
    cuda: a release of ONNX Runtime, "1.29": also where its CUDA provider would run the nodes, and what it would copy.

    Raises InvalidInputError for a model that is missing or malformed, or whose weights leave its folder, and for a release
    whose CUDA kernels are not known.
    """
    with as_file(model) as path:
        return Inspection.from_json(_call(_native.inspect, path, cuda=cuda))


def rewrite(
    model: Model,
    output: str | os.PathLike[str] | None = None,
    *,
    to: str = "kvshare",
    own: str = "convert",
    rope: str | None = None,
    min_ort: str = "1.31",
    skip: Sequence[str] = (),
    window_caches: int | None = None,
    kv_cache: str | None = None,
    calibrate: str | os.PathLike[str] | Mapping[str, np.ndarray] | None = None,
    scale_per_tensor: bool = False,
    fast_prefill: bool = False,
    prune_inputs: bool = False,
    weights: str = "",
    link_weights: bool = False,
    dry_run: bool = False,
    progress: bool = True,
) -> RewriteReport:
    """Turns shared attention layers into a form that reads the source layer's cache in place.

    model: a path or an onnx.ModelProto.
    output: where to write. It is needed for a path, unless dry_run is set. A ModelProto's result is in the report.
    to: "kvshare" (kvshare's GroupQueryAttention), "kvshare-attention" (its Attention, with the key mask in place of mask
        nodes), "ort" (the shared form of ONNX Runtime itself) or "onnx25" (Attention of opset 25 with its window attributes:
        operators of ai.onnx alone).
    own: "convert" or "keep" own layers.
    rope: "fold" the rotation of queries into the op, or "keep" it. The default follows `to`.
    min_ort: with to="ort", the oldest ONNX Runtime that must load the result.
    skip: names of rules not to run.
    window_caches: with to="kvshare", how many rows more than the window's the caches of layers with a window hold. None: a row
        for each token.
    kv_cache: with to="kvshare", what caches of own layers hold: "int8", "int4", "fp8", "bf16" or "fp16". None: what they did.
    calibrate: with kv_cache, a prompt by the names of the model's inputs, input_ids [B, S] or inputs_embeds at least: arrays, or
        the path of an .npz file. The model runs on it in the caller's onnxruntime, and the largest key and value of each channel
        make the scales. int8 and int4 need it.
    scale_per_tensor: with kv_cache, one scale for each cache in place of one for each channel.
    fast_prefill: whether layers behind the last that makes keys compute each sequence's last token alone. The logits are
        [B, 1, V] then.
    prune_inputs: whether graph inputs that nothing reads any more are dropped.
    weights: the name of the written model's weights, for a folder that holds another model's. "": they keep theirs.
    link_weights: whether weights in another folder are hard-linked and not copied, which shares them with the original for good.
    dry_run: whether only the report is wanted.
    progress: whether a bar on standard error shows how far copies of weights are. There is none without a terminal.

    Raises InvalidInputError as inspect does, RefusedError for options that the target cannot serve, and InternalError where
    writing fails. The output is complete or absent.
    """
    is_path = isinstance(model, (str, os.PathLike))
    if is_path and output is None and not dry_run:
        raise InvalidInputError("rewrite of a path has no output; needs output, or dry_run=True")
    if kv_cache is None and (calibrate is not None or scale_per_tensor):
        raise InvalidInputError("rewrite has calibrate or scale_per_tensor without kv_cache; needs kv_cache")
    if isinstance(skip, str) or not all(isinstance(name, str) for name in skip):
        raise InvalidInputError(f"option 'skip' = {skip!r}: needs a list of names")
    options: dict[str, Any] = {
        "to": to, "own": own, "rope": rope or "", "min_ort": min_ort, "skip": list(skip),
        "window_caches": None if window_caches is None else _count("window_caches", window_caches), "kv_cache": kv_cache,
        "scale_per_tensor": scale_per_tensor, "fast_prefill": fast_prefill, "prune_inputs": prune_inputs, "weights": weights,
        "link_weights": link_weights, "dry_run": dry_run, "progress": progress}
    with as_file(model) as path, tempfile.TemporaryDirectory(prefix="kvshare") as folder:
        options["largest"] = {} if calibrate is None else _largest_of_channels(path, calibrate, folder)
        target = _path("output", output) if output is not None else os.path.join(folder, "rewritten.onnx")
        fields = _call(_native.rewrite, path, target, **options)
        if is_path or dry_run:
            return RewriteReport.from_json(fields)
        import onnx

        return RewriteReport.from_json(fields, onnx.load(target))


def _largest_of_channels(model: str, prompt: Any, folder: str) -> dict[str, list[float]]:
    """The largest magnitude of each channel of each present, from one run on a prompt."""
    from kvshare._runtime import Runtime

    if isinstance(prompt, (str, os.PathLike)):
        inputs = _path("calibrate", prompt)
    elif not isinstance(prompt, Mapping):
        raise InvalidInputError(f"calibrate is a {type(prompt).__name__}; needs arrays by the names of inputs, or a path")
    else:
        import numpy as np

        inputs = os.path.join(folder, "prompt.npz")
        np.savez(inputs, **prompt)
    answer, largest = _native.calibrate(model, Runtime(), inputs=inputs, library=library_path())
    _checked(answer)
    return largest


def genai(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    options: Mapping[str, str] | None = None,
    undo: bool = False,
    progress: bool = True,
) -> GenaiReport:
    """Lets an onnxruntime-genai folder run on kvshare's execution provider, by its genai_config.json.

    folder: a folder with genai_config.json. The file is edited in place, and a backup of it lies beside it afterwards.
    output: a folder that is absent or empty: it gets a copy of `folder`, and only the copy is edited.
    options: options of the provider: mode = fuse | nodes | off, causal_alignment = auto | spec | lower_right.
    undo: put the backup back instead.
    progress: as rewrite has it.

    Where the decoder has window-sized caches (rewrite's window_caches), the file also says how large they are, and that prompts
    come in chunks that fit.

    onnxruntime-genai knows no provider by itself. A program calls
    onnxruntime_genai.register_execution_provider_library("kvshare", kvshare.library_path()) before it loads the model.

    Raises InvalidInputError for an option that the provider does not take, a folder without a readable genai_config.json or
    decoder, an output that holds files, or an undo without a backup. Raises RefusedError where the folder is configured for
    another device's provider, or where onnxruntime-genai has no place for the caches. Nothing is written then.
    """
    if undo and (output is not None or options):
        raise InvalidInputError("genai has undo beside output or options; needs undo alone")
    return GenaiReport.from_json(_call(
        _native.genai, _path("folder", folder), output="" if output is None else _path("output", output),
        options=texts("options", options), undo=undo, library=library_path(), progress=progress))


def drop_in_for(model: str | os.PathLike[str]) -> str:
    """The value of the session entry kvshare.drop_in that suits a model: "1" or "attention"; "": no op is to be replaced."""
    return _checked(_native.drop_in_for(_path("model", model)))


def verify(
    model: Model,
    *,
    golden: str | os.PathLike[str] | None = None,
    against: Model | None = None,
    tolerance: float | None = None,
    seed: int = 1,
    prompt: int = 24,
    steps: int = 8,
    hard: bool = False,
    via: str = "",
    entries: Mapping[str, str] | None = None,
    extents: Mapping[str, int] | None = None,
    progress: bool = True,
) -> Verification:
    """Runs a decoder in the caller's onnxruntime and compares its logits: of a prefill, then of each decode step.

    golden: a folder with golden.npz, which has tokens and the logits that they should give; or
    against: another model, which gets the same random tokens.
    tolerance: the largest difference that counts as equal. None: 1e-4 for fp32, a share of the row's largest logit for
        16-bit models and for caches of codes, and codes judged beside the same codes in fp32.
    seed, prompt, steps: of the random tokens: their seed, tokens of the prompt, decode steps of one token each.
    hard: with against, harder prompts too: extreme tokens, a prompt of more than two windows, chunks around the window's size,
        and two sequences of other lengths, as far as the inputs allow them. What was not compared is in notes.
    via: how kvshare comes in: "ep" (the execution provider; onnxruntime 1.24 or later), "ops" (its own operators), "dropin" (in
        place of ONNX Runtime's); "": as the model needs.
    entries: session entries, set before the library is registered.
    extents: extents that neither the signature nor the graph tells, by name ("kv_cache_dim") or input and axis ("past.0.1").
    progress: whether a bar on standard error shows how many runs are done. There is none without a terminal.

    Raises InvalidInputError for a model or golden file that is missing or malformed, RefusedError for a model that is no
    decoder or that onnxruntime does not take.
    """
    if (golden is None) == (against is None):
        raise InvalidInputError("verify needs one of golden and against")
    from kvshare._runtime import Runtime

    with as_file(model) as path, contextlib.ExitStack() as stack:
        other = "" if against is None else stack.enter_context(as_file(against))
        return Verification.from_json(_call(
            _native.verify, path, Runtime(), golden="" if golden is None else _path("golden", golden), against=other,
            tolerance=tolerance, seed=_count("seed", seed, 0, 2**64 - 1), prompt=_count("prompt", prompt),
            steps=_count("steps", steps), hard=hard, via=via, library=library_path(), progress=progress,
            **_session_words(entries, extents)))


def doctor(
    model: Model,
    *,
    via: str = "",
    entries: Mapping[str, str] | None = None,
    extents: Mapping[str, int] | None = None,
) -> Diagnosis:
    """Runs a model on random inputs in the caller's onnxruntime and tells which nodes kvshare really served.

    via: as verify has it, but "" is what suits the model and this onnxruntime: the execution provider from 1.24 on, before it
        the operators of a rewritten model, or those that replace ONNX Runtime's.
    entries, extents: as verify has them. Raises as verify does.
    """
    from kvshare._runtime import Runtime

    with as_file(model) as path:
        return Diagnosis.from_json(_call(_native.diagnose, path, Runtime(), via=via, library=library_path(),
                                         **_session_words(entries, extents)))


def _session_words(entries: Mapping[str, str] | None, extents: Mapping[str, int] | None) -> dict[str, Any]:
    """What verify and doctor say of a session and its inputs."""
    return {"entries": list(texts("entries", entries).items()),
            "extents": {name: _count("extents", extent, 0, 2**40) for name, extent in (extents or {}).items()}}
