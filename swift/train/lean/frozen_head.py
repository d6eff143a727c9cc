"""Cross entropy over a head whose matrix doesn't train: a part of the vocabulary at a time, all positions at once.

Promises: value and gradient of `head.head_loss`. As attention in blocks does with keys, each part of the matrix is read
once: what it adds to the gradient of the hidden states is summed up against the largest logit so far and divided by
the normalizer at the end. A processor's library lays out the whole matrix anew for every product, which with few
positions at a time costs as much as the product. The target's own share is left out of the sum, so that nothing cancels
where it is near 1.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

ROWS = 1024  # positions at a time
COLUMNS = 1024  # of the vocabulary at a time, at most
CACHED_BYTES = 2 * 2**20


def frozen_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    scale: float,
    softcap: float | None,
    most_bytes: int,
    gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(sum of the losses, float32 scalar; bool [N], where no token is likelier than the target; gradient of `hidden`).

    `hidden` [N, H] and `weight` [V, H] of one type, `targets` int64 [N], `weights` float [N] multiply the losses. No
    more than `most_bytes` of float32 logits exist at once.
    """
    count = len(hidden)
    pieces = -(-count // ROWS)
    found = [
        _rows(x, weight, bias, t, scale, softcap, most_bytes, gradient)
        for x, t in zip(hidden.tensor_split(pieces), targets.tensor_split(pieces), strict=True)
    ]
    losses, hits = (torch.cat([part[i] for part in found]) for i in (0, 1))
    if weights is not None:
        losses = losses * weights
    if not gradient:
        return losses.sum(), hits, None
    d_hidden = torch.cat([part[2] for part in found])
    if weights is not None:
        d_hidden.mul_(weights[:, None])
    return losses.sum(), hits, d_hidden


def _rows(x, weight, bias, targets, scale: float, softcap: float | None, most_bytes: int, gradient: bool):
    """(losses, hits, gradient of x float32 or None) of positions x [n, H]."""
    count, vocabulary = len(x), len(weight)
    width = min(COLUMNS, max(1, most_bytes // (4 * count)), vocabulary)
    top = x.new_full((count,), -torch.inf, dtype=torch.float32)
    right, slope = torch.zeros_like(top), torch.ones_like(top)
    others = torch.zeros_like(top)  # the sum of exp(logit - top) without the target's
    total = torch.zeros(x.shape, dtype=torch.float32, device=x.device) if gradient else None
    for start in range(0, vocabulary, width):
        part = weight[start : start + width]
        logits = F.linear(x, part, None if bias is None else bias[start : start + width]).float()
        mine = ((targets >= start) & (targets < start + width)).nonzero()[:, 0]
        column = targets[mine] - start
        slopes = _scaled(logits, scale, softcap, gradient)
        right[mine] = logits[mine, column]
        if slopes is not None:
            slope[mine] = slopes[mine, column]
        before, top = top, torch.maximum(top, logits.amax(1))
        # a few rows at a time, so that they stay in the processor's cache
        step = max(1, CACHED_BYTES // (4 * width))
        for piece, highest in zip(logits.split(step), top.split(step), strict=True):
            piece.sub_(highest[:, None]).exp_()
        logits[mine, column] = 0.0
        shrunk = (before - top).exp_()
        others = others * shrunk + logits.sum(1)
        if total is not None:
            shares = logits if slopes is None else logits.mul_(slopes)
            total.mul_(shrunk[:, None])
            if part.dtype == torch.float32:
                total.addmm_(shares, part)
            else:
                total += shares.to(part.dtype) @ part
    normal = others + (right - top).exp()
    losses, hits = normal.log() + top - right, right >= top
    if total is not None:
        back = (others * slope)[:, None] * weight.index_select(0, targets)
        total = total.sub_(back).mul_((scale / normal)[:, None])
    return losses, hits, total


def _scaled(logits: torch.Tensor, scale: float, softcap: float | None, slopes: bool) -> torch.Tensor | None:
    """Scale and cap `logits` in place; the cap's slopes, if they are wanted and there are any."""
    if scale != 1.0:
        logits.mul_(scale)
    if softcap is None:
        return None
    logits.div_(softcap).tanh_()
    found = logits.square().neg_().add_(1) if slopes else None
    logits.mul_(softcap)
    return found
