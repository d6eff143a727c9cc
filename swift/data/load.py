"""Data sets by name -> canonical rows, mixed, sampled and split, every one counted.

Promises: what `--dataset` and `--val_dataset` name is read row by row; each row read ends in exactly one of train, val,
not sampled, or dropped with a reason and file:line. Missing, empty and wholly bad data are DataErrors. Same seed, same
rows. Knows nothing of tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from swift.catalog.registered import REGISTERED, ChangeRow, OwnDataset
from swift.config.data import DataOptions
from swift.data.formats import COLUMNS, ColumnMap, canonical_row
from swift.data.identity import fill_identity, has_placeholder
from swift.data.info import InfoEntry, read_infos
from swift.data.read import Broken, read_file
from swift.data.report import DataReport
from swift.data.row_cache import Read, big_enough, read_cached, row_key
from swift.data.rows import RowError, Rows, RowStore, Source
from swift.data.select import interleave, select
from swift.data.spec import DatasetSpec, parse_spec
from swift.data.tally import DatasetCount
from swift.errors import DataError, UsageError
from swift.hub import LocalData, resolve_dataset

DEFAULT_SEED = 42
Resolve = Callable[..., LocalData]


@dataclass(frozen=True)
class Loaded:
    """`train` and `val`: rows in the order of use (val may be empty). `report` goes on counting in `encode_rows`."""

    train: Rows
    val: Rows
    report: DataReport

    def source(self, row_id: int) -> Source:
        """The file and line of an encoded example's `row_id`."""
        return self.train.store.source(row_id)


@dataclass(frozen=True)
class _Found:
    """Where one data set lies and how to read it."""

    files: tuple[Path, ...]
    columns: ColumnMap
    rows: int | None
    is_identity: bool
    own: OwnDataset | None = None


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
    loader = _Loader(options, use_hf, hub_token, need_response, keep_columns, resolve)
    loaded = Loaded(*loader.load(cache))
    if check:
        loaded.report.check(strict=options.strict, max_drop_ratio=options.max_drop_ratio)
    return loaded


class _Loader:
    def __init__(
        self,
        options: DataOptions,
        use_hf: bool,
        hub_token: str | None,
        need_response: bool,
        keep: bool,
        resolve: Resolve,
    ):
        self.options, self.use_hf, self.hub_token = options, use_hf, hub_token
        self.need_response, self.keep_columns, self.resolve = need_response, keep, resolve
        self.seed = DEFAULT_SEED if options.data_seed is None else options.data_seed
        self.store, self.report = RowStore(), DataReport()
        self.found: dict[str, _Found] = {}
        self.infos = read_infos(options.custom_dataset_info, options.dataset_dir)

    def load(self, cache: Path | None) -> Read:
        """Find everything, then read it or take it from the cache."""
        options = self.options
        if options.interleave_prob:
            _check_mix(options.interleave_prob, len(options.dataset))
        for word in (*options.dataset, *options.val_dataset):
            self.found[word] = self._find(parse_spec(word))
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

    # --- finding -------------------------------------------------------------------------------------------------

    def _find(self, spec: DatasetSpec) -> _Found:
        info = self.infos.get(spec.name.lower()) if not Path(spec.name).expanduser().exists() else None
        use_hf = self.use_hf if spec.use_hf is None else spec.use_hf
        name, subsets, split = spec.name, spec.subsets, None
        if info is not None:
            hub_id = info.hf_id if use_hf else info.ms_id
            name = str(info.path) if info.path else hub_id or info.hf_id or info.ms_id or name
            use_hf = use_hf if info.path or hub_id else info.hf_id is not None
            subsets = subsets or ((info.subset,) if info.subset else ())
            split = info.split
        if subsets and Path(name).expanduser().is_file():
            raise UsageError(
                f"a file has no subsets (it says :{'/'.join(subsets)})",
                where=f"--dataset {spec.text!r}",
                fix=f"write {name}" + (f"#{spec.rows}" if spec.rows else ""),
            )
        data = self.resolve(
            _marked(spec, name),
            dataset_dir=self.options.dataset_dir,
            use_hf=use_hf,
            subsets=() if subsets == ("all",) else subsets,
            split=split,
            hub_token=self.hub_token,
        )
        columns, tags = self._columns(info, data, subsets)
        rows = spec.rows if spec.rows is not None or info is None else info.rows
        own = REGISTERED.datasets.get(spec.name.lower()) if spec.use_hf is None else None
        return _Found(tuple(data.files), columns, rows, "self-cognition" in tags, own)

    def _columns(
        self, info: InfoEntry | None, data: LocalData, subsets: Sequence[str]
    ) -> tuple[ColumnMap, Sequence[str]]:
        """The column map of a data set: --columns over its info entry over the catalog."""
        tags: Sequence[str] = data.entry.tags if data.entry else ()
        columns = ColumnMap(rename=data.entry.columns if data.entry else {})
        if info is not None:
            own = (info.subset_columns or {}).get(subsets[0]) if len(subsets) == 1 else None
            columns, tags = own or info.columns, info.tags or tags
        return replace(columns, rename={**columns.rename, **(self.options.columns or {})}), tags

    # --- reading -------------------------------------------------------------------------------------------------

    def _read(self, found: _Found, count: DatasetCount) -> np.ndarray:
        """Store the usable rows and return their indices."""
        first = len(self.store)
        marked: list[int] = []
        for value, source, folder in self._values(found, count):
            count.read += 1
            try:
                if isinstance(value, Broken):
                    raise RowError(value.reason, value.detail)
                if found.own is not None and found.own.change is not None:
                    value = _changed(value, found.own.change)
                index = self._append(value, source, folder, found.columns, count)
            except RowError as error:
                count.drops.add(error.reason, error.detail, source)
                continue
            if has_placeholder(self.store.json(index)):
                marked.append(index)
        usable = len(self.store) - first
        if usable == 0:
            raise self._nothing(count)
        names, authors = self.options.model_name, self.options.model_author
        where = f"--dataset {count.spec!r}"
        count.filled = fill_identity(self.store, marked, usable, names, authors, where, found.is_identity)
        return np.arange(first, first + usable, dtype=np.int64)

    def _values(self, found: _Found, count: DatasetCount) -> Iterator[tuple[Any, Source, Path]]:
        if found.own is not None and found.own.make is not None:
            name = found.own.entry.name
            count.files.append(f"plugin {name}")
            for line, row in enumerate(found.own.make(), 1):
                yield row, Source(name, line), Path()
        for path in found.files:
            count.files.append(str(path))
            for value, source in read_file(path):
                for row in _unwrapped(value):
                    yield row, source, path.parent

    def _append(self, value: Any, source: Source, folder: Path, columns: ColumnMap, count: DatasetCount) -> int:
        notes: Counter[str] = Counter()
        try:
            row = canonical_row(
                value,
                columns=columns,
                folder=folder,
                need_response=self.need_response,
                keep_columns=self.keep_columns,
                notes=notes,
            )
            index = _store(self.store, row.data, source)
        except RecursionError as error:
            raise RowError("nested too deeply") from error
        count.formats[row.format] += 1
        count.unused.update(value.keys() - COLUMNS - columns.rename.keys())
        count.notes.update(notes)
        return index

    def _nothing(self, count: DatasetCount) -> DataError:
        where = count.files[0] if len(count.files) == 1 else f"--dataset {count.spec}"
        if count.read == 0:
            return DataError("there are no rows in it", where=where, fix="check that this is the right file")
        fix = 'repair the rows, or name the columns with --columns \'{"their_name": "query"}\''
        return DataError(f"none of its {count.read} rows can be used: {count.drops.first()}", where=where, fix=fix)


def _changed(value: Any, change: ChangeRow) -> Any:
    """The row that a plugin makes of a row; RowError where it leaves it out or fails."""
    try:
        made = change(dict(value))
    except Exception as error:
        raise RowError("the plugin's change of the row failed", f"{type(error).__name__}: {error}") from error
    if made is None:
        raise RowError("left out by the plugin")
    return made


def _unwrapped(value: Any) -> list[Any]:
    """A list is a conversation when it holds messages, else the rows that were put into it."""
    if not isinstance(value, list):
        return [value]
    if value and all(isinstance(item, dict) and ("role" in item or "from" in item) for item in value):
        return [{"messages": value}]
    return value or [value]


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *parts])


def _check_mix(probabilities: tuple[float, ...], datasets: int) -> None:
    if len(probabilities) != datasets or min(probabilities) <= 0 or abs(sum(probabilities) - 1) > 1e-6:
        what = f"{' '.join(f'{p:g}' for p in probabilities)} for {datasets} data sets"
        fix = "one probability above 0 for each --dataset, adding up to 1"
        raise UsageError(what, where="--interleave_prob", fix=fix)


def _store(store: RowStore, data: dict[str, Any], source: Source) -> int:
    """Append to the store; RowError for what UTF-8 or JSON can't hold."""
    try:
        return store.append(data, source)
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        if "\udc80" <= half <= "\udcff":  # how the reader kept a byte that isn't UTF-8
            raise RowError("not UTF-8", f"byte 0x{ord(half) - 0xDC00:02x}") from error
        raise RowError("half a surrogate pair", ascii(half)) from error
    except TypeError as error:
        raise RowError("a value that JSON can't hold", str(error)) from error


def _marked(spec: DatasetSpec, name: str) -> str:
    """The name with the hub prefix that the user wrote, which forbids taking it for a path."""
    if spec.use_hf is None:
        return name
    return ("HF::" if spec.use_hf else "MS::") + name
