"""Rows that are encoded while training goes on: counted step by step, told when they are dropped, stopped at limits.

Promises: the counts are those of the steps that were taken; they are saved with a checkpoint and go on from it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from swift.data.report import DataReport
from swift.data.seen import Seen, SeenCounts

log = logging.getLogger("swift")
ENOUGH = 1000  # rows before the share of dropped ones is judged


class RowWatch:
    """`strict` and `max_drop_ratio` as of the command line."""

    def __init__(self, counts: SeenCounts, strict: bool = False, max_drop_ratio: float | None = None):
        self.counts, self.strict, self.max_drop_ratio = counts, strict, max_drop_ratio
        self._told: set[str] = set()

    def add(self, seen: Iterable[Seen]) -> None:
        """Count what came with a step's batches; DataError when too much was dropped."""
        dropped = False
        for one in seen:
            self.counts.add(one)
            for lost in (*one.lost, *(fate for fate in one.rows if fate.reason)):
                dropped = True
                if lost.reason not in self._told:
                    self._told.add(lost.reason)
                    detail = f" ({lost.detail})" if lost.detail else ""
                    log.warning("dropped %s: %s%s; the report counts all of this kind", lost.place, lost.reason, detail)
        if dropped:
            ratio = self.max_drop_ratio if self.counts.count.rows >= ENOUGH else None
            self.report().check(strict=self.strict, max_drop_ratio=ratio)

    def report(self) -> DataReport:
        """What was counted so far."""
        return DataReport(datasets=self.counts.datasets, splits={"train": self.counts.split()})

    def to_json(self) -> dict[str, Any]:
        return self.counts.to_json()

    def restore(self, *saved: Mapping[str, Any]) -> None:
        """Go on from what `to_json` gave, in one process or several; from nothing without any."""
        self.counts.restore(*saved)
