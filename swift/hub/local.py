"""Where models and data sets lie on this machine: local collections, installed packages, the two hubs' caches."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

MODEL_DIR, DATASET_DIR = "SWIFT_MODEL_DIR", "SWIFT_DATASET_DIR"


def collection(option: str | os.PathLike[str] | None, variable: str, default: str) -> Path:
    """The directory of local models (or data sets): the option, else the environment variable, else ./models
    (./datasets)."""
    return Path(os.path.expanduser(option or os.environ.get(variable) or default))


def in_collection(root: Path, names: list[str]) -> Iterator[Path]:
    """Existing entries of a collection for these ids or names: root/org/name, root/name, root/org--name, by any
    case."""
    if not root.is_dir():
        return
    listing = {entry.lower(): root / entry for entry in os.listdir(root)}
    for name in names:
        nested = root / name
        if "/" in name and nested.exists():
            yield nested
        for flat in (name.rsplit("/", 1)[-1], name.replace("/", "--")):
            if flat.lower() in listing:
                yield listing[flat.lower()]


def package_directory(distribution: str) -> Path | None:
    """Where an installed Python package keeps its files, found without importing it; None when it isn't installed."""
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def offline() -> bool:
    """SWIFT_OFFLINE or HF_HUB_OFFLINE is set to something true: nothing may be fetched."""
    values = (os.environ.get(name, "").strip().lower() for name in ("SWIFT_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value in ("1", "true", "yes", "on") for value in values)


def modelscope_cache() -> Path:
    return Path(os.path.expanduser(os.environ.get("MODELSCOPE_CACHE") or "~/.cache/modelscope"))


def huggingface_cache() -> Path:
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return Path(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")))


def cached_snapshots(kind: str, hub_id: str, *, use_hf: bool, revision: str | None = None) -> Iterator[Path]:
    """Snapshot directories of a hub id in that hub's cache, the wanted revision only. `kind` is models or datasets.

    The directories may be incomplete: whoever uses one checks it.
    """
    folder = hub_id.replace("/", "--")
    if use_hf:
        yield from _huggingface_snapshots(huggingface_cache() / f"{kind}--{folder}", revision or "main")
        return
    root = modelscope_cache()
    snapshot = root / kind / folder / "snapshots" / (revision or "master")
    # older releases of the official client kept one unnamed revision, dots of the name written as ___
    owner, _, name = hub_id.partition("/")
    old = [base / kind / owner / name.replace(".", "___") for base in (root, root / "hub")]
    old += [base / kind / owner / name for base in (root, root / "hub")]
    yield from (path for path in [snapshot, *([] if revision else old)] if path.is_dir())


def _huggingface_snapshots(repo: Path, revision: str) -> Iterator[Path]:
    reference = repo / "refs" / revision
    commit = reference.read_text(encoding="ascii").strip() if reference.is_file() else revision
    snapshot = repo / "snapshots" / commit
    if snapshot.is_dir():
        yield snapshot
