"""Rows -> token ids and labels, in flat arrays, every row counted.

Promises: each row is used or dropped with a reason; an example's label is its own id or -100. Memory is about five
bytes a token. Knows nothing of templates (the encoder does) and of padding.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from swift.chat import IGNORED, Encoded, RowDropped
from swift.data.report import DataReport, SplitCount
from swift.data.rows import Row, Rows
from swift.errors import SwiftError

BATCH = 1000
NO_TRAINED = "no trained token"
_VARYING = re.compile(r"(?<!\w)'[^']*'|\"[^\"]*\"|[0-9]+")
_DROP_NAMES = {"too_long": "longer than --max_length", "nothing_left": "nothing to learn left within --max_length"}


class Encoder(Protocol):
    """What `encode_rows` needs of `swift.chat.ChatEncoder`: for each row its examples, or the error in their place."""

    def encode_batch(self, rows: Sequence[Any]) -> list[list[Encoded] | SwiftError]: ...


class EncodedDataset(Sequence[dict[str, Any]]):
    """Examples in flat arrays.

    ids int32 [tokens]; learned bool [tokens]; starts int64 [examples + 1]; row_ids int64 [examples]; scales float32
    [tokens] or None when every learned token weighs 1.
    """

    def __init__(
        self,
        ids: np.ndarray,
        learned: np.ndarray,
        starts: np.ndarray,
        row_ids: np.ndarray,
        scales: np.ndarray | None = None,
        media: dict[int, dict[str, Any]] | None = None,
    ):
        self.ids, self.learned, self.starts, self.row_ids, self.scales = ids, learned, starts, row_ids, scales
        self.media = media or {}
        self.lengths: np.ndarray = np.diff(starts)

    def __len__(self) -> int:
        return len(self.row_ids)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """input_ids, labels: int64 [length]; row_id: int; loss_scale: float32 [length] when there are weights."""
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        a, b = self.starts[i % len(self)], self.starts[i % len(self) + 1]
        ids = self.ids[a:b].astype(np.int64)
        labels = np.where(self.learned[a:b], ids, IGNORED)
        example = {"input_ids": ids, "labels": labels, "row_id": int(self.row_ids[i])}
        if self.scales is not None:
            example["loss_scale"] = self.scales[a:b]
        return example | self.media.get(i % len(self), {})

    @property
    def trained(self) -> np.ndarray:
        """int64 [examples]: learned tokens of each."""
        counts = np.concatenate([[0], np.cumsum(self.learned, dtype=np.int64)])
        return counts[self.starts[1:]] - counts[self.starts[:-1]]

    def fingerprint(self) -> str:
        """A hash that changes with any id, label, weight or the order."""
        digest = hashlib.sha256()
        for part in (self.ids, self.learned, self.starts, self.row_ids, self.scales):
            if part is not None:
                digest.update(np.ascontiguousarray(part).data)
        return digest.hexdigest()


class _Builder:
    """Flat arrays that grow batch by batch."""

    def __init__(self) -> None:
        self.ids, self.learned, self.starts, self.row_ids = array("i"), bytearray(), array("q", [0]), array("q")
        self.scales: array | None = None
        self.media: dict[int, dict[str, Any]] = {}

    def add(self, batch: list[tuple[int, Encoded]]) -> np.ndarray:
        """Append the examples that have a learned token; bool [batch]: which."""
        labels, offsets = array("i"), array("q", [0])
        for _, encoded in batch:
            labels.extend(encoded.labels)
            offsets.append(len(labels))
        learned = np.frombuffer(labels, np.int32) != IGNORED if labels else np.empty(0, np.bool_)
        counts = np.concatenate([[0], np.cumsum(learned)])[np.frombuffer(offsets, np.int64)]
        kept = np.diff(counts) > 0
        before = len(self.ids)
        for (row_id, encoded), keep, a, b in zip(batch, kept, offsets, offsets[1:], strict=False):
            if keep:
                self._extend_scales(encoded)
                self.ids.extend(encoded.input_ids)
                self.learned += learned[a:b].tobytes()
                if encoded.media:
                    self.media[len(self.row_ids)] = encoded.media
                self.starts.append(len(self.ids))
                self.row_ids.append(row_id)
        self._check(labels, np.repeat(kept, np.diff(np.frombuffer(offsets, np.int64))), before)
        return kept

    def _extend_scales(self, encoded: Encoded) -> None:
        if encoded.loss_scale is not None and self.scales is None:
            self.scales = array("f", [1.0]) * len(self.ids)
        if self.scales is not None:
            self.scales.extend(encoded.loss_scale or [1.0] * len(encoded.input_ids))

    def _check(self, labels: array, kept: np.ndarray, before: int) -> None:
        """A label other than the token itself would be lost in this storage."""
        if len(labels):
            wanted = np.frombuffer(labels, np.int32)[kept]
            ids = np.array(self.ids[before:], dtype=np.int32)
            if len(wanted) != len(ids) or ((wanted != IGNORED) & (wanted != ids)).any():
                raise AssertionError("the encoder gave labels that are not its ids")

    def finish(self) -> EncodedDataset:
        return EncodedDataset(
            np.frombuffer(self.ids, np.int32) if self.ids else np.empty(0, np.int32),
            np.frombuffer(self.learned, np.bool_) if self.learned else np.empty(0, np.bool_),
            np.frombuffer(self.starts, np.int64),
            np.frombuffer(self.row_ids, np.int64) if self.row_ids else np.empty(0, np.int64),
            np.frombuffer(self.scales, np.float32) if self.scales else None,
            self.media,
        )


def encode_rows(rows: Rows, encoder: Encoder, *, report: DataReport, split: str = "train") -> EncodedDataset:
    """Encode all rows in order; what can't be encoded or has nothing to learn is counted in `report.split(split)`."""
    count, builder = report.split(split), _Builder()
    for start in range(0, len(rows), BATCH):
        _encode_batch(list(rows[start : start + BATCH]), encoder, builder, count)
    encoded = builder.finish()
    count.lengths, count.trained = encoded.lengths, encoded.trained
    return encoded


def _encode_batch(rows: list[Row], encoder: Encoder, builder: _Builder, count: SplitCount) -> None:
    outcomes = encoder.encode_batch(rows)
    examples = [
        (row, encoded)
        for row, outcome in zip(rows, outcomes, strict=True)
        if isinstance(outcome, list)
        for encoded in outcome
    ]
    kept = builder.add([(row.index, encoded) for row, encoded in examples])
    uses = Counter(id(row) for (row, _), keep in zip(examples, kept, strict=True) if keep)
    for (row, encoded), keep in zip(examples, kept, strict=True):
        if keep:
            _note_example(row, encoded, count)
    for row, outcome in zip(rows, outcomes, strict=True):
        count.rows += 1
        used = uses[id(row)]
        if used:
            count.used += 1
            count.extra += used - 1
        else:
            reason, detail = _why_dropped(outcome)
            count.drops.add(reason, detail, row.source)


def _why_dropped(outcome: list[Encoded] | SwiftError) -> tuple[str, str]:
    if isinstance(outcome, RowDropped):
        return _DROP_NAMES[outcome.reason], outcome.what
    if isinstance(outcome, SwiftError):
        reason = _phrase(outcome.what)
        return reason, outcome.what if reason != outcome.what else ""
    return NO_TRAINED, ""


def _note_example(row: Row, encoded: Encoded, count: SplitCount) -> None:
    count.notes.update(encoded.notes)
    if encoded.truncated:
        count.truncated.add("", f"{encoded.length} tokens kept", row.source)
    if encoded.lost_end:
        count.lost_end.add("", "", row.source)


def _phrase(what: str) -> str:
    """An error's text without what differs from row to row, to count by."""
    return _VARYING.sub("...", what)[:120]
