"""Rows and where they come from.

Promises: a `Row` is a plain dict in the canonical shape (see `formats`) that knows its file and line; a `RowStore`
holds millions of rows compactly (their JSON text, not Python objects) and `Rows` is an ordered choice of them, possibly
with repeats. Knows nothing of files, columns or tokens.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from swift.runs import write_text

# the arrays of a store on disk -> dtype
STORED = {"text": "<u1", "starts": "<u8", "ends": "<u8", "file_of": "<u4", "line_of": "<u8"}
FILES = "files.json"
_MEDIA = {"images", "videos", "audios"}
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_parsed = json.JSONDecoder().raw_decode  # of `compact` text, which has no white space around it


class RowError(Exception):
    """A row that can't be used: `reason` is a fixed phrase to count by, `detail` is about this row."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


class Source(NamedTuple):
    """A place in a data file. `line` counts from 1: the line of text files, the row of parquet and arrow files."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Row(dict):
    """A canonical row. `index` is its number in the store it was read into: the `row_id` of encoded examples."""

    __slots__ = ("index", "source")

    def __init__(self, data: Mapping[str, Any], source: Source, index: int):
        super().__init__(data)
        self.source, self.index = source, index

    def __reduce__(self):
        return Row, (dict(self), self.source, self.index)


class RowStore:
    """Append-only storage: one JSON text per row in one buffer, file and line in flat arrays."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._starts, self._ends = array("Q"), array("Q")
        self._files: list[str] = []
        self._file_numbers: dict[str, int] = {}
        self._file_of = array("I")
        self._line_of = array("Q")
        self._hashes = array("q")
        self.has_media = False

    def __len__(self) -> int:
        return len(self._line_of)

    def append(self, data: Mapping[str, Any], source: Source) -> int:
        """Add a row and return its index; UnicodeEncodeError when a text holds half a surrogate pair."""
        text = compact(data)
        number = self._file_numbers.get(source.file)
        if number is None:
            number = self._file_numbers[source.file] = len(self._files)
            self._files.append(source.file)
        self._starts.append(len(self._text))
        self._text += text
        self._ends.append(len(self._text))
        self._file_of.append(number)
        self._line_of.append(source.line)
        self._hashes.append(hash(text))
        self.has_media = self.has_media or not _MEDIA.isdisjoint(data)
        return len(self) - 1

    def replace(self, index: int, data: Mapping[str, Any]) -> None:
        """Put other content in the place of a row; its source stays."""
        text = compact(data)
        self._starts[index] = len(self._text)
        self._text += text
        self._ends[index] = len(self._text)
        self._hashes[index] = hash(text)

    def json(self, index: int) -> bytes:
        """The row as compact UTF-8 JSON."""
        return bytes(memoryview(self._text)[self._starts[index] : self._ends[index]])

    def source(self, index: int) -> Source:
        return Source(self._files[self._file_of[index]], self._line_of[index])

    def row(self, index: int) -> Row:
        text = str(memoryview(self._text)[self._starts[index] : self._ends[index]], "utf-8")
        return Row(_parsed(text)[0], self.source(index), index)

    def content_hashes(self) -> np.ndarray:
        """int64 [rows]: equal for rows of equal content; only meaningful inside this process."""
        return np.frombuffer(self._hashes, dtype=np.int64)

    def save(self, directory: Path) -> None:
        """Write the rows as files for `load`."""
        for name, kind in STORED.items():
            np.frombuffer(getattr(self, f"_{name}") or b"", kind).tofile(directory / f"{name}.bin")
        write_text(directory / FILES, json.dumps(self._files))

    @classmethod
    def load(cls, directory: Path) -> RowStore:
        """Map the rows that `save` wrote. They can't be added to, and have no content hashes."""
        store = cls()
        for name, kind in STORED.items():
            setattr(store, f"_{name}", np.memmap(directory / f"{name}.bin", kind, "r"))
        store._files = json.loads((directory / FILES).read_text(encoding="utf-8"))
        return store

    def digest(self) -> str:
        """sha256 of all rows' content and places."""
        digest = hashlib.sha256(json.dumps(self._files).encode("utf-8", "surrogatepass"))
        for values in (self._text, self._starts, self._ends, self._file_of, self._line_of):
            digest.update(values)
        return digest.hexdigest()


def compact(data: Mapping[str, Any]) -> bytes:
    """A row as compact UTF-8 JSON; TypeError, UnicodeEncodeError or RecursionError for what can't be written so."""
    return _JSON.encode(data).encode("utf-8")


class Rows(Sequence[Row]):
    """An ordered choice of a store's rows: `indices` int64 [n], repeats allowed. Rows are decoded when asked for."""

    def __init__(self, store: RowStore, indices: Sequence[int] | np.ndarray):
        self.store, self.indices = store, np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> Rows: ...
    def __getitem__(self, i):
        if isinstance(i, slice):
            return Rows(self.store, self.indices[i])
        return self.store.row(int(self.indices[i]))

    def __iter__(self) -> Iterator[Row]:
        for index in self.indices:
            yield self.store.row(int(index))

    def source(self, i: int) -> Source:
        """Where row `i` comes from, without decoding it."""
        return self.store.source(int(self.indices[i]))

    def digest(self) -> str:
        """A hash that changes with the rows' content, places, numbers and order."""
        return hashlib.sha256(f"{self.store.digest()} ".encode() + self.indices.tobytes()).hexdigest()

    @staticmethod
    def of(rows: Iterable[Mapping[str, Any]], file: str = "rows") -> Rows:
        """Rows from plain dicts that are canonical already; they are numbered as lines of `file`."""
        store = RowStore()
        for line, row in enumerate(rows, 1):
            store.append(row, row.source if isinstance(row, Row) else Source(file, line))
        return Rows(store, range(len(store)))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Save canonical rows as JSON lines that `--dataset` (and ms-swift) read back to the same rows; atomic."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
