"""What plugins have added to the catalog in this process: models, templates and data sets (see `swift.plugins`).

Promises: a name that a plugin registers wins over the catalog's own; two plugins can't register the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from swift.catalog.entries import DatasetEntry
from swift.errors import UsageError

MakeRows = Callable[[], Iterable[Mapping[str, Any]]]
ChangeRow = Callable[[dict[str, Any]], "Mapping[str, Any] | None"]


@dataclass(frozen=True)
class OwnDataset:
    """A data set of a plugin. `make` gives its rows; without it they are in `entry`'s files on disk or a hub.

    `change(row)` makes of a row as it was read the row to use, or None to leave it out.
    """

    entry: DatasetEntry
    path: str | None = None
    make: MakeRows | None = None
    change: ChangeRow | None = None


@dataclass
class Registered:
    """`models`: tables as in catalog/models/*.toml, by family. `templates`: Jinja by name. All names in lower case."""

    models: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    templates: dict[str, str] = field(default_factory=dict)
    datasets: dict[str, OwnDataset] = field(default_factory=dict)

    def add(self, kind: str, name: str, value: Any) -> None:
        """UsageError for a name that is taken by another plugin."""
        table = getattr(self, kind)
        if name.lower() in table:
            raise UsageError(f"two plugins register {kind.removesuffix('s')} {name!r}", fix="rename one of them")
        table[name.lower()] = value

    def clear(self) -> None:
        for table in (self.models, self.templates, self.datasets):
            table.clear()


REGISTERED = Registered()
