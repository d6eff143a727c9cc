"""Rows that are encoded when they are asked for, as sequences that a trainer can index.

Promises: an example has the ids, labels and weights that `encode_rows` gives its row; what became of every row travels
with the examples (`Seen`), so it is counted once, by whoever gets the example. A stream's examples come in the
stream's order, whatever the process or worker that asks: each reads for itself and passes over what others take. Knows
nothing of templates and of files.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from swift.chat import IGNORED, Encoded
from swift.data.encode import Encoder, why_dropped
from swift.data.pack import best_fit_bins
from swift.data.rows import Row, Rows, Source
from swift.data.seen import Fate, Lost, Part, Seen, SeenBatch
from swift.data.stream import RowStream, Taken
from swift.errors import DataError

CHUNK = 256  # rows that go to the encoder together
MOST_IN_VAIN = 100_000  # rows one behind the other that can't be encoded
BINS = 64  # packed rows that are made from one stretch of a stream

Example = dict[str, Any]


def examples(stream: RowStream, encoder: Encoder) -> Iterator[Example]:
    """The stream's examples, each with `seen`; DataError when no row of a pass can be encoded."""
    lost: list[Lost] = []
    fates: list[Fate] = []
    in_vain: Counter[int] = Counter()
    rows = iter(stream)
    while True:
        batch = list(islice(rows, CHUNK))
        outcomes = encoder.encode_batch([_row(taken, stream) for taken in batch])
        for taken, outcome in zip(batch, outcomes, strict=True):
            lost += taken.lost
            place = stream.place(taken.row_id)
            parts = _learned(outcome)
            if not parts:
                fates.append(Fate(taken.facts, *why_dropped(outcome), place))
                again = hash((taken.row_id, taken.text))
                in_vain[again] += 1
                # at the end of a pass, at the beginning of the next, and then once more: a whole pass was in vain
                if len(fates) > MOST_IN_VAIN or in_vain[again] > 2:
                    raise _no_example(fates)
                continue
            fates.append(Fate(taken.facts, "", "", place))
            for n, encoded in enumerate(parts):
                part = _part(encoded, n == 0, place)
                yield _example(encoded, taken.row_id, Seen(tuple(lost), tuple(fates), part))
                lost, fates, in_vain = [], [], Counter()


def _no_example(fates: Sequence[Fate]) -> DataError:
    fate = fates[0]
    what = f"none of {len(fates)} rows, one behind the other, can be encoded: {fate.reason}"
    fix = "--max_length, --template and --columns decide what can be used"
    return DataError(what + (f" ({fate.detail})" if fate.detail else ""), where=fate.place, fix=fix)


def _row(taken: Taken, stream: RowStream) -> Row:
    file, _, line = stream.place(taken.row_id).rpartition(":")
    return Row(json.loads(taken.text), Source(file, int(line)), taken.row_id)


def _learned(outcome: Any) -> list[Encoded]:
    """The examples of a row that something is learned of."""
    if not isinstance(outcome, list):
        return []
    return [encoded for encoded in outcome if encoded.trained]


def _part(encoded: Encoded, first: bool, place: str) -> Part:
    notes = tuple(encoded.notes)
    return Part(encoded.length, encoded.trained, first, place, notes, encoded.truncated, encoded.lost_end)


def _example(encoded: Encoded, row_id: int, seen: Seen) -> Example:
    """As `EncodedDataset` gives it, with `seen`."""
    ids = encoded.ids.astype(np.int64)
    labels = np.where(encoded.learned, ids, IGNORED)
    example: Example = {"input_ids": ids, "labels": labels, "row_id": row_id, "seen": seen}
    if encoded.scales is not None:
        example["loss_scale"] = encoded.scales.astype(np.float32)
    if encoded.media:
        example["media"] = encoded.media
    return example


def bins(found: Iterable[Example], capacity: int, seed: int) -> Iterator[list[Example]]:
    """Examples in packed rows of at most `capacity` tokens: best fit within one stretch after the other, the rows of a
    stretch in random order. DataError for an example that is longer."""
    rng = np.random.RandomState(seed % 2**32)
    held: list[Example] = []
    room = BINS * capacity
    for example in found:
        length = len(example["input_ids"])
        if length > room and held:
            packed = best_fit_bins([len(one["input_ids"]) for one in held], capacity, seed)
            for n in rng.permutation(len(packed)):
                yield [held[i] for i in packed[n]]
            held, room = [], BINS * capacity
        held.append(example)
        room -= length


class Streamed(Sequence[Any]):
    """The first `count` items of what `make()` iterates over. Asked for in rising order they cost one course through
    it; an item before the last one given begins anew. `lengths`: not known."""

    lengths = None

    def __init__(self, make: Callable[[], Iterator[Any]], count: int):
        self.make, self.count = make, count
        self._items: Iterator[Any] | None = None
        self._next, self._process = 0, 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        if not 0 <= i < self.count:
            raise IndexError(i)
        if self._items is None or i < self._next or self._process != os.getpid():
            # a forked process shares the parent's places in open files
            self._items, self._next, self._process = self.make(), 0, os.getpid()
        while self._next < i:
            next(self._items)
            self._next += 1
        self._next += 1
        return next(self._items)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_items": None}


class Lazy(Sequence[list[Example]]):
    """Rows encoded one at a time: item i is the list of row i's examples. A row that can't be used is one example of
    one token without a label, so that every row has its place. `lengths`: not known."""

    lengths = None

    def __init__(self, rows: Rows, encoder: Encoder):
        self.rows, self.encoder = rows, encoder

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> list[Example]:
        if not 0 <= i < len(self.rows):
            raise IndexError(i)
        row = self.rows[i]
        (outcome,) = self.encoder.encode_batch([row])
        place = str(row.source)
        parts = _learned(outcome)
        if not parts:
            seen = Seen((), (Fate(None, *why_dropped(outcome), place),), None)
            return [_example(Encoded.of([0], [IGNORED]), row.index, seen)]
        fate = Fate(None, "", "", place)
        return [
            _example(encoded, row.index, Seen((), () if n else (fate,), _part(encoded, n == 0, place)))
            for n, encoded in enumerate(parts)
        ]


class SeenCollator:
    """`collate` for batches of examples with `seen`: the batch has them as one `SeenBatch`. Examples without a part are
    left out; of a batch of nothing else one stays, without row ids. Examples without `seen` pass (validation rows)."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]], takes_media: bool):
        self.collate, self.takes_media = collate, takes_media

    def __call__(self, batch: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        seen = [example["seen"] for example in batch if "seen" in example]
        real = [example for example in batch if "seen" not in example or example["seen"].part is not None]
        if not self.takes_media and any("media" in example for example in real):
            what = "a row has images, videos or audio, and what reads them isn't installed"
            raise DataError(what, fix="install the packages that the model's processor needs, see swift doctor")
        made = self.collate(list(real or batch[:1]))
        if not real:
            made["row_ids"] = []
        return made | {"seen": SeenBatch(seen)} if seen else made
