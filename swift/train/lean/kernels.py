"""The chains of elementwise operations of fused layers, as they are or as one loop each that torch.compile makes.

Promises: nothing is compiled but by `compiled`, and then at the first call of each; `plain` takes it back. What is kept
of compiling lies in this program's cache, so that the next run finds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from swift.hub.cache import cache_dir


class Kernel:
    """A function that is called as it is, or compiled."""

    known: list[Kernel] = []

    def __init__(self, function: Callable):
        self.plain = self.call = function
        self.__doc__ = function.__doc__
        Kernel.known.append(self)

    def __call__(self, *arguments: Any) -> Any:
        return self.call(*arguments)


def compiled(backend: str | None, mode: str | None) -> None:
    """From now on, for any number of tokens."""
    _keep_what_is_made()
    for kernel in Kernel.known:
        kernel.call = torch.compile(kernel.plain, dynamic=True, backend=backend or "inductor", mode=mode)


def plain() -> None:
    for kernel in Kernel.known:
        kernel.call = kernel.plain


def compile_layers(model: nn.Module, backend: str | None, mode: str | None) -> list[nn.Module]:
    """Compile each decoder layer by itself, for any number of tokens; these layers. All share what is made for one."""
    _keep_what_is_made()
    names = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    for layer in layers:
        layer.compile(dynamic=True, backend=backend or "inductor", mode=mode)
    return layers


def _keep_what_is_made() -> None:
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir("inductor")))
    # a guard on each of a model's different layers would soon use up the usual number
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)


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
