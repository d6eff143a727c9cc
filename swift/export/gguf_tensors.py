"""What stands in a GGUF file: every tensor under llama.cpp's name, the type it is stored in, and its bytes.

A model's weights are taken under their names in the checkpoint, experts one by one; a file has a layer's experts in one
tensor. Embeddings and head get at least 8 bits, vectors and routers stay float32; where a row isn't a multiple of the
type's block it gets the next type that fits, as in llama.cpp's own quantizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type

from swift.errors import ExportError
from swift.export.gguf_blocks import encode

EXPERT = re.compile(r"\.experts\.(\d+)\.")
PLAIN = (Type.F32, Type.F16, Type.BF16)
# types of the files that mix them -> (the type of most matrices, of those in `_more`)
MIXED = {
    "Q4_K_S": (Type.Q4_K, Type.Q5_K),
    "Q4_K_M": (Type.Q4_K, Type.Q6_K),
    "Q5_K_S": (Type.Q5_K, Type.Q5_K),
    "Q5_K_M": (Type.Q5_K, Type.Q6_K),
}
NEXT = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}  # for rows that blocks of 256 don't fit


@dataclass(frozen=True)
class Packed:
    """A matrix already in blocks: `data` uint8 [rows, bytes of a row], `shape` that of the numbers."""

    data: torch.Tensor
    kind: Type
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One tensor of the file: `pieces` are its experts, or itself alone."""

    name: str
    pieces: tuple[torch.Tensor | Packed, ...]
    kind: Type

    @property
    def shape(self) -> tuple[int, ...]:
        one = tuple(self.pieces[0].shape)
        return (len(self.pieces), *one) if "_exps." in self.name else one

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """In bytes where it is in blocks."""
        return self.shape if self.kind in PLAIN else gguf.quant_shape_to_byte_shape(self.shape, self.kind)

    @property
    def in_few_bits(self) -> bool:
        return self.kind not in PLAIN and not is_ends(self.name)

    def bytes(self) -> np.ndarray:
        parts = [piece.data.numpy() if isinstance(piece, Packed) else self._encode(piece) for piece in self.pieces]
        return np.stack(parts) if "_exps." in self.name else parts[0]

    def _encode(self, tensor: torch.Tensor) -> np.ndarray:
        plain = tensor.detach().cpu()
        if self.kind == Type.BF16:
            return plain.bfloat16().contiguous().view(torch.int16).numpy()
        values = plain.float().contiguous()
        if not torch.isfinite(values).all():
            raise ExportError(f"{self.name} holds values that are not finite", where="--model")
        if self.kind == Type.F16 and values.abs().amax() > 65504:
            raise ExportError(
                f"{self.name} holds values too large for F16", where="--gguf_type", fix="--gguf_type BF16"
            )
        return encode(values, self.kind).numpy()


def is_ends(name: str) -> bool:
    return name in ("token_embd.weight", "output.weight")


def type_of(name: str, shape: tuple[int, ...], wanted: str, layers: int) -> Type:
    """The type of the tensor `name` (llama.cpp's) in a file of type `wanted`."""
    if len(shape) == 1 or ".ffn_gate_inp." in name:
        return Type.F32
    kind = _mixed(name, wanted, layers) if wanted in MIXED else Type[wanted]
    if kind in PLAIN:
        return kind
    if is_ends(name):
        kind = Type.Q8_0
    while shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = NEXT.get(kind, Type.F16)
    return kind


def _mixed(name: str, wanted: str, layers: int) -> Type:
    """llama.cpp's rule: the value and down projections of some layers get more."""
    most, more = MIXED[wanted]
    found = re.match(r"blk\.(\d+)\.(attn_v|attn_qkv|ffn_down(?:_exps)?)\.", name)
    if not found:
        return most
    layer, part = int(found[1]), found[2]
    if wanted.endswith("_S"):
        first = 4 if part == "attn_v" else layers // 8
        return more if layer < first and part != "attn_qkv" else most
    eighth = layers // 8
    return more if layer < eighth or layer >= 7 * eighth or (layer - eighth) % 3 == 2 else most


def file_type(wanted: str) -> int:
    plain = {"F32": "ALL_F32"}
    return gguf.LlamaFileType[plain.get(wanted, f"MOSTLY_{wanted}")]


def namer(architecture: str, layers: int) -> Callable[[str], str]:
    """A function from a weight's name in the checkpoint to the file's; ExportError for one that has no place there."""
    enum = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == architecture)
    names = gguf.get_tensor_name_map(enum, layers)

    def name_of(name: str) -> str:
        found = names.get_name(EXPERT.sub(".experts.", name), try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ExportError(f"GGUF has no place for the tensor {name}", where="--quant_method gguf")
        return found

    return name_of


def entries(
    state: Mapping[str, torch.Tensor | Packed],
    name_of: Callable[[str], str],
    change: Callable[[str, Any], Any],
    wanted: str,
    layers: int,
) -> Iterator[Entry]:
    """The tensors of a file. `state`: by the checkpoint's names; `change(name, tensor)` gives what llama.cpp wants."""
    experts: dict[str, dict[int, Any]] = {}
    for name, tensor in state.items():
        changed, found = change(name, tensor), name_of(name)
        number = EXPERT.search(name)
        if number is None:
            yield _entry(found, (changed,), wanted, layers)
        else:
            experts.setdefault(found, {})[int(number[1])] = changed
    for name, pieces in experts.items():
        yield _entry(name, tuple(pieces[i] for i in range(len(pieces))), wanted, layers)


def _entry(name: str, pieces: tuple[Any, ...], wanted: str, layers: int) -> Entry:
    kinds = {piece.kind for piece in pieces if isinstance(piece, Packed)}
    (kind,) = kinds or {type_of(name, tuple(pieces[0].shape), wanted, layers)}
    return Entry(name, pieces, kind)
