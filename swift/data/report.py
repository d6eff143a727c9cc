"""The data report: what became of every row and token, before anything is trained.

Promises: the counts add up (`problems` says where they would not); the same figures as text for the terminal, JSON and
HTML. It is filled by `load_rows` and `encode_rows` and judges nothing but the two thresholds that the user set.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from swift.data.rows import Rows
from swift.data.tally import DatasetCount, Drops
from swift.errors import DataError

if TYPE_CHECKING:
    from swift.data.mask_view import Shown

PERCENTILES = (0, 5, 25, 50, 75, 95, 99, 100)


@dataclass
class SplitCount:
    """One split after encoding: rows = used + dropped; examples = used + `extra` (rows cut into several).

    lengths, trained: int64 [examples], tokens per example and how many of them are learned.
    """

    name: str
    rows: int = 0
    used: int = 0
    extra: int = 0
    drops: Drops = field(default_factory=Drops)
    truncated: Drops = field(default_factory=Drops)
    lost_end: Drops = field(default_factory=Drops)
    notes: Counter[str] = field(default_factory=Counter)
    lengths: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    trained: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def examples(self) -> int:
        return len(self.lengths)

    @classmethod
    def joined(cls, name: str, parts: Sequence[SplitCount]) -> SplitCount:
        """The counts of all parts, in order, with their arrays."""
        whole = cls(name)
        for part in parts:
            whole.join(part)
        whole.lengths = np.concatenate([part.lengths for part in parts])
        whole.trained = np.concatenate([part.trained for part in parts])
        return whole

    def join(self, later: SplitCount) -> None:
        """Add the counts of the rows that come after these; not the arrays."""
        self.rows, self.used, self.extra = self.rows + later.rows, self.used + later.used, self.extra + later.extra
        for name in ("drops", "truncated", "lost_end"):
            getattr(self, name).join(getattr(later, name))
        self.notes.update(later.notes)

    def adds_up(self) -> bool:
        return self.rows == self.used + self.drops.total and self.examples == self.used + self.extra

    def percentiles(self) -> dict[str, int]:
        """Token lengths at the percentiles, by the nearest-rank method: each is the length of a real row."""
        ordered = np.sort(self.lengths)
        ranks = {p: max(0, math.ceil(p / 100 * len(ordered)) - 1) for p in PERCENTILES}
        return {f"p{p}": int(ordered[rank]) for p, rank in ranks.items()} if len(ordered) else {}

    def to_json(self) -> dict[str, Any]:
        tokens, trained = int(self.lengths.sum()), int(self.trained.sum())
        return {
            "rows": self.rows,
            "used": self.used,
            "dropped": self.drops.total,
            "dropped_by_reason": self.drops.to_json(),
            "examples": self.examples,
            "truncated": self.truncated.total,
            "truncated_rows": self.truncated.to_json(),
            "lost_end_token": self.lost_end.total,
            "lost_end_token_rows": self.lost_end.to_json(),
            "no_trained_token": self.drops.counts["no trained token"],
            "notes": dict(self.notes.most_common()),
            "tokens": tokens,
            "trained_tokens": trained,
            "trained_share": trained / tokens if tokens else 0.0,
            "length": {"mean": tokens / self.examples if self.examples else 0.0, **self.percentiles()},
            "histogram": [list(bin) for bin in self.histogram()],
        }

    def histogram(self, bins: int = 10) -> list[tuple[int, int, int]]:
        """(from, below, examples) over equal widths that are round numbers; [] when there are no examples."""
        if not self.examples:
            return []
        width = _round_up(max(1, math.ceil((int(self.lengths.max()) + 1) / bins)))
        counts = np.bincount(self.lengths // width)
        return [(i * width, (i + 1) * width, int(n)) for i, n in enumerate(counts)]


def _round_up(number: int) -> int:
    """The next of 1, 2, 5, 10, 20, 50 ..."""
    unit = 10 ** (len(str(number)) - 1)
    return next(step * unit for step in (1, 2, 5, 10) if step * unit >= number)


@dataclass(frozen=True)
class Schedule:
    """What the training rows make of batches and optimizer steps."""

    batches_per_epoch: int
    steps_per_epoch: int
    total_steps: int


@dataclass
class DataReport:
    """Filled step by step; `splits` has "train" and "val" once they are encoded."""

    datasets: list[DatasetCount] = field(default_factory=list)
    splits: dict[str, SplitCount] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    duplicates: int = 0
    val_in_train: int = 0
    schedule: Schedule | None = None

    @property
    def rows_read(self) -> int:
        return sum(count.read for count in self.datasets)

    @property
    def dropped(self) -> int:
        """Rows dropped while reading and while encoding (there, a row that #N repeats counts each time)."""
        return sum(c.drops.total for c in self.datasets) + sum(s.drops.total for s in self.splits.values())

    def drop_ratio(self) -> float:
        """The share of rows lost: of those read, and of the sampled ones those that can't be encoded."""
        read_badly = sum(c.drops.total for c in self.datasets) / max(1, self.rows_read)
        encoded = sum(s.rows for s in self.splits.values())
        encoded_badly = sum(s.drops.total for s in self.splits.values()) / max(1, encoded)
        return read_badly + (1 - read_badly) * encoded_badly

    def split(self, name: str) -> SplitCount:
        return self.splits.setdefault(name, SplitCount(name))

    def note_duplicates(self, train: Rows, val: Rows) -> None:
        """Count training rows with the content of another one (repeats by #N aside), and val rows also trained on."""
        if not len(train):
            return
        hashes = train.store.content_hashes()
        contents = hashes[np.unique(train.indices)]
        self.duplicates = len(contents) - len(np.unique(contents))
        self.val_in_train = int(np.isin(hashes[val.indices], contents).sum()) if len(val) else 0

    def expect_steps(
        self,
        batch_size: int,
        accumulation: int = 1,
        epochs: float = 1.0,
        world_size: int = 1,
        max_steps: int = -1,
        bins: int | None = None,
    ) -> Schedule:
        """Batches and steps, as transformers' Trainer counts them for its sampler without drop_last. `bins`: what the
        training examples are packed into."""
        examples = self.split("train").examples if bins is None else bins
        batches = math.ceil(math.ceil(examples / world_size) / batch_size)
        steps = max(1, math.ceil(batches / accumulation)) if batches else 0
        total = max_steps if max_steps > 0 else math.ceil(epochs * steps)
        self.schedule = Schedule(batches, steps, total)
        return self.schedule

    def check(self, *, strict: bool = False, max_drop_ratio: float | None = None) -> None:
        """DataError when a row was dropped under `strict`, or too many for `max_drop_ratio`."""
        if not self.dropped:
            return
        every = [c.drops for c in self.datasets] + [s.drops for s in self.splits.values()]
        first = "; ".join(drops.first() for drops in every if drops.total)
        if strict:
            what = f"{self.dropped} of {self.rows_read} rows can't be used: {first}"
            raise DataError(what, where="--strict true", fix="repair them, or leave --strict out to train without them")
        ratio = self.drop_ratio()
        if max_drop_ratio is not None and ratio > max_drop_ratio:
            what = f"{ratio:.1%} of the rows can't be used: {first}"
            raise DataError(what, where=f"--max_drop_ratio {max_drop_ratio}", fix="repair them, or raise the ratio")

    def problems(self) -> list[str]:
        """Where the counts don't add up: [] unless this program has a bug."""
        wrong = [f"{c.spec}: rows don't add up" for c in self.datasets if not c.adds_up()]
        return wrong + [f"{s.name}: examples don't add up" for s in self.splits.values() if not s.adds_up()]

    def to_json(self) -> dict[str, Any]:
        return {
            "rows_read": self.rows_read,
            "dropped": self.dropped,
            "drop_ratio": self.drop_ratio(),
            "duplicates": self.duplicates,
            "val_rows_also_in_train": self.val_in_train,
            "datasets": [count.to_json() for count in self.datasets],
            **{name: split.to_json() for name, split in self.splits.items()},
            "schedule": vars(self.schedule) if self.schedule else None,
            "remarks": self.remarks,
        }

    def to_text(self, width: int = 100) -> str:
        from swift.data.report_text import report_text

        return report_text(self, width)

    def to_html(self, shown: Sequence[Shown] = ()) -> str:
        """One page, with the examples `shown` and what is learned of them."""
        from swift.data.report_text import report_html

        return report_html(self, shown)
