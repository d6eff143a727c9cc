"""The tables of known models and data sets: filtered here, shown a page at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swift.catalog import listing, store
from swift.catalog.entries import DatasetEntry, ModelEntry
from swift.hub.local import package_directory

PAGE = 50


def models(args: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of models that match query, family, modality, size (`<8B`), thinking, tools; `offset` is the first shown."""
    found = store.models(_text(args, "query"), family=_text(args, "family"), modality=_text(args, "modality"))
    if size := _text(args, "size"):
        found = listing.of_size(found, size)
    if _text(args, "only") == "thinking":
        found = [entry for entry in found if entry.thinking != "none"]
    elif _text(args, "only") == "tools":
        found = [entry for entry in found if entry.tools]
    elif _text(args, "only") == "here":
        found = [entry for entry in found if _is_here(entry)]
    return {**_page(found, args, _model), "families": sorted({kind.family for kind in store.model_types()})}


def datasets(args: Mapping[str, Any]) -> dict[str, Any]:
    """Rows of data sets that match query and tag."""
    found = store.datasets(_text(args, "query"), tag=_text(args, "tag"))
    if _text(args, "only") == "here":
        found = [entry for entry in found if entry.file is not None]
    return {**_page(found, args, _dataset), "tags": sorted({tag for entry in store.datasets() for tag in entry.tags})}


def _text(args: Mapping[str, Any], name: str) -> str | None:
    value = args.get(name)
    return value.strip()[:200] or None if isinstance(value, str) else None


def _page(found: list[Any], args: Mapping[str, Any], row: Any) -> dict[str, Any]:
    offset = args.get("offset")
    start = offset if isinstance(offset, int) and 0 <= offset < len(found) else 0
    return {"rows": [row(entry) for entry in found[start : start + PAGE]], "count": len(found), "offset": start}


def _is_here(entry: ModelEntry) -> bool:
    return entry.package is not None and package_directory(entry.package.partition(":")[0]) is not None


def _model(entry: ModelEntry) -> dict[str, Any]:
    memory = listing.memory_gb(entry)
    return {
        "id": entry.id,
        "size": listing.count_text(entry),
        "input": "+".join(entry.type.modalities),
        "type": entry.type.name,
        "memory": [f"{value:.0f}" if value >= 10 else f"{value:.1f}" for value in memory] if memory else ["", "", ""],
        "thinking": "" if entry.thinking == "none" else entry.thinking,
        "tools": entry.tools or "",
        "license": entry.license or "",
    }


def _dataset(entry: DatasetEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "rows": entry.rows,
        "topic": entry.topic,
        "tags": list(entry.tags),
        "license": entry.license or "",
        "here": entry.file is not None,
    }
