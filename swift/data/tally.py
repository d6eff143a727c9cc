"""Counts of what became of rows, with places and examples.

Promises: every drop is counted under one reason; the first places of each reason are kept. Knows nothing of why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from swift.data.rows import Source

PLACES = 20  # kept for each reason; the count goes on


@dataclass
class Drops:
    """Rows that were not used: {reason: count}, and for each reason its first places as (file:line, detail)."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[tuple[str, str]]] = field(default_factory=dict)

    def add(self, reason: str, detail: str, source: Source | str) -> None:
        self.counts[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < PLACES:
            places.append((str(source), detail))

    @classmethod
    def restored(cls, counts: Mapping[str, int], places: Mapping[str, Iterable[Iterable[str]]]) -> Drops:
        """What was saved as JSON."""
        return cls(Counter(counts), {reason: [(w, d) for w, d in found] for reason, found in places.items()})

    def join(self, later: Drops) -> None:
        """Add the counts of rows that come after these."""
        self.counts.update(later.counts)
        for reason, places in later.places.items():
            own = self.places.setdefault(reason, [])
            own += places[: PLACES - len(own)]

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def lines(self, places: int = 3) -> list[str]:
        """One line a reason, the most frequent first, and its first places below it."""
        found = []
        for reason, count in self.counts.most_common():
            found.append(f"{count} x {reason}")
            for where, detail in self.places[reason][:places]:
                found.append(f"    {where}" + (f": {detail}" if detail else ""))
            if count > places:
                found.append(f"    ... and {count - places} more")
        return found

    def first(self) -> str:
        """The most frequent reason with its first place, on one line."""
        reason, count = self.counts.most_common(1)[0]
        where, detail = self.places[reason][0]
        return f"{count} x {reason}, first at {where}" + (f" ({detail})" if detail else "")

    def to_json(self) -> dict[str, Any]:
        return {
            reason: {"rows": count, "places": [{"where": w, "detail": d} for w, d in self.places[reason]]}
            for reason, count in self.counts.most_common()
        }


@dataclass
class DatasetCount:
    """One `--dataset` word: read = dropped + usable; usable = unsampled + train + val - repeated."""

    spec: str
    files: list[str] = field(default_factory=list)
    read: int = 0
    drops: Drops = field(default_factory=Drops)
    unsampled: int = 0
    train: int = 0
    val: int = 0
    repeated: int = 0
    filled: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    unused: Counter[str] = field(default_factory=Counter)

    @property
    def usable(self) -> int:
        return self.read - self.drops.total

    def adds_up(self) -> bool:
        return self.usable == self.unsampled + self.train + self.val - self.repeated

    def to_json(self) -> dict[str, Any]:
        return {
            "dataset": self.spec,
            "files": self.files,
            "rows_read": self.read,
            "dropped": self.drops.total,
            "dropped_by_reason": self.drops.to_json(),
            "not_sampled": self.unsampled,
            "train": self.train,
            "val": self.val,
            "repeated": self.repeated,
            "identity_filled": self.filled,
            "formats": dict(self.formats.most_common()),
            "notes": {k: v for k, v in self.notes.most_common() if v},
            "unused_columns": dict(self.unused.most_common()),
        }
