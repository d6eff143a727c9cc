"""LoRA projections and gated MLPs as single operations, their backward passes written out.

Promises: values are those of peft's layers to rounding. For the backward pass only the input and its product with A are
kept, with a gated MLP's gate and up unless they are computed again (with dropout, a byte per value and adapter). Knows
nothing of DoRA, quantized weights or trained biases.
"""

from __future__ import annotations

from typing import Any

import torch

from swift.train.lean import kernels
from swift.train.lean.projections import Projections


class Project(torch.autograd.Function):
    """x [..., inputs], projections, their parameters -> one output per projection."""

    @staticmethod
    def forward(ctx: Any, x, group: Projections, *parameters):
        flat = x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            masks, rates = group.masks(flat), group.rates()
            fed = group.fed(flat)
            inner = group.inner(fed, parameters, masks, rates)
            outputs = group.outputs(fed, inner, parameters)
        ctx.save_for_backward(fed, inner, *masks, *parameters)
        ctx.settings = (group, rates, x.shape, x.dtype)
        # of their own each, or a kept v would keep q and k as they were before their rotation
        return tuple(part.contiguous().view(*x.shape[:-1], -1) for part in group.parts(outputs))

    @staticmethod
    def backward(ctx: Any, *d_outputs):
        group, rates, shape, dtype = ctx.settings
        fed, inner, *rest = ctx.saved_tensors
        masks, parameters = rest[: len(rates)], rest[len(rates) :]
        with torch.autocast(fed.device.type, enabled=False):
            d_y = group.gathered([d.reshape(len(fed), -1) for d in d_outputs])
            d_x, gradients = group.backward(d_y, fed, inner, parameters, masks, rates, ctx.needs_input_grad[0])
        return None if d_x is None else d_x.reshape(shape).to(dtype), None, *gradients


class GatedMlp(torch.autograd.Function):
    """x, gate and up, down, whether to keep gate and up, activation, parameters -> down(act(gate x) * up x).

    Kept: x and A x, gate and up (or not: then they are computed again), A of down times its input.
    """

    @staticmethod
    def forward(ctx: Any, x, first: Projections, last: Projections, keep: bool, activation: str, *parameters):
        flat = x.reshape(-1, x.shape[-1])
        ours, theirs = parameters[:4], parameters[4:]
        with torch.autocast(x.device.type, enabled=False):
            masks, rates, last_rates = first.masks(flat), first.rates(), last.rates()
            fed = first.fed(flat)
            inner = first.inner(fed, ours, masks, rates)
            outputs = first.outputs(fed, inner, ours)
            fed_last = last.room(len(flat))
            kernels.gated(last.values(fed_last), *first.parts(outputs), activation)
            masks += last.masks(last.values(fed_last))
            inner_last = last.inner(fed_last, theirs, masks[2:], last_rates)
            out = last.outputs(fed_last, inner_last, theirs)[0]
        kept = outputs if keep else []
        ctx.save_for_backward(fed, inner, inner_last, *masks, *parameters, *kept)
        ctx.settings = (first, last, activation, rates, last_rates, x.shape, x.dtype)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, d_out):
        first, last, activation, rates, last_rates, shape, dtype = ctx.settings
        fed, inner, inner_last, *rest = ctx.saved_tensors
        masks, parameters, outputs = rest[:3], rest[3:9], rest[9:]
        with torch.autocast(fed.device.type, enabled=False):
            outputs = outputs or first.outputs(fed, inner, parameters[:4])
            gate, up = first.parts(outputs)
            d_y = last.gathered([d_out.reshape(len(fed), -1)])
            fed_last = last.room(len(fed))
            kernels.gated(last.values(fed_last), gate, up, activation)
            d_hidden, of_last = last.backward(
                d_y, fed_last, inner_last, parameters[4:], masks[2:], last_rates, needs_x=True
            )
            del fed_last
            d_outputs = [torch.empty_like(output) for output in outputs]
            kernels.gated_backward(*first.parts(d_outputs), d_hidden, gate, up, activation)
            d_x, of_first = first.backward(
                d_outputs, fed, inner, parameters[:4], masks[:2], rates, ctx.needs_input_grad[0]
            )
        return None if d_x is None else d_x.reshape(shape).to(dtype), None, None, None, None, *of_first, *of_last
