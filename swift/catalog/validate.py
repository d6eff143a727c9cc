"""Checks of the catalog's own files: required keys, known words, unique names, existing templates and files.

`validate()` returns findings, one line each; the tests hold it empty, and whoever adds a family runs it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from swift.catalog import store
from swift.catalog.entries import LINE_KEYS, TASKS, THINKING, TYPE_KEYS, model_lines

MODALITIES = ("text", "image", "video", "audio")
DATASET_LINE_KEYS = {"alias", "license", "rows", "subsets", "tags"}
LOSS_SCALE_TABLES = {"keywords", "patterns", "questions"}
DATASET_TABLE_KEYS = {"columns", "file", "note"}
_ID = re.compile(r"^[\w.-]+/[\w.-]+(:[\w.-]+)?$|^[\w.-]+$|^-$")
_NAME = re.compile(r"^[a-z][a-z0-9_]*$")


def _check_lines(where: str, text: str, keys: set[str]) -> Iterator[str]:
    for line in model_lines(text):
        ids = [word for word in line.split() if "=" not in word]
        pairs = [word.split("=", 1) for word in line.split() if "=" in word]
        if not 1 <= len(ids) <= 2 or ids == ["-"] or ids == ["-", "-"]:
            yield f"{where}: {line!r}: one id or two, at least one of them real"
        for name in ids:
            if not _ID.match(name):
                yield f"{where}: {name!r} is not a hub id"
        for key, value in pairs:
            if key not in keys:
                yield f"{where}: {line!r}: unknown key {key!r}"
            if not value:
                yield f"{where}: {line!r}: {key} has no value"


def _check_type(where: str, facts: dict[str, Any]) -> Iterator[str]:
    for key in facts.keys() - TYPE_KEYS:
        yield f"{where}: unknown key {key!r}"
    for key in ("architectures", "models"):
        if key not in facts:
            yield f"{where}: {key!r} is missing"
    for word in facts.get("modalities", ()):
        if word not in MODALITIES:
            yield f"{where}: unknown modality {word!r}"
    if facts.get("task", "chat") not in TASKS:
        yield f"{where}: unknown task {facts['task']!r}"
    yield from _check_lines(where, facts.get("models", ""), LINE_KEYS)


def _check_model_files() -> Iterator[str]:
    seen: Counter[str] = Counter()
    for family, table in store.read_tables("models"):
        if not table.get("title"):
            yield f"models/{family}.toml: 'title' is missing"
        for key, facts in table.items():
            where = f"models/{family}.toml [{key}]"
            if not isinstance(facts, dict):
                if key not in ("title", "license"):
                    yield f"{where}: unknown key"
                continue
            if not _NAME.match(key):
                yield f"{where}: a model type is named in lower_case_words"
            seen[key] += 1
            yield from _check_type(where, facts)
    yield from (f"model type {name!r} is described {count} times" for name, count in seen.items() if count > 1)


def _check_entries() -> Iterator[str]:
    known = set(store.template_names())
    for entry in store.models():
        if entry.template not in known:
            yield f"{entry.id}: unknown template {entry.template!r}"
        if entry.thinking not in THINKING:
            yield f"{entry.id}: unknown thinking {entry.thinking!r}"
    yield from _twice("model", [e.ms_id for e in store.models()], "ModelScope")
    aliases = [alias for e in store.models() for alias in e.aliases]
    yield from _twice("alias", [*aliases, *(e.id for e in store.models())], "the catalog")


def _twice(what: str, names: list[str | None], hub: str) -> Iterator[str]:
    counts = Counter(name.lower() for name in names if name)
    return (f"{what} {name!r} stands {count} times in {hub}" for name, count in counts.items() if count > 1)


def _check_datasets() -> Iterator[str]:
    for topic, table in store.read_tables("datasets"):
        where = f"datasets/{topic}.toml"
        listed = {word for line in model_lines(table.get("datasets", "")) for word in line.split()[:2]}
        yield from _check_lines(where, table.get("datasets", ""), DATASET_LINE_KEYS)
        for key, facts in table.items():
            if not isinstance(facts, dict):
                if key not in ("datasets", "title"):
                    yield f"{where}: unknown key {key!r}"
                continue
            if key not in listed:
                yield f"{where} [{key}]: no such id under 'datasets'"
            yield from (f"{where} [{key}]: unknown key {word!r}" for word in facts.keys() - DATASET_TABLE_KEYS)
    for entry in store.datasets():
        file = store.packaged_file(entry)
        if file is not None and not file.is_file():
            yield f"{entry.id}: {file.name} is not shipped"
    yield from _twice("data set", [e.ms_id for e in store.datasets()], "ModelScope")
    yield from _twice("data set", [e.hf_id for e in store.datasets()], "Hugging Face")


def _check_loss_scales() -> Iterator[str]:
    for name, table in store.read_tables("loss_scale"):
        yield from (f"loss_scale/{name}.toml: unknown table {key!r}" for key in table.keys() - LOSS_SCALE_TABLES)
        for word, weights in table.get("keywords", {}).items():
            if not isinstance(weights, list) or len(weights) != 2:
                yield f"loss_scale/{name}.toml: keyword {word!r}: two weights, its own and that of what follows"
        for key in ("patterns", "questions"):
            for word, weight in table.get(key, {}).items():
                if not isinstance(weight, float) or weight < 0:
                    yield f"loss_scale/{name}.toml: {word!r}: one weight, from 0.0 on"


def validate() -> list[str]:
    """What is wrong with the catalog's files, one line per finding; [] when nothing is."""
    return [*_check_model_files(), *_check_entries(), *_check_datasets(), *_check_loss_scales()]
