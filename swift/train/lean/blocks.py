"""RMS norms and gated products with a backward pass written out, so that less is kept for it.

Promises: values and gradients are those of the plain operations to rounding. A norm keeps its input and one number per
token; a gated product keeps gate and up and computes the rest again.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Activation = Callable[[torch.Tensor], torch.Tensor]


class RmsNorm(torch.autograd.Function):
    """x [..., H], weight [H] -> x / rms(x) * (weight + offset). `wide`: the product is rounded once, at its end, as
    Gemma does; otherwise the normed values are rounded before, as Llama does.
    """

    @staticmethod
    def forward(ctx: Any, x, weight, epsilon: float, offset: float, wide: bool):
        with torch.autocast(x.device.type, enabled=False):
            exact = x.float()
            scale = (exact.square().mean(-1, keepdim=True) + epsilon).rsqrt_()
            normed = exact * scale
            if wide:
                y = normed.mul_(weight.float() + offset).to(x.dtype)
            else:
                y = normed.to(x.dtype) * (weight + offset if offset else weight)
        ctx.save_for_backward(x, weight, scale)
        ctx.offset = offset
        return y

    @staticmethod
    def backward(ctx: Any, d_y):
        x, weight, scale = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            normed = x.float() * scale
            d_weight = None
            if ctx.needs_input_grad[1]:
                d_weight = (d_y.float() * normed).flatten(0, -2).sum(0).to(weight.dtype)
            if not ctx.needs_input_grad[0]:
                return None, d_weight, None, None, None
            d_normed = d_y.float() * (weight.float() + ctx.offset)
            inner = (d_normed * normed).mean(-1, keepdim=True)
            d_x = d_normed.sub_(normed.mul_(inner)).mul_(scale).to(x.dtype)
        return d_x, d_weight, None, None, None


def activation_backward(act: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """(gradient, input) -> gradient of the input, for the activations that gates use; None for others."""
    name = type(act).__name__
    if name in ("SiLU", "SiLUActivation"):
        return torch.ops.aten.silu_backward
    if name in ("GELUTanh", "PytorchGELUTanh") or (isinstance(act, nn.GELU) and act.approximate == "tanh"):
        return lambda gradient, x: torch.ops.aten.gelu_backward(gradient, x, approximate="tanh")
    if name == "GELUActivation" or isinstance(act, nn.GELU):
        return torch.ops.aten.gelu_backward
    return None


class Gated(torch.autograd.Function):
    """act(gate) * up; keeps gate and up."""

    @staticmethod
    def forward(ctx: Any, gate, up, act: nn.Module):
        ctx.save_for_backward(gate, up)
        ctx.act = act
        return act(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, d_y):
        gate, up = ctx.saved_tensors
        return *gated_backward(d_y, gate, up, ctx.act), None


def gated_backward(d_y: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, act: nn.Module):
    """(gradient of gate, gradient of up)."""
    d_up = act(gate).mul_(d_y)
    return activation_backward(act)(d_y * up, gate), d_up


def norm_kind(module: nn.Module) -> tuple[float, float, bool] | None:
    """(epsilon, offset, wide) of a norm that computes what `RmsNorm` does, found out by trying; None for others."""
    weight = getattr(module, "weight", None)
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, nn.Parameter) or weight.ndim != 1 or not isinstance(epsilon, float):
        return None
    if "RMSNorm" not in type(module).__name__ or len(list(module.parameters())) != 1:
        return None
    if len(inspect.signature(module.forward).parameters) != 1:
        return None  # a gated norm takes the gate too
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, len(weight), generator=generator).to(weight.device, weight.dtype)
    with torch.no_grad():
        expected = module(x)
        for offset, wide in ((0.0, False), (1.0, True), (0.0, True)):
            found = RmsNorm.apply(x, weight, epsilon, offset, wide)
            if found.dtype == expected.dtype and torch.equal(found, expected):
                return epsilon, offset, wide
        if weight.dtype == torch.float32:
            for offset in (0.0, 1.0):
                if torch.allclose(RmsNorm.apply(x, weight, epsilon, offset, True), expected, rtol=1e-5, atol=1e-6):
                    return epsilon, offset, True
    return None
