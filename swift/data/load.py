"""Data sets by name -> canonical rows, mixed, sampled and split, every one counted.

Promises: what `--dataset` and `--val_dataset` name is read row by row; each row read ends in exactly one of train, val,
not sampled, or dropped with a reason and file:line. Missing, empty and wholly bad data are DataErrors. Same seed, same
rows. Knows nothing of tokens.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swift.config.data import DataOptions
from swift.data.formats import COLUMNS
from swift.data.identity import fill_identity, has_placeholder
from swift.data.report import DataReport
from swift.data.row_cache import Read, big_enough, read_cached, row_key
from swift.data.rows import RowError, Rows, RowStore, Source
from swift.data.select import interleave, select
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
from swift.errors import UsageError
from swift.hub import resolve_dataset


@dataclass(frozen=True)
class Loaded:
    """`train` and `val`: rows in the order of use (val may be empty). `report` goes on counting in `encode_rows`."""

    train: Rows
    val: Rows
    report: DataReport

    def source(self, row_id: int) -> Source:
        """The file and line of an encoded example's `row_id`."""
        return self.train.store.source(row_id)

    def place(self, row_id: int) -> str:
        """file:line of an encoded example's row."""
        return str(self.source(row_id))


def load_rows(
    options: DataOptions,
    *,
    use_hf: bool = False,
    hub_token: str | None = None,
    need_response: bool = True,
    keep_columns: bool = False,
    check: bool = True,
    cache: Path | None = None,
    resolve: Resolve = resolve_dataset,
) -> Loaded:
    """Read, sample, split and shuffle the rows that the options name.

    `need_response` False also takes rows without an answer (what inference and online RL read). `keep_columns` keeps
    columns that the canonical row doesn't have. `resolve` finds a name's files, as `swift.hub.resolve_dataset` does.
    The options' `interleave_prob`, one for each data set, mixes them by chance until one has no row left
    ("first_exhausted") or all have been used up ("all_exhausted"); without it they follow each other or are shuffled
    together. `cache`: where the rows of big files are kept for the next run.
    DataError for missing, empty or wholly bad data and, with `check`, under `strict` for any dropped row and when more
    than `max_drop_ratio` of the rows are dropped; UsageError for a wrong data set word.
    """
    loader = _Loader(options, Finder(options, use_hf, hub_token, resolve), need_response, keep_columns)
    loaded = Loaded(*loader.load(cache))
    if check:
        loaded.report.check(strict=options.strict, max_drop_ratio=options.max_drop_ratio)
    return loaded


class _Loader:
    def __init__(self, options: DataOptions, finder: Finder, need_response: bool, keep: bool):
        self.options, self.finder = options, finder
        self.need_response, self.keep_columns = need_response, keep
        self.seed = DEFAULT_SEED if options.data_seed is None else options.data_seed
        self.store, self.report = RowStore(), DataReport()
        self.found: dict[str, Found] = {}

    def load(self, cache: Path | None) -> Read:
        """Find everything, then read it or take it from the cache."""
        options = self.options
        if options.interleave_prob:
            check_mix(options.interleave_prob, len(options.dataset))
        for word in (*options.dataset, *options.val_dataset):
            self.found[word] = self.finder.find(word)
        files = [file for found in self.found.values() for file in found.files]
        if cache is None or not big_enough(files) or any(found.own for found in self.found.values()):
            return self._load()
        facts = [self.options, self.need_response, self.keep_columns, *self.found.values()]
        return read_cached(cache, row_key(files, list(map(repr, facts))), self._load)

    def _load(self) -> Read:
        options = self.options
        ratio = 0.0 if options.val_dataset else options.split_dataset_ratio
        if options.val_dataset and options.split_dataset_ratio:
            self.report.remarks.append("--split_dataset_ratio is not used: --val_dataset names the rows to evaluate on")
        chosen = [self._dataset(word, n, ratio, options.dataset_shuffle) for n, word in enumerate(options.dataset)]
        val = _joined([part for _, part in chosen])
        train = self._mixed([part for part, _ in chosen])
        if options.val_dataset:
            words = enumerate(options.val_dataset, len(options.dataset))
            own = [self._dataset(word, n, 0.0, options.val_dataset_shuffle, as_val=True) for n, word in words]
            val = _joined([part for part, _ in own])
        if options.val_dataset_shuffle:
            val = np.random.RandomState(self.seed).permutation(val)
        rows = Rows(self.store, train), Rows(self.store, val)
        self.report.note_duplicates(*rows)
        return *rows, self.report

    def _mixed(self, parts: list[np.ndarray]) -> np.ndarray:
        """The training rows of all data sets in the order of use."""
        probabilities, stopping = self.options.interleave_prob, self.options.stopping_strategy
        rng = np.random.RandomState(self.seed)
        if not probabilities:
            return rng.permutation(_joined(parts)) if self.options.dataset_shuffle else _joined(parts)
        if not all(len(part) for part in parts):
            what = "a data set has no training row left to mix"
            raise UsageError(what, where="--interleave_prob", fix="lower --split_dataset_ratio")
        if self.options.dataset_shuffle:
            parts = [rng.permutation(part) for part in parts]
        rows, origin = interleave(parts, probabilities, stopping == "all_exhausted", rng)
        for k, count in enumerate(self.report.datasets[: len(parts)]):
            used = rows[origin == k]
            count.unsampled += len(np.unique(parts[k])) - len(np.unique(used))
            count.train, count.repeated = len(used), len(used) - len(np.unique(used))
        return rows

    def _dataset(
        self, word: str, number: int, ratio: float, shuffle: bool, as_val: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read one data set: the store's indices of its training and of its val rows."""
        found = self.found[word]
        count = DatasetCount(word)
        self.report.datasets.append(count)
        indices = self._read(found, count)
        rng = np.random.RandomState((self.seed + number) % 2**32)
        chosen = select(len(indices), found.rows, ratio, shuffle, rng)
        count.unsampled = len(indices) - chosen.distinct
        count.repeated = len(chosen.train) - (chosen.distinct - len(chosen.val))
        count.train, count.val = len(chosen.train), len(chosen.val)
        if as_val:
            count.train, count.val = 0, len(chosen.train)
        return indices[chosen.train], indices[chosen.val]

    def _read(self, found: Found, count: DatasetCount) -> np.ndarray:
        """Store the usable rows and return their indices."""
        first = len(self.store)
        marked: list[int] = []
        count.files += places(found)
        for value, source, folder in values(found):
            count.read += 1
            try:
                index = self._append(found, value, source, folder, count)
            except RowError as error:
                count.drops.add(error.reason, error.detail, source)
                continue
            if has_placeholder(self.store.json(index)):
                marked.append(index)
        usable = len(self.store) - first
        if usable == 0:
            raise nothing(count)
        names, authors = self.options.model_name, self.options.model_author
        where = f"--dataset {count.spec!r}"
        count.filled = fill_identity(self.store, marked, usable, names, authors, where, found.is_identity)
        return np.arange(first, first + usable, dtype=np.int64)

    def _append(self, found: Found, value: Any, source: Source, folder: Path, count: DatasetCount) -> int:
        notes: Counter[str] = Counter()
        with storable():
            row, value = row_of(found, value, folder, self.need_response, self.keep_columns, notes)
            index = self.store.append(row.data, source)
        count.formats[row.format] += 1
        count.unused.update(value.keys() - COLUMNS - found.columns.rename.keys())
        count.notes.update(notes)
        return index


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *parts])
