"""The chains of elementwise operations of fused layers and of the head, as they are or as one loop each that
torch.compile makes of them.

Promises: compiled kernels are first held against the plain ones on random numbers and replace them all together;
`plain` takes them back. Chains that a run doesn't use are never compiled. Knows nothing of layers.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

COMPILERS = ("g++", "clang++", "c++")


class Kernel:
    """A function that is called as it is, or compiled."""

    known: list[Kernel] = []

    def __init__(self, function: Callable):
        self.plain = self.call = function
        self.__doc__ = function.__doc__
        Kernel.known.append(self)

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


def missing_compiler() -> str | None:
    """What torch.compile lacks to make kernels for the CPU; None when it has it."""
    named = os.environ.get("CXX")
    if any(shutil.which(name) for name in ((named,) if named else COMPILERS)):
        return None
    return f"no C++ compiler ({named or ', '.join(COMPILERS)})"


def compiled(backend: str | None = None, mode: str | None = None) -> None:
    """Compile the kernels, each at its first call, for any number of tokens. RuntimeError where torch can't."""
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 64)
    for kernel in Kernel.known:
        kernel.call = torch.compile(kernel.plain, dynamic=True, fullgraph=True, backend=backend or "inductor", mode=mode)


def plain() -> None:
    for kernel in Kernel.known:
        kernel.call = kernel.plain


# ---- norms ----


@Kernel
def normed(x, weight, epsilon: float, offset: float, wide: bool):
    """x [tokens, H], weight [H] -> (x / rms(x) * (weight + offset), 1 / rms(x) float32 [tokens, 1])."""
    exact = x.float()
    scale = (exact.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    if wide:
        return (exact * scale * (weight.float() + offset)).to(x.dtype), scale
    return (exact * scale).to(x.dtype) * (weight + offset if offset else weight), scale


@Kernel
def normed_backward(d_y, x, weight, scale, offset: float):
    """The gradient of x."""
    normed = x.float() * scale
    d_normed = d_y.float() * (weight.float() + offset)
    inner = (d_normed * normed).mean(-1, keepdim=True)
    return ((d_normed - normed * inner) * scale).to(x.dtype)


# ---- gated products ----

ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
    "silu": (F.silu, torch.ops.aten.silu_backward),
    "gelu": (F.gelu, torch.ops.aten.gelu_backward),
    "gelu_tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda gradient, x: torch.ops.aten.gelu_backward(gradient, x, approximate="tanh"),
    ),
}


@Kernel
def gated(out, gate, up, activation: str):
    """out = act(gate) * up; all [tokens, inner], views of wider rows too."""
    out.copy_(ACTIVATIONS[activation][0](gate).mul_(up))


@Kernel
def gated_backward(d_gate, d_up, d_out, gate, up, activation: str):
    """The gradients of gate and up, into `d_gate` and `d_up`."""
    act, act_backward = ACTIVATIONS[activation]
    d_up.copy_(act(gate).mul_(d_out))
    d_gate.copy_(act_backward(d_out * up, gate))


# ---- cross entropy ----


@Kernel
def cross_entropy(logits, targets, weights, scale: float, softcap: float | None, smoothing: float, gradient: bool):
    """(loss, hits) of float32 `logits` [n, V] of a linear layer, which become its gradient in place."""
    column = targets[:, None]
    if scale != 1.0:
        logits.mul_(scale)
    capped = None
    if softcap is not None:
        logits.div_(softcap).tanh_()
        capped = logits.clone() if gradient else None
        logits.mul_(softcap)
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
    if not gradient:
        return loss, hits
    logits.div_(normal[:, None])
    if smoothing:
        logits.sub_(smoothing / logits.shape[-1])
    if torch.compiler.is_compiling():  # in one loop with what is around it
        at = torch.arange(logits.shape[-1], device=logits.device)[None] == column
        logits.sub_(at.to(logits.dtype) * (1.0 - smoothing))
    else:
        logits.scatter_add_(1, column, torch.full_like(column, smoothing - 1.0, dtype=logits.dtype))
    if weights is not None:
        logits.mul_(weights[:, None])
    if capped is not None:
        logits.mul_(capped.square_().neg_().add_(1))
    if scale != 1.0:
        logits.mul_(scale)
    return loss, hits
