"""The tables of `swift list-models` and `swift list-datasets`: plain text, aligned, as wide as the terminal.

Columns that don't fit are left out from the right; ids are never cut, so that they can be copied. Into a pipe or a
file everything is written. The memory figures are rules of thumb from the parameter count, not measurements.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from swift.catalog import status, store
from swift.catalog.entries import DatasetEntry, ModelEntry, parse_count
from swift.errors import UsageError
from swift.i18n import display_width, pad, text

_SIZE = re.compile(r"^(<=|>=|<|>)?\s*(\d+(?:\.\d+)?[MBT])$", re.IGNORECASE)
# bytes per parameter of a published checkpoint, by what its name says
_BYTES = (
    (re.compile(r"2bit", re.IGNORECASE), 0.35),
    (re.compile(r"int4|4bit|4-bit|awq|nf4|mxfp4|nvfp4", re.IGNORECASE), 0.6),
    (re.compile(r"fp8|int8|8bit|8-bit", re.IGNORECASE), 1.05),
)


def count_text(entry: ModelEntry) -> str:
    """`4B`, `30B-A3B` (active parameters), or empty when the size isn't known."""
    if entry.parameters is None:
        return ""
    total = _short(entry.parameters)
    return f"{total}-A{_short(entry.active)}" if entry.active else total


def _short(count: int) -> str:
    for unit, scale in (("T", 1e12), ("B", 1e9)):
        if count >= scale:
            return f"{count / scale:.3g}{unit}"
    return f"{count / 1e6:.3g}M"


def memory_gb(entry: ModelEntry) -> tuple[float, float, float] | None:
    """GB of GPU memory for (inference, LoRA in 16 bits, QLoRA with 4 bits) at short lengths; None without a size.

    Weights at their stored width, plus a seventh for cache and buffers when answering, plus a quarter for activations
    and adapters when training.
    """
    if entry.parameters is None:
        return None
    billions = entry.parameters / 1e9
    stored = next((width for pattern, width in _BYTES if pattern.search(entry.name)), 2.0)
    return billions * stored * 1.15 + 0.7, billions * 2 * 1.25 + 1.5, billions * 0.6 * 1.25 + 1.5


def _gb(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _size_filter(condition: str) -> tuple[str, int]:
    match = _SIZE.match(condition.strip())
    count = parse_count(match[2]) if match else None
    if match is None or count is None:
        raise UsageError(f"{condition!r} is not a size", where="--size", fix="write it like '<8B', '>=70B' or 4B")
    return match[1] or "=", count


def of_size(entries: Sequence[ModelEntry], condition: str) -> list[ModelEntry]:
    """The models whose parameter count meets `<8B`, `>=70B`, or is within a tenth of a bare `4B`."""
    sign, count = _size_filter(condition)
    fits = {
        "<": lambda p: p < count,
        "<=": lambda p: p <= count,
        ">": lambda p: p > count,
        ">=": lambda p: p >= count,
        "=": lambda p: abs(p - count) <= count / 10,
    }[sign]
    return [entry for entry in entries if entry.parameters is not None and fits(entry.parameters)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Aligned columns two spaces apart; columns beyond `width` terminal columns are left out from the right."""
    sizes = [max(display_width(row[i]) for row in (header, *rows)) for i in range(len(header))]
    shown = len(header)
    while width is not None and shown > 1 and sum(sizes[:shown]) + 2 * (shown - 1) > width:
        shown -= 1
    lines = [header[:shown], ["-" * size for size in sizes[:shown]], *(row[:shown] for row in rows)]
    return "\n".join("  ".join(pad(c, s) for c, s in zip(line, sizes, strict=False)).rstrip() for line in lines) + "\n"


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


MODEL_COLUMNS = (
    "model",
    "size",
    "input",
    "type",
    "verified",
    "infer",
    "lora",
    "qlora",
    "thinking",
    "tools",
    "license",
    "code",
)
DATASET_COLUMNS = ("dataset", "rows", "topic", "short", "tags", "license")


def _header(columns: Sequence[str], *more: str) -> list[str]:
    return [*(text(f"tables.{column}") for column in columns), *more]


def status_of(entry: ModelEntry) -> status.ArchitectureStatus | None:
    """What `make matrix` says of the entry's architecture; None when it was never tried."""
    kinds = [(kind, None) for kind in entry.type.architectures] + [(None, name) for name in entry.type.config_types]
    return next((found for kind, name in kinds if (found := status.status_of(kind, name))), None)


def _verified_text(entry: ModelEntry) -> str:
    found = status_of(entry)
    if found is None:
        return ""
    return text("tables.verified_yes") if found.verified else text("tables.verified_no", steps=" ".join(found.failed))


def _model_row(entry: ModelEntry) -> list[str]:
    memory = memory_gb(entry)
    return [
        entry.id,
        count_text(entry),
        "+".join(entry.type.modalities),
        entry.type.name,
        _verified_text(entry),
        *(map(_gb, memory) if memory else ("", "", "")),
        "" if entry.thinking == "none" else entry.thinking,
        entry.tools or "",
        entry.license or "",
        ("transformers" if entry.type.family else "") if entry.type.native else "remote",
        "" if entry.hf_id == entry.id else entry.hf_id or "-",
    ]


def _model_json(entry: ModelEntry) -> dict[str, Any]:
    memory = memory_gb(entry)
    found = status_of(entry)
    return {
        "id": entry.id,
        "modelscope": entry.ms_id,
        "huggingface": entry.hf_id,
        "aliases": list(entry.aliases),
        "type": entry.type.name,
        "family": entry.type.family,
        "architectures": list(entry.type.architectures),
        "task": entry.type.task,
        "modalities": list(entry.type.modalities),
        "parameters": entry.parameters,
        "active_parameters": entry.active,
        "memory_gb": dict(zip(("infer", "lora", "qlora"), memory, strict=True)) if memory else None,
        "verified": None if found is None else found.verified,
        "failed_steps": dict(found.failed) if found else {},
        "thinking": entry.thinking,
        "tools": entry.tools,
        "template": entry.template,
        "license": entry.license,
        "requires": list(entry.requires),
        "remote_code": not entry.type.native,
        "package": entry.package,
        "tags": list(entry.tags),
    }


def models_table(
    query: str | None = None,
    family: str | None = None,
    modality: str | None = None,
    size: str | None = None,
    as_json: bool = False,
    width: int | None = None,
    verified: bool = False,
) -> str:
    """The models that match, as a table or as a JSON list; UsageError with suggestions when none does."""
    entries = store.models(query, family=family, modality=modality)
    if size:
        entries = of_size(entries, size)
    if verified:
        entries = [entry for entry in entries if (found := status_of(entry)) and found.verified]
    if not entries:
        raise _nothing("model", query, family, modality, size, _near(query, store.suggest_models, store.models()))
    if as_json:
        return json.dumps([_model_json(entry) for entry in entries], ensure_ascii=False, indent=1) + "\n"
    rows = [_model_row(entry) for entry in entries]
    footer = text("tables.models_shown", shown=len(entries), known=len(store.models()))
    return f"{table(_header(MODEL_COLUMNS, 'Hugging Face'), rows, width)}\n{footer}\n"


def directory_table(path: Path, as_json: bool = False, width: int | None = None) -> str:
    """What is known of the model in a directory, by its config.json: the row of `models_table`, and in words what
    runs it. UsageError where no model is.
    """
    entry, architecture, brings_code = store.entry_of(path)
    if as_json:
        return json.dumps([_model_json(entry)], ensure_ascii=False, indent=1) + "\n"
    known = status_of(entry) is not None or (entry.type.family and entry.type.native)
    key = "directory_own_code" if brings_code else "directory_known" if known else "directory_unknown"
    said = text(f"tables.{key}", architecture=architecture)
    return f"{table(_header(MODEL_COLUMNS), [_model_row(entry)[:-1]], width)}\n{said}\n"


def _dataset_row(entry: DatasetEntry) -> list[str]:
    subsets = entry.subsets if len(entry.subsets) <= 4 else (*entry.subsets[:3], f"... ({len(entry.subsets)})")
    return [
        entry.id,
        f"{entry.rows}" if entry.rows else "",
        entry.topic,
        entry.aliases[0] if entry.aliases else "",
        " ".join(entry.tags),
        entry.license or "",
        "" if entry.hf_id == entry.id else entry.hf_id or "-",
        " ".join(subsets),
    ]


def _dataset_json(entry: DatasetEntry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "modelscope": entry.ms_id,
        "huggingface": entry.hf_id,
        "aliases": list(entry.aliases),
        "topic": entry.topic,
        "rows": entry.rows,
        "subsets": list(entry.subsets),
        "tags": list(entry.tags),
        "columns": dict(entry.columns),
        "license": entry.license,
        "shipped": entry.file is not None,
    }


def datasets_table(
    query: str | None = None, tag: str | None = None, as_json: bool = False, width: int | None = None
) -> str:
    """The data sets that match, as a table or as a JSON list; UsageError with suggestions when none does."""
    entries = store.datasets(query, tag=tag)
    if not entries:
        raise _nothing("data set", query, tag, None, None, _near(query, store.suggest_datasets, store.datasets()))
    if as_json:
        return json.dumps([_dataset_json(entry) for entry in entries], ensure_ascii=False, indent=1) + "\n"
    rows = [_dataset_row(entry) for entry in entries]
    header = _header(DATASET_COLUMNS, "Hugging Face", text("tables.subsets"))
    footer = text("tables.datasets_shown", shown=len(entries), known=len(store.datasets()))
    return f"{table(header, rows, width)}\n{footer}\n"


def _near(query: str | None, suggest: Callable[[str], list[str]], entries: Sequence[Any]) -> list[str]:
    """What a query that finds nothing may have meant: ids, else the query with its words spelled as names are."""
    if not query:
        return []
    names = [name for entry in entries for name in (entry.ms_id, entry.hf_id, *entry.aliases) if name]
    better = store.corrected(query, names)
    return suggest(query) or ([better] if better else [])


def _nothing(what: str, *conditions: Any) -> UsageError:
    *filters, near = conditions
    asked = " ".join(str(condition) for condition in filters if condition)
    fix = f"did you mean {' or '.join(near)}?" if near else "fewer or shorter words find more"
    return UsageError(f"no {what} matches {asked!r}", fix=fix)


def list_models(config: Any) -> int:
    """The main of `swift list-models`; `config.listing` has query, family, modality, json."""
    listing = config.listing
    width = None if listing.json else _terminal_width()
    query = " ".join(listing.query) or None
    if query and Path(query).is_dir():
        print(directory_table(Path(query), listing.json, width), end="")
        return 0
    table = models_table(
        query, listing.family, listing.modality, listing.size, listing.json, width=width, verified=listing.verified
    )
    print(table, end="")
    return 0


def list_datasets(config: Any) -> int:
    """The main of `swift list-datasets`; `config.listing` has query, json."""
    listing = config.listing
    width = None if listing.json else _terminal_width()
    query = " ".join(listing.query) or None
    print(datasets_table(query, listing.tag, as_json=listing.json, width=width), end="")
    return 0
