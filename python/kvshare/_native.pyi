"""The C++ library. Each function answers ("ok", JSON) or (kind of failure, message)."""

from typing import Any

def version() -> str: ...
def inspect(path: str) -> tuple[str, str]: ...
def rewrite(
    path: str, output: str, *, to: str, own: str, rope: str, min_ort: str, skip: list[str], prune_inputs: bool, dry_run: bool,
    progress: bool
) -> tuple[str, str]: ...
def genai(
    folder: str, *, output: str, options: dict[str, str], undo: bool, library: str, progress: bool
) -> tuple[str, str]: ...
def verify(
    path: str, runtime: Any, *, golden: str, against: str, tolerance: float | None, seed: int, prompt: int, steps: int,
    via: str, library: str, entries: list[tuple[str, str]], extents: dict[str, int],
    progress: bool
) -> tuple[str, str]: ...
def diagnose(
    path: str, runtime: Any, *, via: str, library: str, entries: list[tuple[str, str]], extents: dict[str, int]
) -> tuple[str, str]: ...
