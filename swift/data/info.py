"""dataset_info.json files: what LLaMA-Factory's and ms-swift's users have written about their data sets.

Promises: both forms become `InfoEntry` values, looked up by name or hub id; files are found beside the info file.
Knows nothing of rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.data.formats import ColumnMap
from swift.errors import DataError

INFO_FILE = "dataset_info.json"
_ROLE_TAGS = {
    "user_tag": "user",
    "assistant_tag": "assistant",
    "observation_tag": "tool",
    "function_tag": "function_call",
    "system_tag": "system",
}
_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "kto_tag": "label"}


@dataclass(frozen=True)
class InfoEntry:
    """`path`: a file or directory here; else the ids on the hubs. `subset_columns` {subset: its column map}."""

    names: tuple[str, ...]
    columns: ColumnMap
    path: Path | None = None
    ms_id: str | None = None
    hf_id: str | None = None
    subset: str | None = None
    split: str | None = None
    rows: int | None = None
    tags: tuple[str, ...] = ()
    subset_columns: Mapping[str, ColumnMap] | None = None


def read_infos(files: Iterable[str | Path], dataset_dir: str | Path | None = None) -> dict[str, InfoEntry]:
    """Entries by lower-case name and hub id, from the files named and from `dataset_dir`'s own dataset_info.json."""
    paths = [Path(file) / INFO_FILE if Path(file).is_dir() else Path(file) for file in files]
    if dataset_dir is not None and (own := Path(dataset_dir) / INFO_FILE).is_file():
        paths.append(own)
    found: dict[str, InfoEntry] = {}
    for path in paths:
        for entry in read_info(path):
            for name in entry.names:
                found.setdefault(name.lower(), entry)
    return found


def read_info(path: Path) -> list[InfoEntry]:
    """The entries of one file; DataError when it is missing or is neither of the two forms."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"can't read: {error.strerror}", where=str(path), fix="check --custom_dataset_info") from error
    except ValueError as error:
        raise DataError(f"not valid JSON: {error}", where=str(path), fix="repair the file") from error
    if isinstance(value, dict) and all(isinstance(entry, dict) for entry in value.values()):
        return [_named_entry(name, entry, path.parent) for name, entry in value.items()]
    if isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        return [_listed_entry(entry, path.parent) for entry in value]
    what = "neither a map of names to entries nor a list of entries"
    raise DataError(what, where=str(path), fix="follow LLaMA-Factory's or ms-swift's form of dataset_info.json")


def _named_entry(name: str, entry: Mapping[str, Any], folder: Path) -> InfoEntry:
    """LLaMA-Factory's form: {our column: its column}, tags for roles and keys."""
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    aims = dict(_COLUMNS) if "query" in columns else _COLUMNS | {"prompt": "query"}
    rename = {theirs: aims.get(ours, ours) for ours, theirs in columns.items() if theirs}
    if entry.get("ranking") and entry.get("formatting", "alpaca") == "alpaca" and "response" not in columns:
        rename["output"] = "response"
    file = entry.get("file_name")
    path = folder / file if file else None
    if path is not None and entry.get("folder"):
        path = path / str(entry["folder"])
    return InfoEntry(
        names=tuple(n for n in (name, entry.get("ms_hub_url"), entry.get("hf_hub_url")) if n),
        columns=ColumnMap(
            rename=rename,
            roles={tags[key]: role for key, role in _ROLE_TAGS.items() if tags.get(key)},
            role_key=tags.get("role_tag"),
            content_key=tags.get("content_tag"),
            ranked=bool(entry.get("ranking")),
            plain=set(columns) == {"prompt"},
        ),
        path=path,
        ms_id=entry.get("ms_hub_url"),
        hf_id=entry.get("hf_hub_url"),
        subset=entry.get("subset"),
        split=entry.get("split") if file is None else None,
        rows=entry.get("num_samples"),
    )


def _listed_entry(entry: Mapping[str, Any], folder: Path) -> InfoEntry:
    """ms-swift's form: {its column: our column}, subsets with columns of their own."""
    file = entry.get("dataset_path")
    split = entry.get("split")
    subsets = [s for s in entry.get("subsets") or [] if isinstance(s, Mapping)]
    names = (entry.get("dataset_name"), file, entry.get("ms_dataset_id"), entry.get("hf_dataset_id"))
    columns = ColumnMap(rename=entry.get("columns") or {})
    return InfoEntry(
        names=tuple(str(n) for n in names if n),
        columns=columns,
        path=next((p for p in (folder / file, Path(file)) if p.exists()), folder / file) if file else None,
        ms_id=entry.get("ms_dataset_id"),
        hf_id=entry.get("hf_dataset_id"),
        split=split[0] if isinstance(split, list) and split else None,
        tags=tuple(entry.get("tags") or ()),
        subset_columns={
            str(s.get("subset") or s.get("name")): ColumnMap(rename=s.get("columns") or columns.rename) for s in subsets
        },
    )
