"""What became of rows that are encoded while training goes on, told with the examples and added up from them.

Promises: each row that was read or encoded is told once, with the example that came next, so the sums over the examples
that were trained on add up like those of rows encoded ahead; they can be saved, restored and joined over processes.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from swift.data.report import SplitCount
from swift.data.tally import DatasetCount, Drops

_DROPS = ("drops", "truncated", "lost_end")
_NUMBERS = ("rows", "used", "extra")


class Lost(NamedTuple):
    """A row that couldn't be read, of data set number `dataset`."""

    dataset: int
    reason: str
    detail: str
    place: str


class Facts(NamedTuple):
    """What the report says of a row that was read. `repeated`: it had come before."""

    dataset: int
    format: str
    repeated: bool
    filled: bool
    notes: tuple[str, ...]
    unused: tuple[str, ...]


class Fate(NamedTuple):
    """A row that went to the encoder. `reason`: why it can't be used, empty where it can."""

    facts: Facts | None
    reason: str
    detail: str
    place: str


class Part(NamedTuple):
    """An example: its tokens, those learned, where its row stands, and what was done to it."""

    length: int
    trained: int
    first: bool  # of its row
    place: str
    notes: tuple[str, ...]
    truncated: bool
    lost_end: bool


class Seen(NamedTuple):
    """What is told with one example: rows since the one before, its own among them. `part` None: there is none."""

    lost: tuple[Lost, ...]
    rows: tuple[Fate, ...]
    part: Part | None


@dataclass(frozen=True)
class SeenBatch:
    """What is told with a batch; one thing that is no container, so that moving a batch to a device passes it on."""

    seen: Sequence[Seen]


class SeenCounts:
    """Sums over `Seen`. `datasets`: empty counts of a stream's data sets; none where rows were counted as they were
    read."""

    def __init__(self, datasets: Sequence[DatasetCount] = ()):
        self.datasets = list(datasets)
        self.count = SplitCount("train")
        self.lengths: Counter[int] = Counter()
        self.trained = 0

    def add(self, seen: Seen) -> None:
        for lost in seen.lost:
            self.datasets[lost.dataset].read += 1
            self.datasets[lost.dataset].drops.add(lost.reason, lost.detail, lost.place)
        for fate in seen.rows:
            self._add_row(fate)
        if seen.part is not None:
            self._add_part(seen.part)

    def _add_row(self, fate: Fate) -> None:
        self.count.rows += 1
        if fate.reason:
            self.count.drops.add(fate.reason, fate.detail, fate.place)
        else:
            self.count.used += 1
        if fate.facts is None:
            return
        count = self.datasets[fate.facts.dataset]
        count.train += 1
        if fate.facts.repeated:
            count.repeated += 1
            return
        count.read += 1
        count.filled += fate.facts.filled
        count.formats[fate.facts.format] += 1
        count.notes.update(fate.facts.notes)
        count.unused.update(fate.facts.unused)

    def _add_part(self, part: Part) -> None:
        self.lengths[part.length] += 1
        self.trained += part.trained
        self.count.extra += not part.first
        self.count.notes.update(part.notes)
        if part.truncated:
            self.count.truncated.add("", f"{part.length} tokens kept", part.place)
        if part.lost_end:
            self.count.lost_end.add("", "", part.place)

    def split(self) -> SplitCount:
        """The counts of the rows so far, with the lengths of the examples in no order."""
        lengths = np.repeat(np.array(list(self.lengths), np.int64), list(self.lengths.values()))
        return dataclasses.replace(self.count, lengths=lengths, trained=np.array([self.trained], np.int64))

    def to_json(self) -> dict[str, Any]:
        """For `restore`, and to be sent to another process."""
        numbers = {name: getattr(self.count, name) for name in _NUMBERS}
        drops = {name: vars(getattr(self.count, name)) for name in _DROPS}
        datasets = [{**vars(count), "drops": vars(count.drops)} for count in self.datasets]
        more = {"notes": self.count.notes, "lengths": sorted(self.lengths.items()), "trained": self.trained}
        return {**numbers, **drops, **more, "datasets": datasets}

    def restore(self, *saved: Mapping[str, Any]) -> None:
        """Take the place of these sums: what `to_json` gave, in one process or in several."""
        self.__init__([DatasetCount(count.spec, files=count.files) for count in self.datasets])
        for facts in saved:
            self._join(facts)

    def _join(self, facts: Mapping[str, Any]) -> None:
        for name in _NUMBERS:
            setattr(self.count, name, getattr(self.count, name) + facts[name])
        for name in _DROPS:
            getattr(self.count, name).join(Drops.restored(facts[name]["counts"], facts[name]["places"]))
        self.count.notes.update(facts["notes"])
        self.lengths.update({int(length): n for length, n in facts["lengths"]})
        self.trained += facts["trained"]
        for count, other in zip(self.datasets, facts["datasets"], strict=True):
            for name in ("read", "train", "repeated", "filled"):
                setattr(count, name, getattr(count, name) + other[name])
            for name in ("formats", "notes", "unused"):
                getattr(count, name).update(other[name])
            count.drops.join(Drops.restored(other["drops"]["counts"], other["drops"]["places"]))
