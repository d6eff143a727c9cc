"""Look-up in the catalog: models by id, name, alias or path; model types by architecture; data sets by name.

Promises: no heavy import, no network, everything parsed once per process. A name that isn't in the catalog is None,
never an error: a local directory needs no catalog.
"""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from swift.catalog.entries import DatasetEntry, FamilyEntry, ModelEntry, read_datasets, read_model_line, read_models
from swift.catalog.registered import REGISTERED
from swift.errors import UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

HERE = Path(__file__).parent


class _Models(NamedTuple):
    types: dict[str, FamilyEntry]
    entries: list[ModelEntry]
    by_name: dict[str, ModelEntry]


class _Datasets(NamedTuple):
    entries: list[DatasetEntry]
    by_name: dict[str, DatasetEntry]


def read_tables(folder: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """(file stem, parsed table) of every TOML file in a folder of the catalog, by name."""
    for path in sorted((HERE / folder).glob("*.toml")):
        yield path.stem, tomllib.loads(path.read_text(encoding="utf-8"))


def _index(entries: Iterable[Any]) -> dict[str, Any]:
    """Lower-case name -> entry. Full ids win over short names and aliases, and earlier entries over later ones."""
    entries = list(entries)
    names: dict[str, Any] = {}
    for entry in entries:
        for full in (entry.ms_id, entry.hf_id):
            if full:
                names.setdefault(full.lower(), entry)
    for entry in entries:
        for short in entry.aliases:
            names.setdefault(short.lower(), entry)
    for entry in entries:
        for full in (entry.ms_id, entry.hf_id):
            if full:
                names.setdefault(full.rsplit("/", 1)[-1].lower(), entry)
    return names


@cache
def _models() -> _Models:
    types: dict[str, FamilyEntry] = {}
    entries: list[ModelEntry] = []
    for family, table in [*REGISTERED.models.items(), *read_tables("models")]:
        for kind, models_of_type in read_models(family, table):
            types.setdefault(kind.name, kind)
            entries += models_of_type
    return _Models(types, entries, _index(entries))


@cache
def _datasets() -> _Datasets:
    entries = [own.entry for own in REGISTERED.datasets.values()]
    entries += [entry for topic, table in read_tables("datasets") for entry in read_datasets(topic, table)]
    return _Datasets(entries, {**_index(entries), **{name: own.entry for name, own in REGISTERED.datasets.items()}})


def forget() -> None:
    """Index anew at the next look-up: a plugin has registered something."""
    _models.cache_clear()
    _datasets.cache_clear()


def _plain(name: str) -> str:
    return name.strip().rstrip("/\\")


def find_model(name: str) -> ModelEntry | None:
    """The entry of a full id (either hub), a short name, an alias, or a path whose last component is one of those."""
    by_name = _models().by_name
    key = _plain(name).lower()
    return by_name.get(key) or by_name.get(PurePath(key.replace("\\", "/")).name)


def find_type(name: str) -> FamilyEntry | None:
    """A model type by its name (`--model_type qwen3`)."""
    return _models().types.get(name.lower())


def find_by_architecture(architecture: str | None, model_type: str | None = None) -> FamilyEntry | None:
    """The model type for what config.json says: `architectures[0]` and `model_type`.

    Several types share an architecture (all Llama-like ones): the one named like `model_type` wins, then the first
    that lists `model_type`, then one with that architecture alone.
    """
    kinds = _models().types.values()
    fitting = [k for k in kinds if architecture in k.architectures] if architecture else []
    if model_type:
        same = [k for k in fitting or kinds if model_type in k.config_types]
        fitting = same or (fitting if not any(k.config_types for k in fitting) else [])
        fitting.sort(key=lambda k: (k.name != model_type, k.task != "chat"))
    return fitting[0] if fitting else None


def entry_of(path: Path) -> tuple[ModelEntry, str, bool]:
    """(an entry for the model in directory `path`, its class, whether that comes as Python files beside the weights).

    The entry's type is the catalog's where config.json names one of its architectures, else one of that name without a
    family. UsageError without a config.json that says what the model is.
    """
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
        kind, named = config.get("model_type"), config.get("architectures") or [config.get("model_type")]
    except (OSError, ValueError, AttributeError):
        kind, named = None, [None]
    if named[0] is None:
        raise UsageError("no model: there is no config.json that names one", where=str(path))
    own = isinstance(config.get("auto_map"), dict)
    known = find_by_architecture(named[0], kind)
    if known is None:
        facts = {"architectures": named[:1], "config_types": [kind or ""], "native": not own, "models": ""}
        ((known, _),) = read_models("", {kind or named[0]: facts})
    return replace(read_model_line(f"- {path.resolve().name}", known), name=str(path), hf_id=None), str(named[0]), own


def _matches(words: list[str], *texts: str | None) -> bool:
    haystack = " ".join(text for text in texts if text).lower()
    return all(word in haystack for word in words)


def models(
    query: str | None = None, *, family: str | None = None, modality: str | None = None, task: str | None = None
) -> list[ModelEntry]:
    """The models whose ids, type, family, alias or tags hold every word of `query`, in catalog order."""
    words = (query or "").lower().split()
    return [
        entry
        for entry in _models().entries
        if (family is None or family.lower() in (entry.type.family, entry.type.name))
        and (modality is None or modality.lower() in entry.type.modalities)
        and (task is None or task == entry.type.task)
        and _matches(words, entry.ms_id, entry.hf_id, entry.type.name, entry.type.title, *entry.aliases, *entry.tags)
    ]


def model_types() -> list[FamilyEntry]:
    return list(_models().types.values())


def find_dataset(name: str) -> DatasetEntry | None:
    """The entry of a full id (either hub), a short name or an alias."""
    by_name = _datasets().by_name
    key = _plain(name).lower()
    return by_name.get(key) or by_name.get(key.rsplit("/", 1)[-1])


def datasets(query: str | None = None, *, tag: str | None = None) -> list[DatasetEntry]:
    words = (query or "").lower().split()
    return [
        entry
        for entry in _datasets().entries
        if (tag is None or tag in entry.tags)
        and _matches(words, entry.ms_id, entry.hf_id, entry.topic, *entry.aliases, *entry.tags)
    ]


def _closest(name: str, known: dict[str, Any], count: int) -> list[str]:
    """Catalog ids whose full or short name is nearest to `name`; a name that starts or holds the other ranks first."""
    key = _plain(name).lower()
    short = key.rsplit("/", 1)[-1]
    spelled = {candidate: entry.id for candidate, entry in known.items()}
    near = difflib.get_close_matches(key, spelled, n=count, cutoff=0.72)
    if short != key:
        near += difflib.get_close_matches(short, spelled, n=count, cutoff=0.72)
    if len(near) < count and len(short) >= 3:
        near += sorted((c for c in spelled if short in c), key=len)[:count]
    return list(dict.fromkeys(spelled[candidate] for candidate in near))[:count]


def suggest_models(name: str, count: int = 3) -> list[str]:
    """Did you mean: ids of models with a similar name, best first."""
    return _closest(name, _models().by_name, count)


def corrected(query: str, names: Iterable[str]) -> str | None:
    """The query with each word that no name holds replaced by the nearest word of the names; None without a change."""
    texts = [name.lower() for name in names]
    words = sorted({word for text in texts for word in (text, *re.split(r"[/_\-:]", text)) if len(word) > 2})
    found = []
    for word in query.lower().split():
        held = any(word in text for text in texts)
        near = [] if held else difflib.get_close_matches(word, words, n=1, cutoff=0.7)
        found.append(near[0] if near else word)
    better = " ".join(found)
    return better if better != " ".join(query.lower().split()) else None


def suggest_datasets(name: str, count: int = 3) -> list[str]:
    return _closest(name, _datasets().by_name, count)


def template_names() -> list[str]:
    return sorted({path.stem for path in (HERE / "templates").glob("*.jinja")} | REGISTERED.templates.keys())


def template_text(name: str) -> str:
    """The Jinja source of a catalog template; KeyError with the known names when there is none of that name."""
    if name.lower() in REGISTERED.templates:
        return REGISTERED.templates[name.lower()]
    path = HERE / "templates" / f"{name}.jinja"
    if name not in template_names():
        raise KeyError(f"no template {name!r}; known: {', '.join(template_names())}")
    return path.read_text(encoding="utf-8")


@cache
def grounding() -> dict[str, dict[str, Any]]:
    """How families write places in images, by model_type of config.json; "default" for all others."""
    return tomllib.loads((HERE / "grounding.toml").read_text(encoding="utf-8"))


def loss_scale_names() -> list[str]:
    """The names of weights of words in replies (`--loss_scale`)."""
    return sorted(path.stem for path in (HERE / "loss_scale").glob("*.toml"))


def loss_scale_rules(name: str) -> dict[str, Any]:
    """The tables `keywords`, `patterns` and `questions` of one of `loss_scale_names`."""
    return tomllib.loads((HERE / "loss_scale" / f"{name}.toml").read_text(encoding="utf-8"))


def packaged_file(entry: DatasetEntry) -> Path | None:
    """The data file that is shipped with this program for `entry`, if it is."""
    return HERE / "datasets" / entry.file if entry.file else None
