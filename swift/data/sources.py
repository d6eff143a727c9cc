"""Data sets by name -> where they lie, and what is in them, one row at a time.

Promises: a name is found and a value is read in one way, whether rows are then kept (`load`) or pass by (`stream`); a
value is a row or a RowError with its reason. Knows nothing of choosing rows and of tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swift.catalog.registered import REGISTERED, ChangeRow, OwnDataset
from swift.config.data import DataOptions
from swift.data.formats import Canonical, ColumnMap, canonical_row
from swift.data.info import InfoEntry, read_infos
from swift.data.read import Broken, read_file
from swift.data.rows import RowError, Source
from swift.data.spec import DatasetSpec, parse_spec
from swift.data.tally import DatasetCount
from swift.errors import DataError, UsageError
from swift.hub import LocalData, resolve_dataset

DEFAULT_SEED = 42
Resolve = Callable[..., LocalData]


@dataclass(frozen=True)
class Found:
    """Where one data set lies and how to read it. `rows`: how many are wanted, None for all."""

    files: tuple[Path, ...]
    columns: ColumnMap
    rows: int | None
    is_identity: bool
    own: OwnDataset | None = None


class Finder:
    """`find(word)`: what a word of `--dataset` means under these options."""

    def __init__(self, options: DataOptions, use_hf: bool, hub_token: str | None, resolve: Resolve = resolve_dataset):
        self.options, self.use_hf, self.hub_token, self.resolve = options, use_hf, hub_token, resolve
        self.infos = read_infos(options.custom_dataset_info, options.dataset_dir)

    def find(self, word: str) -> Found:
        """UsageError for a word that can't be understood, DataError or HubError for what isn't there."""
        spec = parse_spec(word)
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
        return Found(tuple(data.files), columns, rows, "self-cognition" in tags, own)

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


def places(found: Found) -> list[str]:
    """The files of a data set, and the plugin that makes rows of it, by the names that the report gives them."""
    made = [f"plugin {found.own.entry.name}"] if found.own is not None and found.own.make is not None else []
    return made + [str(path) for path in found.files]


def values(found: Found, files: Sequence[Path] | None = None) -> Iterator[tuple[Any, Source, Path]]:
    """(value, its place, the folder that relative media paths start from) of everything in the data set; `files`: its
    files in another order."""
    if found.own is not None and found.own.make is not None:
        for line, row in enumerate(found.own.make(), 1):
            yield row, Source(found.own.entry.name, line), Path()
    for path in found.files if files is None else files:
        for value, source in read_file(path):
            for row in _unwrapped(value):
                yield row, source, path.parent


def row_of(
    found: Found, value: Any, folder: Path, need_response: bool, keep_columns: bool, notes: Counter[str]
) -> tuple[Canonical, Any]:
    """(the canonical row, the value that it was made of, which a plugin may have changed); RowError for no row."""
    if isinstance(value, Broken):
        raise RowError(value.reason, value.detail)
    if found.own is not None and found.own.change is not None:
        value = _changed(value, found.own.change)
    row = canonical_row(
        value,
        columns=found.columns,
        folder=folder,
        need_response=need_response,
        keep_columns=keep_columns,
        notes=notes,
    )
    return row, value


@contextmanager
def storable() -> Iterator[None]:
    """Around the making and storing of a row: RowError for what UTF-8 or JSON can't hold."""
    try:
        yield
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        if "\udc80" <= half <= "\udcff":  # how the reader kept a byte that isn't UTF-8
            raise RowError("not UTF-8", f"byte 0x{ord(half) - 0xDC00:02x}") from error
        raise RowError("half a surrogate pair", ascii(half)) from error
    except TypeError as error:
        raise RowError("a value that JSON can't hold", str(error)) from error
    except RecursionError as error:
        raise RowError("nested too deeply") from error


def nothing(count: DatasetCount) -> DataError:
    """The error for a data set without a usable row."""
    where = count.files[0] if len(count.files) == 1 else f"--dataset {count.spec}"
    if count.read == 0:
        return DataError("there are no rows in it", where=where, fix="check that this is the right file")
    fix = 'repair the rows, or name the columns with --columns \'{"their_name": "query"}\''
    return DataError(f"none of its {count.read} rows can be used: {count.drops.first()}", where=where, fix=fix)


def check_mix(probabilities: tuple[float, ...], datasets: int) -> None:
    """UsageError unless there is one probability for each data set, and they add up to 1."""
    if len(probabilities) != datasets or min(probabilities) <= 0 or abs(sum(probabilities) - 1) > 1e-6:
        what = f"{' '.join(f'{p:g}' for p in probabilities)} for {datasets} data sets"
        fix = "one probability above 0 for each --dataset, adding up to 1"
        raise UsageError(what, where="--interleave_prob", fix=fix)


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


def _marked(spec: DatasetSpec, name: str) -> str:
    """The name with the hub prefix that the user wrote, which forbids taking it for a path."""
    if spec.use_hf is None:
        return name
    return ("HF::" if spec.use_hf else "MS::") + name
