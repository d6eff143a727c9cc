"""Reads the header of a GGUF file: its metadata and tensors, and proves that the file is whole.

The format: magic `GGUF`, version, counts, key/value metadata, tensor infos, then the data at `general.alignment`.
Long arrays (the vocabulary, the merges) are skipped: only their length is kept.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.errors import ModelFileError

AGAIN = "the file is damaged: delete it and download or copy it again"
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# tensor type -> (name, values per block, bytes per block), as the format defines them
TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip


@dataclass(frozen=True)
class GgufHeader:
    """`metadata` holds scalars and strings by key (an array is its length); `dtypes` counts parameters by type."""

    metadata: Mapping[str, Any]
    dtypes: Mapping[str, int]
    tensors: int


class _Reader:
    """Cursor over the mapped file; IndexError or struct.error past its end means that the file is cut."""

    def __init__(self, data: memoryview):
        self.data, self.at = data, 0

    def take(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += struct.calcsize("<" + code)
        return value

    def string(self) -> str:
        length = self.take("Q")
        raw = bytes(self.data[self.at : self.at + length])
        if len(raw) < length:
            raise IndexError("string beyond the end")
        self.at += length
        return raw.decode("utf-8", errors="replace")

    def skip_strings(self, count: int) -> None:
        unpack, data, at = struct.Struct("<Q").unpack_from, self.data, self.at
        for _ in range(count):
            at += 8 + unpack(data, at)[0]
        self.at = at

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.take(_SCALARS[kind])
        inner, count = self.take("I"), self.take("Q")
        if inner == _STRING:
            self.skip_strings(count)
        elif inner == _ARRAY:
            for _ in range(count):
                self.value(inner)
        else:
            self.at += count * struct.calcsize("<" + _SCALARS[inner])
        return count


def read_gguf(path: Path) -> GgufHeader:
    """Metadata and tensor types of a GGUF file; ModelFileError when it is cut short or no GGUF file."""
    facts = path.stat()
    return _read(path, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read(path: Path, size: int, _changed: int) -> GgufHeader:
    import mmap

    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelFileError("not a GGUF file (its first bytes are not 'GGUF')", where=str(path), fix=AGAIN)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            try:
                return _parse(path, _Reader(data), size)
            except (IndexError, KeyError, struct.error, MemoryError) as error:
                raise ModelFileError("cut short or broken inside its header", where=str(path), fix=AGAIN) from error


def _parse(path: Path, reader: _Reader, size: int) -> GgufHeader:
    reader.at = 4
    version = reader.take("I")
    if version not in (2, 3):
        raise ModelFileError(f"GGUF version {version} is not supported (2 and 3 are)", where=str(path))
    tensor_count, pair_count = reader.take("Q"), reader.take("Q")
    metadata: dict[str, Any] = {}
    for _ in range(pair_count):
        key = reader.string()
        metadata[key] = reader.value(reader.take("I"))
    dtypes: dict[str, int] = {}
    end = 0
    for _ in range(tensor_count):
        reader.string()
        count = math.prod(reader.take("Q") for _ in range(reader.take("I")))
        kind = reader.take("I")
        if kind not in TYPES:
            fix = "use a file in another quantization (Q4_K_M, Q8_0, F16 ...)"
            raise ModelFileError(f"holds tensors of unknown type {kind}", where=str(path), fix=fix)
        name, per_block, block_bytes = TYPES[kind]
        end = max(end, reader.take("Q") + count // per_block * block_bytes)
        dtypes[name] = dtypes.get(name, 0) + count
    alignment = metadata.get("general.alignment", 32)
    expected = -(-reader.at // alignment) * alignment + end
    if size < expected:
        raise ModelFileError(
            f"cut short: {expected - size} of {expected} bytes are missing", where=str(path), fix=AGAIN
        )
    return GgufHeader(metadata, dtypes, tensor_count)
