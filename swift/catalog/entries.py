"""What a catalog entry holds, and how the lines of a catalog file become entries.

A model file (`models/<family>.toml`) has one table per model type; its `models` key is a literal string with one
model a line: `ModelScope-id [Hugging-Face-id] [key=value ...]`. The second id is left out when both hubs use the same
one; `-` stands for "not on that hub", `id:sub` for a model in a sub-directory of a repository. Literal strings keep
the whole catalog parseable in some ten milliseconds. This module knows the format only; the facts are in the files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

THINKING = ("none", "always", "optional", "never")
TYPE_KEYS = {
    "architectures",
    "config_types",
    "license",
    "modalities",
    "models",
    "native",
    "note",
    "requires",
    "tags",
    "task",
    "template",
    "thinking",
    "tools",
}
LINE_KEYS = {"alias", "license", "package", "requires", "size", "tags", "template", "thinking", "tools"}
TASKS = ("chat", "base", "embedding", "reranker", "reward", "classification", "speech", "generation")

_COUNT = re.compile(r"(?<![A-Za-z0-9.])(?:(\d+)x)?(\d+(?:[._]\d+)?)([BMT])(?![A-Za-z])", re.IGNORECASE)
_ACTIVE = re.compile(r"(?<![A-Za-z0-9])A(\d+(?:[._]\d+)?)([BM])(?![A-Za-z])", re.IGNORECASE)
_SCALE = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class FamilyEntry:
    """One model type: what its checkpoints have in common.

    `architectures` and `config_types` are what config.json says (`architectures`, `model_type`). `thinking` is none,
    optional (a switch in the chat template), always, or never. `tools` names the tool-call format. `template` is a
    file in templates/, used only for a checkpoint without a chat template of its own. `requires` are Python
    requirements beyond the core's. `native` says that transformers has the architecture; otherwise it needs
    --trust_remote_code.
    """

    name: str
    family: str
    title: str
    architectures: tuple[str, ...]
    config_types: tuple[str, ...]
    modalities: tuple[str, ...]
    task: str
    template: str
    thinking: str
    tools: str | None
    license: str | None
    requires: tuple[str, ...]
    tags: tuple[str, ...]
    native: bool
    note: str | None


@dataclass(frozen=True)
class ModelEntry:
    """One checkpoint on the hubs: its ids, and in `own` the `key=value` words of its line, which go before its type's.

    What follows from those is worked out when it is asked for: a look-up asks for few of the catalog's models.
    """

    name: str
    ms_id: str | None
    hf_id: str | None
    type: FamilyEntry
    own: Mapping[str, str] = field(default_factory=dict, hash=False)

    @cached_property
    def counts(self) -> tuple[int | None, int | None]:
        """(parameters, active parameters) from `size=` or the name; None: unknown."""
        parameters, active = sizes_from_name(self.name.rsplit("/", 1)[-1])
        if parameters is None and self.hf_id:
            parameters, active = sizes_from_name(self.hf_id.rsplit("/", 1)[-1])
        if "size" in self.own:
            total, _, used = self.own["size"].partition(":")
            parameters, active = parse_count(total), parse_count(used) or active
        return parameters, active

    @property
    def parameters(self) -> int | None:
        return self.counts[0]

    @property
    def active(self) -> int | None:
        return self.counts[1]

    @property
    def template(self) -> str:
        return self.own.get("template", self.type.template)

    @property
    def thinking(self) -> str:
        return self.own.get("thinking", self.type.thinking)

    @property
    def tools(self) -> str | None:
        return _word(self.own.get("tools", self.type.tools))

    @property
    def license(self) -> str | None:
        return _word(self.own.get("license", self.type.license))

    @property
    def requires(self) -> tuple[str, ...]:
        return self.type.requires + _list(self.own.get("requires"), ";")

    @property
    def tags(self) -> tuple[str, ...]:
        return self.type.tags + _list(self.own.get("tags"))

    @property
    def aliases(self) -> tuple[str, ...]:
        return _list(self.own.get("alias"))

    @property
    def package(self) -> str | None:
        return self.own.get("package")

    @property
    def id(self) -> str:
        """The id on ModelScope, or on Hugging Face for a model that is only there."""
        return self.ms_id or self.hf_id or self.name

    def hub_id(self, use_hf: bool) -> str | None:
        return self.hf_id if use_hf else self.ms_id

    def has_id(self, name: str) -> bool:
        """Is `name` the full id of this entry on either hub?"""
        return name.lower() in (full.lower() for full in (self.ms_id, self.hf_id) if full)


@dataclass(frozen=True)
class DatasetEntry:
    """One data set. `columns` maps its column names to ours; `rows` is None for those too large to have been counted.

    `file` names a file shipped inside this package (under datasets/) that needs no hub.
    """

    name: str
    ms_id: str | None
    hf_id: str | None
    topic: str
    aliases: tuple[str, ...]
    subsets: tuple[str, ...]
    tags: tuple[str, ...]
    rows: int | None
    license: str | None
    columns: Mapping[str, str] = field(default_factory=dict)
    file: str | None = None
    note: str | None = None

    @property
    def id(self) -> str:
        return self.ms_id or self.hf_id or self.name

    def hub_id(self, use_hf: bool) -> str | None:
        return self.hf_id if use_hf else self.ms_id

    def has_id(self, name: str) -> bool:
        """Is `name` the full id of this entry on either hub?"""
        return name.lower() in (full.lower() for full in (self.ms_id, self.hf_id) if full)


def parse_count(text: str) -> int | None:
    """`4B` -> 4_000_000_000, `135M`, `8x7B` -> 56e9; None when it isn't a count."""
    match = _COUNT.search(text)
    if match is None:
        return None
    times, number, unit = match.groups()
    return round(int(times or 1) * float(number.replace("_", ".")) * _SCALE[unit.upper()])


def sizes_from_name(name: str) -> tuple[int | None, int | None]:
    """(parameters, active parameters) as a checkpoint's name states them: `Qwen3-30B-A3B` -> (30e9, 3e9)."""
    active = None
    if match := _ACTIVE.search(name):
        active = round(float(match[1].replace("_", ".")) * _SCALE[match[2].upper()])
        name = name[: match.start()] + name[match.end() :]
    return parse_count(name), active


def _ids(line: str) -> tuple[str | None, str | None, dict[str, str]]:
    words = line.split()
    ids = words if "=" not in line else [word for word in words if "=" not in word]
    attributes = {} if ids is words else dict(word.split("=", 1) for word in words if "=" in word)
    ms_id = ids[0]
    hf_id = ids[1] if len(ids) > 1 else ids[0]
    return (None if ms_id == "-" else ms_id), (None if hf_id == "-" else hf_id), attributes


def _list(value: str | None, separator: str = ",") -> tuple[str, ...]:
    return tuple(value.split(separator)) if value else ()


def _word(value: str | None) -> str | None:
    """A line's own value for a key that its type sets: `none` and `unknown` take the type's value away."""
    return None if value in ("none", "unknown") else value


def model_lines(text: str) -> Iterator[str]:
    return (line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#"))


def read_model_line(line: str, kind: FamilyEntry) -> ModelEntry:
    ms_id, hf_id, own = _ids(line)
    return ModelEntry((ms_id or hf_id or "").rsplit("/", 1)[-1], ms_id, hf_id, kind, own)


def read_models(family: str, table: Mapping[str, Any]) -> Iterator[tuple[FamilyEntry, list[ModelEntry]]]:
    """The model types of one parsed models/<family>.toml, each with its models, in file order."""
    title = table.get("title", family)
    for name, facts in table.items():
        if not isinstance(facts, dict):
            continue
        kind = FamilyEntry(
            name=name,
            family=family,
            title=title,
            architectures=tuple(facts.get("architectures", ())),
            config_types=tuple(facts.get("config_types", ())),
            modalities=tuple(facts.get("modalities", ("text",))),
            task=facts.get("task", "chat"),
            template=facts.get("template", "chatml"),
            thinking=facts.get("thinking", "none"),
            tools=facts.get("tools"),
            license=facts.get("license", table.get("license")),
            requires=tuple(facts.get("requires", ())),
            tags=tuple(facts.get("tags", ())),
            native=facts.get("native", True),
            note=facts.get("note"),
        )
        yield kind, [read_model_line(line, kind) for line in model_lines(facts.get("models", ""))]


def read_datasets(topic: str, table: Mapping[str, Any]) -> Iterator[DatasetEntry]:
    """The data sets of one parsed datasets/<topic>.toml.

    A plain list of ids without more facts stands under `datasets`, one a line like models, with `rows=`, `subsets=`,
    `tags=`, `alias=`; one with a column mapping, a note or a file has a table of its own named by its id.
    """
    tables = {name: facts for name, facts in table.items() if isinstance(facts, dict)}
    for line in model_lines(table.get("datasets", "")):
        ms_id, hf_id, extra = _ids(line)
        facts = tables.get(ms_id or hf_id or "", {})
        yield DatasetEntry(
            name=(ms_id or hf_id or "").rsplit("/", 1)[-1],
            ms_id=ms_id,
            hf_id=hf_id,
            topic=topic,
            aliases=_list(extra.get("alias")),
            subsets=_list(extra.get("subsets")),
            tags=_list(extra.get("tags")),
            rows=int(extra["rows"]) if "rows" in extra else None,
            license=extra.get("license"),
            columns=facts.get("columns", {}),
            file=facts.get("file"),
            note=facts.get("note"),
        )
