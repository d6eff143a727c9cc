"""Weights -> integers: the grid of each group of columns, and which integer each weight becomes.

Everything works on a matrix [rows, columns] in float32 and the second moments of its input, X^T X [columns, columns]:
the squared error of the layer's output, |X (W - W')^T|^2, needs nothing else. Rounding is to the nearest integer, or
GPTQ's (Frantar et al. 2023, arXiv:2210.17323): column by column, each column's error is made up for by the columns
that are still to come. Scales are rounded to float16 first, as the files hold them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SHRINKS = tuple(1 - i / 20 for i in range(10))  # ranges tried: the group's whole range down to 55 % of it
TINY = 1e-7  # the smallest scale
DAMPING = 0.01  # as in GPTQ
BLOCK = 128  # columns between two updates of all later columns


@dataclass(frozen=True)
class Grid:
    """`bits` per weight, `group` columns share one scale and zero point; `symmetric`: the zero point is the middle.
    `lowest_zero`: 1 where the file holds the zero point less one. `middle`: the code of zero is this one, and the scale
    may be negative, so that the largest value is reached. `whole`: zero points are integers, scales float16.
    """

    bits: int
    group: int
    symmetric: bool = False
    lowest_zero: int = 0
    middle: int | None = None
    whole: bool = True

    @property
    def top(self) -> int:
        return 2**self.bits - 1


@dataclass
class Codes:
    """`codes` [rows, columns] uint8, `zeros` and `scales` [rows, groups] float32; weight = (code - zero) * scale."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor

    def weight(self) -> torch.Tensor:
        """float32 [rows, columns]."""
        rows, groups = self.scales.shape
        shifted = self.codes.view(rows, groups, -1).float() - self.zeros[..., None]
        return (shifted * self.scales[..., None]).view(rows, -1)


def ranges(weight: torch.Tensor, grid: Grid, shrink: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """(scales, zeros), both float32 [rows, groups], that cover `shrink` of each group's range."""
    parts = weight.view(weight.shape[0], -1, grid.group)
    if grid.middle is not None:
        farthest = parts.gather(-1, parts.abs().argmax(-1, keepdim=True)).squeeze(-1)
        scales = farthest * (-shrink / grid.middle)
        scales = torch.where(scales.abs() < TINY, torch.full_like(scales, TINY), scales)
        return scales, torch.full_like(scales, grid.middle)
    if grid.symmetric:
        middle = (grid.top + 1) // 2
        farthest = parts.gather(-1, parts.abs().argmax(-1, keepdim=True)).squeeze(-1)
        scales = (farthest * (-shrink / middle)).half().float()
        scales = torch.where(scales.abs() < TINY, torch.full_like(scales, TINY), scales)
        return scales, torch.full_like(scales, middle)
    low, high = parts.amin(-1).clamp(max=0) * shrink, parts.amax(-1).clamp(min=0) * shrink
    scales = ((high - low) / grid.top).clamp(min=TINY)
    if not grid.whole:
        return scales, -low / scales
    scales = scales.half().float()
    return scales, (-low / scales).round().clamp(grid.lowest_zero, grid.top)


def nearest(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, grid: Grid) -> torch.Tensor:
    """The float32 weight after rounding to the nearest integer."""
    parts = weight.view(weight.shape[0], -1, grid.group)
    codes = (parts / scales[..., None]).add_(zeros[..., None]).round_().clamp_(0, grid.top)
    return codes.sub_(zeros[..., None]).mul_(scales[..., None]).view_as(weight)


def search_ranges(
    weight: torch.Tensor, moments: torch.Tensor, grid: Grid, shrinks: tuple[float, ...] = SHRINKS
) -> tuple[torch.Tensor, torch.Tensor]:
    """(scales, zeros) of the range that gives each group the smallest output error by itself."""
    groups = weight.shape[1] // grid.group
    index = torch.arange(groups, device=weight.device)
    blocks = moments.view(groups, grid.group, groups, grid.group)[index, :, index, :]  # [groups, g, g]
    best: torch.Tensor | None = None
    for shrink in shrinks:
        scales, zeros = ranges(weight, grid, shrink)
        off = (nearest(weight, scales, zeros, grid) - weight).view(-1, groups, grid.group).transpose(0, 1)
        error = (torch.bmm(off, blocks) * off).sum(-1).transpose(0, 1)  # [rows, groups]
        if best is None:
            best, kept = error, (scales, zeros)
            continue
        better = error < best
        best = torch.where(better, error, best)
        kept = tuple(torch.where(better, new, old) for new, old in zip((scales, zeros), kept, strict=True))
    return kept


def round_nearest(weight: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, grid: Grid) -> Codes:
    parts = weight.view(weight.shape[0], -1, grid.group)
    codes = (parts / scales[..., None]).add_(zeros[..., None]).round_().clamp_(0, grid.top)
    return Codes(codes.view_as(weight).to(torch.uint8), scales, zeros)


def round_gptq(
    weight: torch.Tensor,
    moments: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    grid: Grid,
    damping: float = DAMPING,
) -> Codes:
    """GPTQ with the columns of the largest input first; the groups' grids are fixed beforehand, so the files keep the
    columns in their order. `damping`, a share of the mean second moment, is added to every one's.
    """
    columns = weight.shape[1]
    order = torch.argsort(torch.diag(moments), descending=True)
    factor = _factor(moments[order][:, order], damping)
    left = weight[:, order].clone()
    group_of = order // grid.group
    codes = torch.empty_like(left)
    for start in range(0, columns, BLOCK):
        end = min(start + BLOCK, columns)
        errors = torch.empty_like(left[:, start:end])
        for i in range(start, end):
            column, scale, zero = left[:, i], scales[:, group_of[i]], zeros[:, group_of[i]]
            code = (column / scale + zero).round().clamp(0, grid.top)
            codes[:, i] = code
            error = (column - (code - zero) * scale) / factor[i, i]
            left[:, i:end] -= error[:, None] * factor[i, i:end]
            errors[:, i - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    back = torch.empty_like(codes)
    back[:, order] = codes
    return Codes(back.to(torch.uint8), scales, zeros)


def _factor(moments: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped moments."""
    damped = moments.clone()
    diagonal = torch.diagonal(damped)
    diagonal += damping * diagonal.mean().clamp(min=1e-8)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def output_error(off: torch.Tensor, moments: torch.Tensor) -> float:
    """|X off^T|^2 for a weight difference `off`."""
    return torch.einsum("ij,ij->", off @ moments, off).item()
