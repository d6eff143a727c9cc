"""Data files -> values, one at a time, each with its file and line.

Promises: reads jsonl, json, csv, tsv, parquet, arrow and txt (text files also gzip-, bzip2-, xz- or zstd-compressed,
whatever their names say), UTF-8, UTF-16 or UTF-32, with or without BOM, LF or CRLF, lines of any length, in memory that
doesn't grow with the file (a JSON array excepted). What can't be read comes out as a `Broken` at its line and reading
goes on; a file that is broken as a whole is a DataError. Knows nothing of columns: a value is whatever the line holds.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.data.rows import Source
from swift.errors import DataError, ResourceError


def _open_zst(path: Path, mode: str) -> io.BufferedReader:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


# suffix -> (how such a file begins, how it is opened)
COMPRESSION: dict[str, tuple[re.Pattern[bytes], Callable[..., Any]]] = {
    ".gz": (re.compile(rb"\x1f\x8b"), gzip.open),
    ".bz2": (re.compile(rb"BZh[1-9]1AY&SY", re.DOTALL), bz2.open),
    ".xz": (re.compile(rb"\xfd7zXZ\x00"), lzma.open),
    ".zst": (re.compile(rb"\x28\xb5\x2f\xfd"), _open_zst),
}
# how text in another encoding than UTF-8 begins (without BOM: with ASCII) -> the encoding
ENCODINGS = (
    (re.compile(rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff"), "utf-32"),
    (re.compile(rb"\xff\xfe|\xfe\xff"), "utf-16"),
    (re.compile(rb"[!-~]\x00\x00\x00"), "utf-32-le"),
    (re.compile(rb"\x00\x00\x00[!-~]"), "utf-32-be"),
    (re.compile(rb"[!-~]\x00[!-~]\x00"), "utf-16-le"),
    (re.compile(rb"\x00[!-~]\x00[!-~]"), "utf-16-be"),
)
WRAPPER_KEYS = ("data", "rows", "train", "examples", "instances", "records")
ROW_KEYS = {"chosen", "rejected"}  # columns of a single row that may all be objects
_FIELD_LIMIT = 2**31 - 1  # characters in one csv field; the csv module's own limit of 131072 would break long answers


@dataclass(frozen=True)
class Broken:
    """A line (or row) that holds no value. `reason` is a fixed phrase to count by, `detail` is about this one."""

    reason: str
    detail: str = ""


Item = tuple[Any, Source]


def file_format(path: Path) -> str | None:
    """The key of READERS that fits a file's name, or None."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSION:
        suffixes.pop()
    return suffixes[-1][1:] if suffixes and suffixes[-1][1:] in READERS else None


def read_file(path: Path, name: str | None = None) -> Iterator[Item]:
    """The values of one file with their places; `name` is how the file is called in messages (default: its path).

    DataError when the file is missing, of an unknown type, or broken as a whole; ResourceError when it can't be opened.
    """
    kind = file_format(path)
    if not path.is_file():
        raise DataError("no such file", where=str(path), fix="check the path given to --dataset")
    if kind is None:
        raise DataError(
            f"can't tell the format of a {path.suffix or 'suffixless'} file",
            where=str(path),
            fix=f"name it by its content: {', '.join('.' + k for k in READERS)} (also .gz, .bz2, .xz, .zst)",
        )
    place = name or str(path)
    try:
        for value, line in READERS[kind](path):
            yield value, Source(place, line)
    except (EOFError, lzma.LZMAError, zlib.error) as error:
        raise _damaged(path, "compressed", error) from error
    except OSError as error:
        if error.errno is None:  # raised by a decoder, not by the system
            raise _damaged(path, kind, error) from error
        what = f"can't read: {error.strerror}"
        raise ResourceError(what, where=place, fix="check its permissions") from error


def _open(path: Path) -> io.BufferedIOBase:
    """By what the file holds: browsers unpack what they download and leave the name as it was."""
    with open(path, "rb") as file:
        head = file.read(10)
    opener = next((opener for begins, opener in COMPRESSION.values() if begins.match(head)), open)
    return opener(path, "rb")


def _encoding(head: bytes) -> str | None:
    """The encoding of a text that begins so, None for UTF-8."""
    return next((name for begins, name in ENCODINGS if begins.match(head)), None)


def _mark_broken(error: UnicodeError) -> tuple[str, int]:
    """What can't be decoded becomes what UTF-8 can't hold, so that the line is found broken."""
    return "\udcff", error.end


codecs.register_error("swift.broken", _mark_broken)


def _lines(path: Path) -> Iterator[tuple[bytes, int]]:
    """The lines of a text file as UTF-8 without BOM and line ending, and their numbers."""
    with _open(path) as file:
        encoding = _encoding(file.peek(4)[:4])
        if encoding is not None:
            for number, line in enumerate(io.TextIOWrapper(file, encoding, "swift.broken", newline="\n"), 1):
                yield line.rstrip("\r\n").encode("utf-8", "surrogatepass"), number
            return
        for number, line in enumerate(file, 1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            yield line.rstrip(b"\r\n"), number


def _decode(raw: bytes) -> str | Broken:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return Broken("not UTF-8", f"byte 0x{raw[error.start]:02x} at position {error.start + 1} of the line")


def _parse(raw: bytes) -> Any:
    text = _decode(raw.removeprefix(codecs.BOM_UTF8))  # inside a file where files were joined
    if isinstance(text, Broken):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        return Broken("broken JSON", f"{error.msg} at column {error.pos + 1}")
    except RecursionError:
        return Broken("broken JSON", "nested too deeply")
    except ValueError as error:  # a number of more digits than Python converts
        return Broken("broken JSON", str(error).split(";")[0])


def read_jsonl(path: Path) -> Iterator[tuple[Any, int]]:
    """One JSON value a line; blank lines are no rows. A JSON array or spread-out object under this name is read too."""
    first, is_lines, alone = _looks_like_lines(path)
    if (first == b"[" or (first == b"{" and not alone)) and not is_lines:
        text = _whole_text(path)
        try:
            items = list(_document_items(text, path))
        except DataError:
            items = None
        if items is not None:
            yield from items
            return
    yield from _line_values(path)


def read_json(path: Path) -> Iterator[tuple[Any, int]]:
    """A JSON array of rows, an object that wraps one ({"data": [...]}), a map of names to rows, or JSON lines."""
    first, is_lines, _ = _looks_like_lines(path)
    if is_lines:
        yield from _line_values(path)
    elif first:
        yield from _document_items(_whole_text(path), path)


def _line_values(path: Path) -> Iterator[tuple[Any, int]]:
    for raw, number in _lines(path):
        if raw.strip():
            yield _parse(raw), number


def _looks_like_lines(path: Path) -> tuple[bytes, bool, bool]:
    """(first character; is it JSON lines: several lines, an object on one of the first 20; is it a single line)"""
    filled, objects, first = 0, 0, b""
    for raw, _ in _lines(path):
        if raw.strip():
            filled += 1
            first = first or raw.lstrip()[:1]
            objects += isinstance(_parse(raw), dict)
            if filled > 1 and objects:
                return first, first != b"[", False
            if filled == 20:
                break
    return first, False, filled == 1


def _whole_text(path: Path) -> str:
    with _open(path) as file:
        raw = file.read()
    encoding = _encoding(raw[:4])
    return raw.decode(encoding, "swift.broken") if encoding else raw.decode("utf-8-sig", "surrogateescape")


class _Document:
    """A cursor over one JSON text that decodes it value by value and knows the line of each."""

    def __init__(self, text: str, path: Path):
        self.text, self.path, self.at = text, path, 0
        self._decoder = json.JSONDecoder()
        self._counted, self._line = 0, 1
        self.skip_space()

    def skip_space(self) -> None:
        while self.text[self.at : self.at + 1] in (" ", "\n", "\r", "\t"):
            self.at += 1

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def line(self) -> int:
        self._line += self.text.count("\n", self._counted, self.at)
        self._counted = self.at
        return self._line

    def take(self, characters: str) -> str:
        mark = self.peek()
        if not mark or mark not in characters:
            raise self.error(f"expected {' or '.join(characters)}, found {mark or 'the end of the file'!r}")
        self.at += 1
        self.skip_space()
        return mark

    def value(self) -> Any:
        try:
            value, self.at = self._decoder.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            self.at = error.pos
            raise self.error(error.msg) from error
        except RecursionError as error:
            raise self.error("nested too deeply") from error
        except ValueError as error:
            raise self.error(str(error).split(";")[0]) from error
        self.skip_space()
        return value

    def error(self, what: str) -> DataError:
        column = self.at - self.text.rfind("\n", 0, self.at)
        line = self.text.count("\n", 0, self.at) + 1
        return DataError(
            f"not valid JSON: {what}",
            where=f"{self.path}:{line}:{column}",
            fix="repair the file, or save one row a line as .jsonl, where a bad line costs only that row",
        )

    def items(self) -> Iterator[tuple[Any, int]]:
        """The elements of the array that starts here."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            line = self.line()
            yield self.value(), line
            if self.take(",]") == "]":
                return

    def members(self) -> Iterator[tuple[str, int]]:
        """The keys of the object that starts here, each with its value's line; the caller takes the value."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise self.error("an object's key must be a string")
            self.take(":")
            yield key, self.line()
            if self.take(",}") == "}":
                return


def _document_items(text: str, path: Path) -> Iterator[tuple[Any, int]]:
    """The rows of a JSON document, whichever way it holds them, or of objects one behind the other (as jq writes)."""
    document = _Document(text, path)
    if document.peek() == "{":
        while document.peek() == "{":
            yield from _object_rows(document)
    elif document.peek() == "[":
        yield from document.items()
    else:
        yield document.value(), document.line()
    if document.peek():
        raise document.error("there is more after the end of the document")


def _object_rows(document: _Document) -> Iterator[tuple[Any, int]]:
    start_line = document.line()
    members: dict[str, Any] = {}
    lines: list[int] = []
    for key, line in document.members():
        if key in WRAPPER_KEYS and document.peek() == "[":
            members[key] = list(document.items())
        else:
            members[key] = document.value()
        lines.append(line)
    wrapped = [key for key in WRAPPER_KEYS if isinstance(members.get(key), list)]
    if wrapped:
        yield from members[wrapped[0]]
    elif members and not ROW_KEYS & members.keys() and all(isinstance(value, dict) for value in members.values()):
        yield from zip(members.values(), lines, strict=True)
    else:
        yield members, start_line


def read_csv(path: Path) -> Iterator[tuple[Any, int]]:
    """Rows as {column: text}; the delimiter of .csv is the most frequent of , ; tab | in the header, of .tsv a tab."""
    csv.field_size_limit(_FIELD_LIMIT)
    lines = (_csv_text(raw) for raw, _ in _lines_with_ends(path))
    delimiter = "\t" if ".tsv" in path.suffixes else _delimiter(path)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    header, start = None, 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            lost = reader.line_num - start
            open_quote = f"; the quote that opens here is never closed, so {lost} more lines are lost"
            yield Broken("broken CSV", str(error) + (open_quote if lost else "")), start
            fields = []
        if not fields or fields == [""]:
            pass
        elif header is None:
            header = [name.strip() for name in fields]
        elif len(fields) != len(header):
            yield Broken("wrong number of fields", f"{len(fields)}, the header has {len(header)}"), start
        else:
            yield dict(zip(header, fields, strict=True)), start
        start = reader.line_num + 1


def _csv_text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _lines_with_ends(path: Path) -> Iterator[tuple[bytes, int]]:
    return ((raw + b"\n", number) for raw, number in _lines(path))


def _delimiter(path: Path) -> str:
    header = next((_csv_text(raw) for raw, _ in _lines(path) if raw.strip()), "")
    return max(",;\t|", key=header.count)


def read_txt(path: Path) -> Iterator[tuple[Any, int]]:
    """One text a line, as {"text": line}; blank lines are no rows."""
    for raw, number in _lines(path):
        if raw.strip():
            text = _decode(raw)
            yield (text if isinstance(text, Broken) else {"text": text}), number


def read_parquet(path: Path) -> Iterator[tuple[Any, int]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield from _batch_rows(file.iter_batches(batch_size=1000))
    except pyarrow.ArrowException as error:
        raise _damaged(path, "parquet", error) from error


def read_arrow(path: Path) -> Iterator[tuple[Any, int]]:
    """An Arrow IPC file or stream (the format of `datasets.save_to_disk`)."""
    import pyarrow

    try:
        with pyarrow.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if is_file:
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                batches = iter(pyarrow.ipc.open_stream(source))
            yield from _batch_rows(batches)
    except pyarrow.ArrowException as error:
        raise _damaged(path, "Arrow", error) from error


def _batch_rows(batches: Iterator[Any]) -> Iterator[tuple[Any, int]]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, 1000):
            for value in batch.slice(start, 1000).to_pylist():
                number += 1
                yield value, number


def _damaged(path: Path, kind: str, error: Exception) -> DataError:
    return DataError(f"not a whole {kind} file: {error}", where=str(path), fix="copy or download it again")


READERS: dict[str, Callable[[Path], Iterator[tuple[Any, int]]]] = {
    "jsonl": read_jsonl,
    "ndjson": read_jsonl,
    "json": read_json,
    "csv": read_csv,
    "tsv": read_csv,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "txt": read_txt,
}
