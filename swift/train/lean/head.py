"""The language-model head and its cross entropy, a few label positions at a time, the gradient taken on the way.

Promises: the same value and gradients as logits of every position followed by cross entropy in float32, while at most
`CHUNK_BYTES` of float32 logits exist at once (and their gradient in their place). What comes after the linear layer
(a scale, a soft cap) is named by `Head`; a head that isn't a plain linear layer is called as it is, chunk by chunk.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from swift.train.lean.frozen_head import frozen_loss

CHUNK_BYTES = 32 * 2**20
CACHED_BYTES = 2**21


@dataclass(frozen=True)
class Head:
    """`logits = softcap * tanh(module(hidden) * scale / softcap)`."""

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    @property
    def plain(self) -> bool:
        return type(self.module) is nn.Linear

    def parameters(self) -> tuple[nn.Parameter, ...]:
        return tuple(p for p in self.module.parameters() if p.requires_grad)


def head_loss(
    head: Head,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor | None = None,
    smoothing: float = 0.0,
    chunk_bytes: int = CHUNK_BYTES,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of the tokens' losses, float32 scalar with gradient; bool [N], where the target is the likeliest token).

    `hidden` [N, H], `targets` int64 [N], `weights` float [N] multiply the tokens' losses.
    """
    if len(targets) == 0:
        nothing = sum((p.flatten()[0].float() for p in head.parameters()), hidden.float().sum()) * 0.0
        return nothing, torch.zeros(0, dtype=torch.bool, device=hidden.device)
    settings = _Settings(head, targets, weights, smoothing, chunk_bytes, torch.is_grad_enabled())
    if head.plain:
        return _LinearLoss.apply(hidden, head.module.weight, head.module.bias, settings)
    return _ModuleLoss.apply(hidden, settings, *head.parameters())


@dataclass(frozen=True)
class _Settings:
    head: Head
    targets: torch.Tensor
    weights: torch.Tensor | None
    smoothing: float
    chunk_bytes: int
    differentiable: bool

    def wanted(self, needs_input_grad: tuple[bool, ...]) -> tuple[bool, ...]:
        return tuple(needed and self.differentiable for needed in needs_input_grad)

    def chunks(self, vocabulary: int) -> list[slice]:
        count = len(self.targets)
        rows = max(1, self.chunk_bytes // (4 * vocabulary))
        rows = -(-count // -(-count // rows))  # of like size, so that the last isn't a sliver
        return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]

    def cross_entropy(self, logits: torch.Tensor, at: slice, with_gradient: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, hits) of the rows `at`; float32 `logits` become their gradient in place, a few rows at a time so that
        they stay in the processor's cache.
        """
        weights = None if self.weights is None else self.weights[at].float()
        step = len(logits) if logits.is_cuda else max(1, CACHED_BYTES // (4 * logits.shape[-1]))
        parts = zip(
            logits.split(step),
            self.targets[at].split(step),
            weights.split(step) if weights is not None else itertools.repeat(None),
            strict=False,
        )
        found = [_cross_entropy(*part, self.head, self.smoothing, with_gradient) for part in parts]
        return torch.stack([loss for loss, _ in found]).sum(), torch.cat([hits for _, hits in found])


class _LinearLoss(torch.autograd.Function):
    """hidden [N, H], weight [V, H], bias [V] or None, settings -> (loss, hits)."""

    @staticmethod
    def forward(ctx: Any, hidden, weight, bias, settings: _Settings):
        dtype = _compute_dtype(hidden, weight)
        wanted = wants_hidden, wants_weight, wants_bias = settings.wanted(ctx.needs_input_grad[:3])
        if not (wants_weight or wants_bias or settings.smoothing or hidden.is_cuda):
            return _LinearLoss._frozen(ctx, hidden, weight, bias, settings, dtype, wants_hidden)
        d_hidden = torch.empty_like(hidden) if wants_hidden else None
        d_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        d_bias = torch.zeros_like(bias, dtype=torch.float32) if wants_bias else None
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hits = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(dtype)
            for at in settings.chunks(weight.shape[0]):
                x = hidden[at].to(dtype)
                logits = F.linear(x, matrix, None if bias is None else bias.to(dtype)).float()
                loss, hits[at] = settings.cross_entropy(logits, at, any(wanted))
                total += loss
                if not any(wanted):
                    continue
                gradient = logits.to(dtype)
                if d_hidden is not None:
                    d_hidden[at] = gradient @ matrix
                if d_weight is not None:
                    if dtype == torch.float32:
                        d_weight.addmm_(gradient.T, x)
                    else:
                        d_weight += gradient.T @ x
                if d_bias is not None:
                    d_bias += logits.sum(0)
        ctx.gradients = (
            d_hidden,
            None if d_weight is None else d_weight.to(weight.dtype),
            None if d_bias is None else d_bias.to(bias.dtype),
        )
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def _frozen(ctx: Any, hidden, weight, bias, settings: _Settings, dtype: torch.dtype, wanted: bool):
        head, weights = settings.head, settings.weights
        with torch.autocast(hidden.device.type, enabled=False):
            total, hits, d_hidden = frozen_loss(
                hidden.to(dtype),
                weight.to(dtype),
                None if bias is None else bias.to(dtype),
                settings.targets,
                None if weights is None else weights.float(),
                head.scale,
                head.softcap,
                settings.chunk_bytes,
                wanted,
            )
        ctx.gradients = (None if d_hidden is None else d_hidden.to(hidden.dtype), None, None)
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def backward(ctx: Any, d_total, _):
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if g is None else g.mul_(d_total.to(g.dtype)) for g in gradients), None


def _compute_dtype(hidden: torch.Tensor, weight: torch.Tensor) -> torch.dtype:
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _cross_entropy(logits, targets, weights, head: Head, smoothing: float, with_gradient: bool):
    """(loss, hits) of float32 `logits` [n, V] of a linear layer, which become its gradient in place."""
    column = targets[:, None]
    if head.scale != 1.0:
        logits.mul_(head.scale)
    capped = None
    if head.softcap is not None:
        logits.div_(head.softcap).tanh_()
        capped = logits.clone() if with_gradient else None
        logits.mul_(head.softcap)
    top, likeliest = logits.max(dim=-1)
    hits = likeliest == targets
    right = logits.gather(1, column)[:, 0]
    mean = logits.mean(-1) if smoothing else None
    logits.sub_(top[:, None]).exp_()
    normal = logits.sum(-1)
    losses = normal.log() + top - right
    if mean is not None:
        losses = (1 - smoothing) * losses + smoothing * (normal.log() + top - mean)
    loss = losses.sum() if weights is None else (losses * weights).sum()
    if not with_gradient:
        return loss, hits
    logits.div_(normal[:, None])
    if smoothing:
        logits.sub_(smoothing / logits.shape[-1])
    logits.scatter_add_(1, column, torch.full_like(column, smoothing - 1.0, dtype=logits.dtype))
    if weights is not None:
        logits.mul_(weights[:, None])
    if capped is not None:
        logits.mul_(capped.square_().neg_().add_(1))
    if head.scale != 1.0:
        logits.mul_(head.scale)
    return loss, hits


class _ModuleLoss(torch.autograd.Function):
    """hidden [N, H], settings, the head's trained parameters -> (loss, hits), for a head of any make."""

    @staticmethod
    def forward(ctx: Any, hidden, settings: _Settings, *parameters):
        needed = settings.wanted((ctx.needs_input_grad[0], *ctx.needs_input_grad[2:]))
        wanted = [i for i, value in enumerate(needed) if value]
        d_hidden = torch.zeros_like(hidden) if 0 in wanted else None
        sums: list[torch.Tensor | None] = [None] * (1 + len(parameters))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        hits = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        for at in settings.chunks(_outputs(settings.head.module)):
            with torch.set_grad_enabled(bool(wanted)):
                x = hidden[at].detach().requires_grad_(bool(wanted))
                loss, hits[at] = _module_loss(x, settings, at)
            total += loss.detach()
            if wanted:
                given = [(x, *parameters)[i] for i in wanted]
                for i, gradient in zip(wanted, torch.autograd.grad(loss, given), strict=True):
                    if i == 0:
                        d_hidden[at] = gradient
                    else:
                        sums[i] = gradient if sums[i] is None else sums[i] + gradient
        sums[0] = d_hidden
        ctx.gradients = sums
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    def backward(ctx: Any, d_total, _):
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if g is None else g * d_total.to(g.dtype) for g in gradients]
        return scaled[0], None, *scaled[1:]


def _module_loss(x: torch.Tensor, settings: _Settings, at: slice) -> tuple[torch.Tensor, torch.Tensor]:
    head, targets = settings.head, settings.targets[at]
    logits = head.module(x).float()
    if head.scale != 1.0:
        logits = logits * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    losses = F.cross_entropy(logits, targets, reduction="none", label_smoothing=settings.smoothing)
    if settings.weights is not None:
        losses = losses * settings.weights[at].float()
    return losses.sum(), logits.detach().argmax(-1) == targets


def _outputs(module: nn.Module) -> int:
    """The vocabulary's size, as the widest matrix of a head says."""
    return max(parameter.shape[0] for parameter in module.parameters() if parameter.ndim == 2)
