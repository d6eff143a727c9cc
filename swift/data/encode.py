"""Rows -> token ids and labels, every row counted, in as many processes as pay.

Promises: each row is used or dropped with a reason; the result is the same for any number of processes. Knows nothing
of templates (the encoder does) and of padding.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from swift.chat import Encoded, RowDropped
from swift.data.encoded import Builder, EncodedDataset
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


def encode_rows(
    rows: Rows,
    encoder: Encoder,
    *,
    report: DataReport,
    split: str = "train",
    num_proc: int | None = None,
    directory: Path | None = None,
) -> EncodedDataset:
    """Encode all rows in order; what can't be encoded or has nothing to learn is counted in `report.split(split)`.

    `num_proc` processes share the work; None: one for each ROWS_PER_PROCESS rows, as far as there are cores. The result
    is the same for any number. The arrays are written into `directory` and mapped, or kept in memory. ResourceError
    when a process is killed.
    """
    processes = processes_for(len(rows), num_proc)
    builder, count = Builder(directory), SplitCount(split)
    if processes > 1:
        _encode_in_processes(rows, encoder, processes, builder, count)
    else:
        _encode_here(rows, encoder, builder, count)
    encoded = builder.finish()
    count.lengths, count.trained = encoded.lengths, encoded.trained
    report.splits[split] = count
    return encoded


def processes_for(rows: int, num_proc: int | None) -> int:
    """How many processes are worth their start; always 1 outside Linux, where forking is not safe or not there."""
    if sys.platform != "linux":
        return 1
    if num_proc is None:
        num_proc = min(len(os.sched_getaffinity(0)), rows // ROWS_PER_PROCESS)
    return max(1, min(num_proc, -(-rows // BATCH)))


def _encode_here(rows: Rows, encoder: Encoder, builder: Builder, count: SplitCount) -> None:
    for start in range(0, len(rows), BATCH):
        with _uncollected():
            _encode_batch(list(rows[start : start + BATCH]), encoder, builder, count)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No search for reference cycles meanwhile: a batch makes none, and among all that libraries hold the search would
    take a fifth of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class _Worker:
    """What a forked process works with: inherited, not sent."""

    rows: Rows
    encoder: Encoder

    @classmethod
    def start(cls, rows: Rows, encoder: Encoder) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tokenizer's threads are not there after a fork
        cls.rows, cls.encoder = rows, encoder

    @classmethod
    def encode(cls, part: range) -> tuple[EncodedDataset, SplitCount]:
        builder, count = Builder(), SplitCount("part")
        _encode_here(cls.rows[part.start : part.stop], cls.encoder, builder, count)
        return builder.finish(), count


def _encode_in_processes(rows: Rows, encoder: Encoder, processes: int, builder: Builder, count: SplitCount) -> None:
    size = min(CHUNK, -(-len(rows) // (4 * processes * BATCH)) * BATCH)
    parts = [range(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
    fork = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(processes, fork, initializer=_Worker.start, initargs=(rows, encoder))
    try:
        with pool:
            for encoded, part in pool.map(_Worker.encode, parts):
                builder.join(encoded)
                count.join(part)
    except BrokenProcessPool as error:
        fix = "free some memory, or encode in one process: --dataset_num_proc 1"
        raise ResourceError("a process that encoded rows was killed (out of memory?)", fix=fix) from error


def _encode_batch(rows: list[Row], encoder: Encoder, builder: Builder, count: SplitCount) -> None:
    outcomes = encoder.encode_batch(rows)
    examples: list[Encoded] = []
    owners: list[int] = []  # the place of each example's row
    for place, outcome in enumerate(outcomes):
        if isinstance(outcome, list):
            examples += outcome
            owners += [place] * len(outcome)
    kept = builder.add([rows[place].index for place in owners], examples)
    for place, encoded, keep in zip(owners, examples, kept.tolist(), strict=True):
        if keep and (encoded.notes or encoded.truncated):
            _note_example(rows[place], encoded, count)
    uses = np.bincount(np.array(owners, np.int64)[kept], minlength=len(rows))
    used = int(np.count_nonzero(uses))
    count.rows += len(rows)
    count.used += used
    count.extra += int(uses.sum()) - used
    for place in np.flatnonzero(uses == 0).tolist():
        count.drops.add(*why_dropped(outcomes[place]), rows[place].source)


def why_dropped(outcome: list[Encoded] | SwiftError) -> tuple[str, str]:
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
