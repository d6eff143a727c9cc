"""Reads the header of a safetensors file and proves that the file is whole, without reading any weight.

The format: 8 bytes little-endian header length, a JSON object (tensor name -> dtype, shape, data_offsets), then the
data.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

from swift.errors import ModelFileError

AGAIN = "the file is damaged: delete it and download or copy it again"
MAX_HEADER = 100_000_000
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """`dtype` as safetensors writes it (BF16, F8_E4M3 ...); `nbytes` from the data offsets."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ModelFileError when the file is cut, padded, or not safetensors at all."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ModelFileError(f"only {size} bytes long, not a safetensors file", where=str(path), fix=AGAIN)
        (length,) = struct.unpack("<Q", prefix)
        if length > min(MAX_HEADER, size - 8):
            raise ModelFileError(_header_problem(length, size), where=str(path), fix=AGAIN)
        raw = file.read(length)
    try:
        table = json.loads(raw)
        tensors = {
            name: (t["dtype"], tuple(t["shape"]), *map(int, t["data_offsets"]))
            for name, t in table.items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelFileError("its safetensors header can't be read", where=str(path), fix=AGAIN) from error
    _check_layout(path, tensors, size - 8 - length)
    return {name: Tensor(dtype, shape, end - begin) for name, (dtype, shape, begin, end) in tensors.items()}


def _header_problem(length: int, size: int) -> str:
    if length > MAX_HEADER:
        return f"not a safetensors file: its first 8 bytes say that the header is {length} bytes long"
    return f"cut short: {size} bytes, which ends inside its header of {length} bytes"


def _check_layout(path: Path, tensors: dict[str, tuple], data_bytes: int) -> None:
    """Every tensor's bytes fit its dtype and shape, they fill the data without gap, and the file ends where they
    end."""
    position = 0
    for name, (dtype, shape, begin, end) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        bits = BITS.get(dtype)
        if begin != position or end < begin or (bits and (end - begin) * 8 != math.prod(shape) * bits):
            raise ModelFileError(f"the header's entry for tensor {name} is inconsistent", where=str(path), fix=AGAIN)
        position = end
    if data_bytes < position:
        what = f"cut short: {position - data_bytes} of {position} bytes of weights are missing"
        raise ModelFileError(what, where=str(path), fix=AGAIN)
    if data_bytes > position:
        what = f"{data_bytes - position} bytes longer than its header says"
        raise ModelFileError(what, where=str(path), fix=AGAIN)
