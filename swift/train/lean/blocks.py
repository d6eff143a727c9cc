"""RMS norms and gated products with a backward pass written out, so that less is kept for it.

Promises: values and gradients are those of the plain operations to rounding. A norm keeps its input and one number per
token; a gated product keeps gate and up and computes the rest again.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from swift.train.lean import kernels


class RmsNorm(torch.autograd.Function):
    """x [..., H], weight [H] -> x / rms(x) * (weight + offset). `wide`: the product is rounded once, at its end, as
    Gemma does; otherwise the normed values are rounded before, as Llama does.
    """

    @staticmethod
    def forward(ctx: Any, x, weight, epsilon: float, offset: float, wide: bool):
        with torch.autocast(x.device.type, enabled=False):
            y, scale = kernels.normed(x.reshape(-1, x.shape[-1]), weight, epsilon, offset, wide)
        ctx.save_for_backward(x, weight, scale)
        ctx.offset = offset
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, d_y):
        x, weight, scale = ctx.saved_tensors
        flat, d_flat = x.reshape(-1, x.shape[-1]), d_y.reshape(-1, x.shape[-1])
        d_x = d_weight = None
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[1]:
                d_weight = (d_flat.float() * (flat.float() * scale)).sum(0).to(weight.dtype)
            if ctx.needs_input_grad[0]:
                d_x = kernels.normed_backward(d_flat, flat, weight, scale, ctx.offset).view(x.shape)
        return d_x, d_weight, None, None, None


def activation_of(act: nn.Module) -> str | None:
    """The name in `kernels.ACTIVATIONS` of an activation that gates use; None for others."""
    name = type(act).__name__
    if name in ("SiLU", "SiLUActivation"):
        return "silu"
    if name in ("GELUTanh", "PytorchGELUTanh") or (isinstance(act, nn.GELU) and act.approximate == "tanh"):
        return "gelu_tanh"
    if name == "GELUActivation" or isinstance(act, nn.GELU):
        return "gelu"
    return None


class Gated(torch.autograd.Function):
    """act(gate) * up; keeps gate and up."""

    @staticmethod
    def forward(ctx: Any, gate, up, activation: str):
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        out = torch.empty_like(gate)
        kernels.gated(_flat(out), _flat(gate), _flat(up), activation)
        return out

    @staticmethod
    def backward(ctx: Any, d_y):
        gate, up = ctx.saved_tensors
        d_gate, d_up = torch.empty_like(gate), torch.empty_like(up)
        kernels.gated_backward(_flat(d_gate), _flat(d_up), _flat(d_y), _flat(gate), _flat(up), ctx.activation)
        return d_gate, d_up, None


def _flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, x.shape[-1])


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
