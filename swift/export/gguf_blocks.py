"""The integer formats of GGUF: which numbers a block can hold, how a matrix gets into blocks, and their bytes.

A value is scale * code - minimum; `group` values share scale and minimum. In Q4_0, Q5_0 and Q6_K the minimum is a fixed
code times the scale, in the others it is its own. In the K formats a block of 256 holds its groups' scales (and
minimums) as 6- or 8-bit integers of one float16. The layouts are those of ggml-quants.c (llama.cpp); gguf's own
dequantizers read them back in the tests. Where the inputs are known ranges are searched, else a group's range is its
largest value's: a smaller one has less error in the weights and more in the answers (benchmarks/RESULTS.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gguf
import torch
from gguf import GGMLQuantizationType as Type

from swift.export.rounding import Codes, Grid, output_error, ranges, round_gptq, round_nearest, search_ranges

SHRINKS = tuple(1.05 - i / 40 for i in range(19))  # ranges tried: a little beyond the largest value down to 60 % of it
SMALLEST = 6e-8  # of float16


@dataclass(frozen=True)
class Form:
    """`block` values lie together, `group` share a scale; `middle`: the code of zero where it is fixed."""

    bits: int
    group: int
    block: int
    middle: int | None = None

    @property
    def grid(self) -> Grid:
        return Grid(self.bits, self.group, middle=self.middle, whole=False)


FORMS = {
    Type.Q4_0: Form(4, 32, 32, 8),
    Type.Q4_1: Form(4, 32, 32),
    Type.Q5_0: Form(5, 32, 32, 16),
    Type.Q5_1: Form(5, 32, 32),
    Type.Q4_K: Form(4, 32, 256),
    Type.Q5_K: Form(5, 32, 256),
    Type.Q6_K: Form(6, 16, 256, 32),
}


def encode(
    weight: torch.Tensor, kind: Type, moments: torch.Tensor | None = None, damping: float | None = None
) -> torch.Tensor:
    """The bytes, uint8 [rows, bytes of a row], of a float32 matrix [rows, columns].

    `moments` [columns, columns]: second moments of the matrix's input, whose output's error is then made small instead
    of the weight's; with `damping` too, rounding makes up for its errors as in GPTQ.
    """
    if kind not in FORMS:  # 8 bits
        return torch.from_numpy(gguf.quantize(weight.cpu().numpy(), kind))
    form = FORMS[kind]
    grid = form.grid
    held = Held.of(
        form, *(ranges(weight, grid, 1.0) if moments is None else search_ranges(weight, moments, grid, SHRINKS))
    )
    codes = round_nearest(weight, held.scales, held.zeros, grid)
    if moments is not None and damping is not None:
        better = round_gptq(weight, moments, held.scales, held.zeros, grid, damping)
        if output_error(better.weight() - weight, moments) < output_error(codes.weight() - weight, moments):
            codes = better
    return _bytes(kind, codes, held)


def decode(blocks: torch.Tensor, kind: Type) -> torch.Tensor:
    """The float32 matrix that the bytes stand for."""
    return torch.from_numpy(gguf.dequantize(blocks.numpy(), kind))


@dataclass(frozen=True)
class Held:
    """Scales and zeros [rows, groups] as the format holds them, float32, and what it stores of them: float16 `scale`
    and `minimum` [rows, blocks], integers of K formats [rows, blocks, groups of a block].
    """

    scales: torch.Tensor
    zeros: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor | None = None
    parts: torch.Tensor | None = None
    low_parts: torch.Tensor | None = None

    @staticmethod
    def of(form: Form, scales: torch.Tensor, zeros: torch.Tensor) -> Held:
        """The nearest that the format can hold."""
        if form.block == form.group:
            scale = _half(scales)
            if form.middle is not None:
                return Held(scale, zeros, scale.half())
            minimum = (zeros * scales).half()
            return Held(scale, minimum.float() / scale, scale.half(), -minimum)
        shape = (len(scales), -1, form.block // form.group)
        parted = scales.view(shape)
        most = 127 if form.middle is not None else 63
        scale = _half(parted.abs().amax(-1) / most)
        parts = (parted / scale[..., None]).round().clamp(-most, most)
        parts = torch.where(parts == 0, torch.ones_like(parts), parts)
        found = scale[..., None] * parts
        if form.middle is not None:
            return Held(found.flatten(1), zeros, scale.half(), parts=parts)
        low = (zeros * scales).view(shape)
        minimum = _half(low.amax(-1) / most)
        low_parts = (low / minimum[..., None]).round().clamp(0, most)
        zeros = minimum[..., None] * low_parts / found
        return Held(found.flatten(1), zeros.flatten(1), scale.half(), minimum.half(), parts, low_parts)


def _half(values: torch.Tensor) -> torch.Tensor:
    """As float16 holds them, never zero."""
    held = values.half().float()
    return torch.where(held.abs() < SMALLEST, torch.full_like(held, SMALLEST).half().float(), held)


def _bytes(kind: Type, codes: Codes, held: Held) -> torch.Tensor:
    """uint8 [rows, bytes of a row]."""
    form = FORMS[kind]
    blocks = codes.codes.view(len(codes.codes), -1, form.block)
    return torch.cat([part for part in LAYOUTS[kind](blocks, held)], dim=-1).flatten(1)


def _raw(values: torch.Tensor) -> torch.Tensor:
    """float16 [rows, blocks] as bytes [rows, blocks, 2]."""
    return values.contiguous().view(torch.uint8).view(*values.shape, 2)


def _halves(codes: torch.Tensor) -> torch.Tensor:
    """The low 4 bits: the second half of the last dimension above the first."""
    low, high = (codes & 15).chunk(2, dim=-1)
    return low | (high << 4)


def _high_bits(codes: torch.Tensor) -> torch.Tensor:
    """Bit 4 of 32 codes as 4 bytes, the first in the lowest bit."""
    bits = (codes >> 4).view(*codes.shape[:-1], 4, 8)
    return sum((bits[..., i] << i for i in range(1, 8)), bits[..., 0])


def _plain(codes: torch.Tensor, held: Held) -> list[torch.Tensor]:
    """Q4_0, Q4_1."""
    ends = [] if held.minimum is None else [_raw(held.minimum)]
    return [_raw(held.scale), *ends, _halves(codes)]


def _plain5(codes: torch.Tensor, held: Held) -> list[torch.Tensor]:
    """Q5_0, Q5_1."""
    *ends, low = _plain(codes, held)
    return [*ends, _high_bits(codes), low]


def _k4(codes: torch.Tensor, held: Held) -> list[torch.Tensor]:
    """Q4_K: pairs of groups in one run of bytes."""
    low = _halves(codes.view(*codes.shape[:-1], 4, 64)).flatten(-2)
    return [_raw(held.scale), _raw(held.minimum), _six_bits(held.parts, held.low_parts), low]


def _k5(codes: torch.Tensor, held: Held) -> list[torch.Tensor]:
    """Q5_K: byte j holds bit 4 of the j-th value of every group."""
    *ends, low = _k4(codes, held)
    groups = (codes >> 4).view(*codes.shape[:-1], 8, 32)
    high = sum((groups[..., i, :] << i for i in range(1, 8)), groups[..., 0, :])
    return [*ends, high, low]


def _k6(codes: torch.Tensor, held: Held) -> list[torch.Tensor]:
    """Q6_K: two halves of four runs of 32 values."""
    runs = codes.view(*codes.shape[:-1], 2, 4, 32)
    low = (runs[..., :2, :] & 15) | ((runs[..., 2:, :] & 15) << 4)
    high = sum(((runs[..., i, :] >> 4) << (2 * i) for i in range(1, 4)), runs[..., 0, :] >> 4)
    scales = held.parts.to(torch.int8).view(torch.uint8)
    return [low.flatten(-3), high.flatten(-2), scales, _raw(held.scale)]


def _six_bits(parts: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Eight scales and eight minimums of 6 bits in 12 bytes: the last four of each are split over three runs."""
    s, m = parts.to(torch.uint8), low.to(torch.uint8)
    first = (s[..., :4] & 63) | ((s[..., 4:] >> 4) << 6)
    second = (m[..., :4] & 63) | ((m[..., 4:] >> 4) << 6)
    return torch.cat([first, second, (s[..., 4:] & 15) | ((m[..., 4:] & 15) << 4)], dim=-1)


LAYOUTS: dict[Type, Callable[[torch.Tensor, Held], list[torch.Tensor]]] = {
    Type.Q4_0: _plain,
    Type.Q4_1: _plain,
    Type.Q5_0: _plain5,
    Type.Q5_1: _plain5,
    Type.Q4_K: _k4,
    Type.Q5_K: _k5,
    Type.Q6_K: _k6,
}
