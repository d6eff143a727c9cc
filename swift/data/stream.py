"""Rows that pass by: data sets read from their files as rows are asked for, shuffled through a buffer, without an end.

Promises: memory holds the buffer and nothing else of the files (a JSON array in one file excepted); the order is a
function of the files, the options and the seed alone, so any process that starts anew sees the same rows; every row of
a pass comes once, then the next pass begins, in another order. What can't be read is told with the row that follows it.
Knows nothing of tokens.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from swift.config.data import DataOptions
from swift.data.formats import COLUMNS
from swift.data.identity import Identity, has_placeholder
from swift.data.rows import RowError, compact
from swift.data.seen import Facts, Lost
from swift.data.sources import (
    DEFAULT_SEED,
    Finder,
    Found,
    Resolve,
    check_mix,
    nothing,
    places,
    row_of,
    storable,
    values,
)
from swift.data.tally import DatasetCount
from swift.hub import resolve_dataset

LINES = 2**40  # row ids: the file's number times this, and the line
BYTES_A_ROW = 1024  # for the weight of a data set of which N rows are wanted


class Taken(NamedTuple):
    """A row: `text`, the canonical row as JSON; `lost`: what was read in vain since the row before it."""

    text: bytes
    row_id: int
    facts: Facts
    lost: tuple[Lost, ...]


class RowStream:
    """Iterating gives `Taken` rows, from the first one on, for ever; DataError when a whole pass has no usable row.

    `buffer`: rows that the next one is drawn from at random; 0 keeps the order of the files. Several data sets follow
    each other in that order; shuffled, they come in proportion to their sizes, or to `interleave_prob`. N rows of a
    data set are its first N.
    """

    def __init__(
        self,
        options: DataOptions,
        buffer: int,
        *,
        use_hf: bool = False,
        hub_token: str | None = None,
        resolve: Resolve = resolve_dataset,
    ):
        finder = Finder(options, use_hf, hub_token, resolve)
        if options.interleave_prob:
            check_mix(options.interleave_prob, len(options.dataset))
        self.words = options.dataset
        self.found = [finder.find(word) for word in options.dataset]
        self.seed = DEFAULT_SEED if options.data_seed is None else options.data_seed
        self.buffer = buffer if options.dataset_shuffle else 0
        self.probabilities, self.to_the_last = options.interleave_prob, options.stopping_strategy == "all_exhausted"
        self.identities = [
            Identity(options.model_name, options.model_author, f"--dataset {word!r}", found.is_identity)
            for word, found in zip(self.words, self.found, strict=True)
        ]
        names = [name for found in self.found for name in _sources(found)]
        self.files = list(dict.fromkeys(names))
        self.numbers = {name: number for number, name in enumerate(self.files)}

    def __iter__(self) -> Iterator[Taken]:
        return iter(_Reading(self))

    def place(self, row_id: int) -> str:
        """file:line of a row."""
        return f"{self.files[row_id // LINES]}:{row_id % LINES}"

    def counts(self) -> list[DatasetCount]:
        """One empty count for each data set."""
        return [DatasetCount(w, files=places(f)) for w, f in zip(self.words, self.found, strict=True)]


def _sources(found: Found) -> list[str]:
    """The names that the rows of a data set give as their file."""
    made = [found.own.entry.name] if found.own is not None and found.own.make is not None else []
    return made + [str(path) for path in found.files]


class _Reading:
    """One course through the stream from its beginning."""

    def __init__(self, stream: RowStream):
        self.stream = stream
        self.rounds = [0] * len(stream.found)  # how often each data set was begun
        self.first = stream.counts()  # of each data set's first round: for the error when it has nothing
        self.lost: list[Lost] = []

    def __iter__(self) -> Iterator[Taken]:
        for number in itertools.count():
            rng = np.random.RandomState((self.stream.seed + number) % 2**32)
            yield from _shuffled(self._pass(rng), self.stream.buffer, rng)

    def _pass(self, rng: np.random.RandomState) -> Iterator[Taken]:
        stream = self.stream
        parts = [self._dataset(k, rng) for k in range(len(stream.found))]
        if stream.probabilities:
            weights = np.array(stream.probabilities)
        elif stream.buffer and len(parts) > 1:
            weights = np.array([_weight(found) for found in stream.found], float)
        else:
            yield from itertools.chain.from_iterable(parts)
            return
        ended: set[int] = set()
        while len(ended) < len(parts):
            k = int(rng.choice(len(parts), p=weights / weights.sum()))
            taken = next(parts[k], None)
            if taken is not None:
                yield taken
                continue
            ended.add(k)
            if not stream.probabilities:
                weights[k] = 0.0  # all are read to their ends, each once
            elif not stream.to_the_last:
                return
            elif len(ended) < len(parts):
                parts[k] = self._dataset(k, rng)

    def _dataset(self, k: int, rng: np.random.RandomState) -> Iterator[Taken]:
        """The rows of a data set once, or as many as are wanted; DataError when it has none."""
        wanted, given = self.stream.found[k].rows, 0
        while True:
            before = given
            for taken in self._round(k, rng):
                yield taken
                given += 1
                if given == wanted:
                    return
            if given == before:
                raise nothing(self.first[k])
            if wanted is None:
                return

    def _round(self, k: int, rng: np.random.RandomState) -> Iterator[Taken]:
        stream, found, repeated = self.stream, self.stream.found[k], self.rounds[k] > 0
        self.rounds[k] += 1
        files: Sequence[Path] = found.files
        if stream.buffer and found.rows is None:
            files = [files[i] for i in rng.permutation(len(files))]
        for value, source, folder in values(found, files):
            if not repeated:
                self.first[k].read += 1
            notes: Counter[str] = Counter()
            try:
                with storable():
                    row, value = row_of(found, value, folder, True, False, notes)
                    text = compact(row.data)
                    filled = has_placeholder(text)
                    if filled:
                        other = compact(stream.identities[k].filled(row.data))
                        text, filled = other, other != text
            except RowError as error:
                if not repeated:
                    self.first[k].drops.add(error.reason, error.detail, source)
                    self.lost.append(Lost(k, error.reason, error.detail, str(source)))
                continue
            unused = tuple(str(name) for name in value.keys() - COLUMNS - found.columns.rename.keys())
            facts = Facts(k, row.format, repeated, filled, tuple(notes.elements()), unused)
            yield Taken(text, stream.numbers[source.file] * LINES + source.line, facts, tuple(self.lost))
            self.lost = []


def _weight(found: Found) -> int:
    """About how much of all rows a data set is: its bytes, those of the rows that are wanted of it."""
    size = sum(path.stat().st_size for path in found.files)
    return max(1, size if found.rows is None else found.rows * BYTES_A_ROW)


def _shuffled(rows: Iterator[Taken], size: int, rng: np.random.RandomState) -> Iterator[Taken]:
    """Each row in the place of a random one of the `size` rows held; the rest in random order."""
    held: list[Taken] = []
    for row in rows:
        if not size:
            yield row
        elif len(held) < size:
            held.append(row)
        else:
            at = rng.randint(size)
            yield held[at]
            held[at] = row
    for at in rng.permutation(len(held)):
        yield held[at]
