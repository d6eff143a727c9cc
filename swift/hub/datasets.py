"""A data set's name -> files on this machine.

The order: a path that exists; the local collection of data sets; data shipped with this program; the hubs' caches;
the hub. Reads no rows: formats, columns and subsets inside a file are the data room's business.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from swift.catalog import DatasetEntry, find_dataset, packaged_file, suggest_datasets
from swift.catalog.registered import REGISTERED
from swift.errors import DataError
from swift.hub import local
from swift.hub.download import download, is_complete
from swift.hub.names import HUB_ID, did_you_mean, expand, looks_like_path, nearest_paths, split_prefix

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
# files that describe a data set instead of holding its rows
_ABOUT = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "configuration.json",
    "license.txt",
}
_SPLITS = ("train", "validation", "valid", "val", "dev", "test")


@dataclass(frozen=True)
class LocalData:
    """`files` hold the rows, in reading order (none where a plugin's function gives them). `source`: file, directory,
    package, plugin, modelscope or huggingface.

    `split` is the split that was chosen among several ("train"), or None when the data has no splits.
    """

    name: str
    files: tuple[Path, ...]
    source: str
    entry: DatasetEntry | None
    split: str | None = None


def resolve_dataset(
    name: str,
    *,
    dataset_dir: str | os.PathLike[str] | None = None,
    use_hf: bool = False,
    subsets: Sequence[str] = (),
    split: str | None = None,
    revision: str | None = None,
    hub_token: str | None = None,
) -> LocalData:
    """The files of data set `name`: a file, a directory, a catalog name or alias, or a hub id.

    A prefix HF:: or MS:: means an id on that hub, never a path.

    `dataset_dir` (else SWIFT_DATASET_DIR, else ./datasets) is the local collection. `subsets` are sub-directories or
    file stems within the data set. Without `split`, the train split is taken where the files are named by split, else
    all files. DataError for what is nowhere or holds no rows' file, HubError when the hub can't deliver.
    """
    wanted, use_hf = split_prefix(name, use_hf)
    own = REGISTERED.datasets.get(wanted.lower()) if wanted == name else None
    if own is not None and own.make is not None:
        return LocalData(name, (), "plugin", own.entry)
    if own is not None and own.path is not None:
        return _from_path(name, expand(own.path), own.entry, subsets, split)
    path = expand(wanted)
    if wanted == name and path.exists():
        # a directory may be a copy of a known repository; a file of that name is the user's own
        entry = find_dataset(path.absolute().name) if path.is_dir() else None
        return _from_path(name, path, entry, subsets, split)
    entry = find_dataset(wanted)
    if (looks_like_path(wanted) or path.suffix in SUFFIXES) and not (entry and entry.has_id(wanted)):
        raise _no_such_path(name, path)
    if entry and "/" in wanted and not entry.has_id(wanted):
        entry = None  # someone else's repository of a known name
    ids = list(dict.fromkeys(x for x in (wanted, *(_entry_names(entry) if entry else ())) if x))
    root = local.collection(dataset_dir, local.DATASET_DIR, "datasets")
    candidates = [stem + suffix for stem in ids for suffix in ("", *SUFFIXES)]
    for found in local.in_collection(root, candidates):
        return _from_path(name, found, entry, subsets, split)
    if entry and (shipped := packaged_file(entry)):
        return LocalData(name, (shipped,), "package", entry)
    hub_id = (entry.hub_id(use_hf) if entry else None) or (wanted if HUB_ID.match(wanted) else None)
    if hub_id is None:
        raise _unknown(wanted, entry, use_hf, root)
    source = "huggingface" if use_hf else "modelscope"
    for snapshot in local.cached_snapshots("datasets", hub_id, use_hf=use_hf, revision=revision):
        if is_complete(snapshot, use_hf) or local.offline():
            files, chosen = data_files(snapshot, subsets, split)
            return LocalData(name, files, source, entry, chosen)
    snapshot = download("datasets", hub_id, revision=revision, use_hf=use_hf, token=hub_token)
    files, chosen = data_files(snapshot, subsets, split)
    return LocalData(name, files, source, entry, chosen)


def _entry_names(entry: DatasetEntry) -> list[str | None]:
    return [entry.ms_id, entry.hf_id, *entry.aliases]


def _from_path(
    name: str, path: Path, entry: DatasetEntry | None, subsets: Sequence[str] = (), split: str | None = None
) -> LocalData:
    if path.is_file():
        return LocalData(name, (path,), "file", entry)
    files, chosen = data_files(path, subsets, split)
    return LocalData(name, files, "directory", entry, chosen)


def _is_data(path: Path) -> bool:
    suffix = Path(path.stem).suffix if path.suffix in COMPRESSED else path.suffix
    return suffix.lower() in SUFFIXES and path.name.lower() not in _ABOUT and not path.name.startswith(".")


def data_files(
    directory: Path, subsets: Sequence[str] = (), split: str | None = None
) -> tuple[tuple[Path, ...], str | None]:
    """(files with rows below `directory`, the split they are of). Hidden directories are left out."""
    found = sorted(
        p for p in directory.rglob("*") if p.is_file() and not _hidden(p.relative_to(directory)) and _is_data(p)
    )
    if not found:
        what = f"no data file in this directory ({', '.join(SUFFIXES)})"
        raise DataError(what, where=str(directory), fix="check --dataset, or convert the data to jsonl")
    named_subsets = [subset for subset in subsets if subset != "default"]
    if named_subsets:
        found = list(dict.fromkeys(p for subset in named_subsets for p in _of_subset(directory, found, subset)))
    texts = [p for p in found if p.suffix == ".txt"]
    if len(texts) < len(found):  # a README.txt beside real data
        found = [p for p in found if p.suffix != ".txt"]
    splits = {p: _split_of(p.relative_to(directory)) for p in found}
    named = [s for s in _SPLITS if s in splits.values()]
    if split is not None:
        chosen = [p for p, s in splits.items() if s == split]
        if not chosen:
            fix = did_you_mean(named) or "leave the split out"
            raise DataError(f"no files of split {split!r}", where=str(directory), fix=fix)
        return tuple(chosen), split
    if named:
        first = "train" if "train" in named else named[0]
        return tuple(p for p, s in splits.items() if s == first or (s is None and first != "train")), first
    return tuple(found), None


def _hidden(relative: Path) -> bool:
    return any(part.startswith((".", "_")) for part in relative.parts)


def _split_of(relative: Path) -> str | None:
    """The split that a file's name or directory states: train.jsonl, data/train-00000-of-00002.parquet, test/x.json."""
    for part in (relative.name, *relative.parts[:-1]):
        words = part.lower().replace("_", "-").replace(".", "-").split("-")
        for split in _SPLITS:
            if split in words[:1] or (len(words) > 1 and split in words):
                return split
    return None


def _of_subset(directory: Path, files: list[Path], subset: str) -> list[Path]:
    key = subset.lower()
    chosen = [
        p
        for p in files
        if key in (part.lower() for part in p.relative_to(directory).parts[:-1]) or p.name.lower().split(".")[0] == key
    ]
    if not chosen:
        chosen = [
            p for p in files if key in p.name.lower().replace("_", "-").split("-") or p.stem.lower().startswith(key)
        ]
    if not chosen:
        known = {p.relative_to(directory).parts[0] for p in files}
        fix = f"it has: {', '.join(sorted(known)[:10])}"
        raise DataError(f"no files of subset {subset!r}", where=str(directory), fix=fix)
    return chosen


def _no_such_path(name: str, path: Path) -> DataError:
    fix = (
        did_you_mean(nearest_paths(path))
        or "check --dataset: a file, a directory, or a name from `swift list-datasets`"
    )
    return DataError("no such file or directory", where=f"--dataset {name}", fix=fix)


def _unknown(name: str, entry: DatasetEntry | None, use_hf: bool, root: Path) -> DataError:
    where = f"--dataset {name}"
    if entry is not None:
        other = f"use {'HF' if entry.hf_id else 'MS'}::{entry.id}"
        return DataError(
            f"this data set is not on {'Hugging Face' if use_hf else 'ModelScope'}", where=where, fix=other
        )
    near = suggest_datasets(name) + [p for p in nearest_paths(root / name) if root.is_dir()]
    fix = (
        did_you_mean(near[:4])
        or "pass a file, a name from `swift list-datasets`, or a hub id like AI-ModelScope/alpaca-cleaned"
    )
    what = f"no such file here or in {root}, and no data set of that name in the catalog"
    return DataError(what, where=where, fix=fix)
