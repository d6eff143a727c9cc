"""Rows -> token ids and labels, in flat arrays, every row counted.

Promises: each row is used or dropped with a reason; an example's label is its own id or -100. Memory is about five
bytes a token. Knows nothing of templates (the encoder does) and of padding.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import sys
from array import array
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

import numpy as np

from swift.chat import IGNORED, Encoded, RowDropped
from swift.data.report import DataReport, SplitCount
from swift.data.rows import Row, Rows
from swift.errors import ResourceError, SwiftError

BATCH = 1000
CHUNK = 10_000  # rows handed to a process at once
ROWS_PER_PROCESS = 20_000  # below that, starting a process costs more than it saves
NO_TRAINED = "no trained token"
_VARYING = re.compile(r"(?<!\w)'[^']*'|\"[^\"]*\"|[0-9]+")
_DROP_NAMES = {"too_long": "longer than --max_length", "nothing_left": "nothing to learn left within --max_length"}


class Encoder(Protocol):
    """What `encode_rows` needs of `swift.chat.ChatEncoder`: for each row its examples, or the error in their place."""

    def encode_batch(self, rows: Sequence[Any]) -> list[list[Encoded] | SwiftError]: ...


class EncodedDataset(Sequence[dict[str, Any]]):
    """Examples in flat arrays.

    ids int32 [tokens]; learned bool [tokens]; starts int64 [examples + 1]; row_ids int64 [examples]; trained
    int64 [examples], learned tokens of each; scales float32 [tokens] or None when every learned token weighs 1.
    """

    def __init__(
        self,
        ids: np.ndarray,
        learned: np.ndarray,
        starts: np.ndarray,
        row_ids: np.ndarray,
        trained: np.ndarray,
        scales: np.ndarray | None = None,
        media: dict[int, dict[str, Any]] | None = None,
    ):
        self.ids, self.learned, self.starts = ids, learned, starts
        self.row_ids, self.trained, self.scales = row_ids, trained, scales
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
        self.trained = array("q")
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
        trained = np.diff(counts)
        kept = trained > 0
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
        self.trained.extend(trained[kept].tolist())
        self._check(labels, np.repeat(kept, np.diff(np.frombuffer(offsets, np.int64))), before)
        return kept

    def join(self, part: EncodedDataset) -> None:
        """Append examples encoded elsewhere."""
        before, examples = len(self.ids), len(self.row_ids)
        if part.scales is not None and self.scales is None:
            self.scales = array("f", [1.0]) * before
        if self.scales is not None:
            scales = np.ones(len(part.ids), np.float32) if part.scales is None else part.scales
            self.scales.frombytes(scales.tobytes())
        self.ids.frombytes(part.ids.tobytes())
        self.learned += part.learned.tobytes()
        self.starts.frombytes((part.starts[1:] + before).tobytes())
        self.row_ids.frombytes(part.row_ids.tobytes())
        self.trained.frombytes(part.trained.tobytes())
        self.media.update({examples + i: media for i, media in part.media.items()})

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
            np.frombuffer(self.trained, np.int64) if self.trained else np.empty(0, np.int64),
            np.frombuffer(self.scales, np.float32) if self.scales else None,
            self.media,
        )


def encode_rows(
    rows: Rows, encoder: Encoder, *, report: DataReport, split: str = "train", num_proc: int | None = None
) -> EncodedDataset:
    """Encode all rows in order; what can't be encoded or has nothing to learn is counted in `report.split(split)`.

    `num_proc` processes share the work; None: one for each ROWS_PER_PROCESS rows, as far as there are cores. The result
    is the same for any number. ResourceError when a process is killed.
    """
    processes = processes_for(len(rows), num_proc)
    if processes > 1:
        encoded, count = _encode_in_processes(rows, encoder, split, processes)
    else:
        encoded, count = encode_part(rows, encoder, split)
    report.splits[split] = count
    return encoded


def processes_for(rows: int, num_proc: int | None) -> int:
    """How many processes are worth their start; always 1 outside Linux, where forking is not safe or not there."""
    if sys.platform != "linux":
        return 1
    if num_proc is None:
        num_proc = min(len(os.sched_getaffinity(0)), rows // ROWS_PER_PROCESS)
    return max(1, min(num_proc, -(-rows // BATCH)))


def encode_part(rows: Rows, encoder: Encoder, split: str) -> tuple[EncodedDataset, SplitCount]:
    """Encode rows in this process."""
    count, builder = SplitCount(split), _Builder()
    for start in range(0, len(rows), BATCH):
        _encode_batch(list(rows[start : start + BATCH]), encoder, builder, count)
    encoded = builder.finish()
    count.lengths, count.trained = encoded.lengths, encoded.trained
    return encoded, count


class _Worker:
    """What a forked process works with: inherited, not sent."""

    rows: Rows
    encoder: Encoder
    split: str

    @classmethod
    def start(cls, rows: Rows, encoder: Encoder, split: str) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tokenizer's threads are not there after a fork
        cls.rows, cls.encoder, cls.split = rows, encoder, split

    @classmethod
    def encode(cls, part: range) -> tuple[EncodedDataset, SplitCount]:
        return encode_part(cls.rows[part.start : part.stop], cls.encoder, cls.split)


def _encode_in_processes(rows: Rows, encoder: Encoder, split: str, processes: int) -> tuple[EncodedDataset, SplitCount]:
    size = min(CHUNK, -(-len(rows) // (4 * processes * BATCH)) * BATCH)
    parts = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, fork, initializer=_Worker.start, initargs=(rows, encoder, split))
    builder, count = _Builder(), SplitCount(split)
    try:
        with pool:
            for encoded, part in pool.map(_Worker.encode, parts):
                builder.join(encoded)
                count.join(part)
    except BrokenProcessPool as error:
        fix = "free some memory, or encode in one process: --dataset_num_proc 1"
        raise ResourceError("a process that encoded rows was killed (out of memory?)", fix=fix) from error
    encoded = builder.finish()
    count.lengths, count.trained = encoded.lengths, encoded.trained
    return encoded, count


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
