"""A hub repository's files, and which of them a download needs."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from swift.errors import HubError

# the same weights again in other frameworks' formats, or before conversion
_OTHER_FORMATS = (
    "*.h5",
    "*.msgpack",
    "*.ot",
    "*.onnx",
    "*.onnx_data",
    "*.tflite",
    "*.mlmodel",
    "*.pth",
    "*.pt",
    "*.mar",
)
_ELSEWHERE = ("original/*", "onnx/*", "openvino/*", "coreml/*", "gguf/*", "metal/*", "runs/*", "checkpoint-*/*")
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_NOT_WEIGHTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")


@dataclass(frozen=True)
class RemoteFile:
    """`path` is relative, with slashes. `size` in bytes and `sha256` (hex) are None where the hub doesn't state
    them."""

    path: str
    size: int | None = None
    sha256: str | None = None


def _any(path: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def _weights(files: Sequence[RemoteFile], suffix: str) -> list[RemoteFile]:
    return [f for f in files if f.path.endswith(suffix) and not _any(f.path.rsplit("/", 1)[-1], _NOT_WEIGHTS)]


def model_files(hub_id: str, files: Sequence[RemoteFile], *, weights: bool = True, sub: str = "") -> list[RemoteFile]:
    """What a model needs of its repository: one format of the weights (safetensors, else .bin, else one GGUF) and the
    rest.

    `sub` picks a sub-directory, or one GGUF model by a part of its name. HubError when there are several GGUF models to
    choose from, or nothing under `sub`.
    """
    if sub and any(f.path.startswith(sub + "/") for f in files):
        files = [f for f in files if f.path.startswith(sub + "/")]
        below, sub = sub + "/", ""
    else:
        below = ""
    files = [f for f in files if not f.path.rsplit("/", 1)[-1].startswith(".")]
    files = [f for f in files if not _any(f.path[len(below) :], _ELSEWHERE) and not _any(f.path, _OTHER_FORMATS)]
    drop = [f for suffix in (".safetensors", ".bin", ".gguf") for f in _weights(files, suffix)]
    if not weights:
        return [f for f in files if f not in drop]
    keep = _chosen_weights(hub_id, files, sub)
    return [f for f in files if f not in drop or f in keep]


def _chosen_weights(hub_id: str, files: Sequence[RemoteFile], sub: str) -> list[RemoteFile]:
    safetensors, bins, ggufs = (_weights(files, suffix) for suffix in (".safetensors", ".bin", ".gguf"))
    if sub:
        return _gguf(hub_id, ggufs, sub)
    if safetensors:
        converted = [f for f in safetensors if not f.path.rsplit("/", 1)[-1].startswith("consolidated")]
        return converted or safetensors
    return bins or (_gguf(hub_id, ggufs, "") if ggufs else [])


def _gguf(hub_id: str, ggufs: Sequence[RemoteFile], sub: str) -> list[RemoteFile]:
    def stem(file: RemoteFile) -> str:
        return file.path.split("-00")[0].removesuffix(".gguf")

    chosen = [f for f in ggufs if sub.lower().removesuffix(".gguf") in f.path.lower()]
    stems = sorted({stem(f) for f in chosen})
    exact = [s for s in stems if s.lower().endswith(sub.lower().removesuffix(".gguf"))] if sub else []
    if len(stems) > 1 and len(exact) == 1:
        stems = exact
    if len(stems) == 1:
        return [f for f in chosen if stem(f) == stems[0]]
    if not chosen:
        known = ", ".join(sorted({stem(f) for f in ggufs})[:8]) or "no sub-directory and no GGUF file of that name"
        raise HubError(f"nothing called {sub!r} in this repository", where=hub_id, fix=f"it has: {known}")
    fix = f"choose one: --model {hub_id}:{stems[0]} (others: {', '.join(stems[1:8])})"
    raise HubError(f"this repository holds {len(stems)} GGUF models", where=hub_id, fix=fix)


def data_files_of(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """What a data set needs of its repository: everything but hidden files."""
    return [f for f in files if not any(part.startswith(".") for part in f.path.split("/"))]
