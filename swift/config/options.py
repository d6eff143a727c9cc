"""Options as dataclass fields: name, type, default, choices and aliases in one place, and what a section's options are.

A section is a frozen dataclass of fields made by `option(...)`. The field's name is the flag's name, its annotation
the type, its line of help stands in i18n/<language>.toml under [options]. Knows nothing of argv.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# annotation as written -> (kind, is list). `None` as a default means: decided later, and said.
SIZE = r"\d+(\.\d+)?\s*[KMGT]B"  # 5GB, 300 MB; as huggingface_hub reads them
KINDS: dict[str, tuple[str, bool]] = {
    "str": ("str", False),
    "str | None": ("str", False),
    "int": ("int", False),
    "int | None": ("int", False),
    "float": ("float", False),
    "float | None": ("float", False),
    "bool": ("bool", False),
    "bool | None": ("bool", False),
    "dict | None": ("dict", False),
    "tuple[str, ...]": ("str", True),
    "tuple[float, ...]": ("float", True),
    "tuple[int, ...]": ("int", True),
}


def option(
    default: Any = None,
    *,
    choices: Sequence[Any] = (),
    aliases: Sequence[str] = (),
    values: dict[str, Any] | None = None,
    low: float | None = None,
    high: float | None = None,
    pattern: str | None = None,
) -> Any:
    """A section's field. `aliases` are other names of the flag; `values` maps older spellings of a value to today's.

    `low` and `high` are inclusive bounds of numbers; `pattern` is what the whole of a text must match.
    """
    metadata = {"choices": tuple(choices), "aliases": tuple(aliases), "values": values or {}, "low": low, "high": high}
    metadata["pattern"] = pattern
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Spec:
    """One option as the parser, the help page and forms see it."""

    name: str
    section: str
    kind: str  # str, int, float, bool, dict
    is_list: bool
    default: Any
    choices: tuple[Any, ...]
    aliases: tuple[str, ...]
    values: dict[str, Any]
    low: float | None
    high: float | None
    pattern: str | None

    @property
    def type_name(self) -> str:
        name = "JSON" if self.kind == "dict" else self.kind.upper()
        if self.kind == "bool":
            name = "true|false"
        elif self.choices:
            name = "|".join(str(choice) for choice in self.choices)
        return f"{name} ..." if self.is_list else name


@functools.cache
def section_specs(section_name: str, section: Any) -> tuple[Spec, ...]:
    """The options of one section, in the order in which they are written; its values are the defaults."""
    specs = []
    for field in dataclasses.fields(section):
        kind, is_list = KINDS[str(field.type)]
        meta = field.metadata
        specs.append(
            Spec(
                name=field.name,
                section=section_name,
                kind=kind,
                is_list=is_list,
                default=getattr(section, field.name),
                choices=meta["choices"],
                aliases=meta["aliases"],
                values=meta["values"],
                low=meta["low"],
                high=meta["high"],
                pattern=meta["pattern"],
            )
        )
    return tuple(specs)
