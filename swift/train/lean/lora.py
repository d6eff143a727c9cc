"""LoRA projections and gated MLPs as single operations, their backward passes written out.

Promises: values are those of peft's layers to rounding. For the backward pass only the input and its product with A are
kept, with a gated MLP's gate and up unless they are computed again (with dropout, a byte per value and adapter; with
DoRA the outputs). Knows nothing of trained biases.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch

from swift.train.lean import kernels
from swift.train.lean.dora import Dora
from swift.train.lean.projections import Projections

Group = Projections | Dora


class Project(torch.autograd.Function):
    """x [..., inputs], projections, their parameters -> one output per projection."""

    @staticmethod
    def forward(ctx: Any, x, group: Group, *parameters):
        flat = x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            masks, rates = group.masks(flat), group.rates()
            fed = group.fed(flat)
            inner = group.inner(fed, parameters, masks, rates)
            outputs, kept = group.outputs(fed, inner, parameters, masks, rates)
        ctx.save_for_backward(fed, inner, *masks, *parameters, *kept)
        ctx.settings = (group, rates, len(parameters), x.shape, x.dtype)
        # of their own each, or a kept v would keep q and k as they were before their rotation
        return tuple(part.contiguous().view(*x.shape[:-1], -1) for part in group.parts(outputs))

    @staticmethod
    def backward(ctx: Any, *d_outputs):
        group, rates, count, shape, dtype = ctx.settings
        fed, inner, *rest = ctx.saved_tensors
        masks, parameters, kept = _split(rest, len(rates), count)
        with torch.autocast(fed.device.type, enabled=False):
            d_y = group.gathered([d.reshape(len(fed), -1) for d in d_outputs])
            d_x, gradients = group.backward(d_y, fed, inner, kept, parameters, masks, rates, ctx.needs_input_grad[0])
        return None if d_x is None else d_x.reshape(shape).to(dtype), None, *gradients


class GatedMlp(torch.autograd.Function):
    """x, gate and up, down, whether to keep gate and up, activation, parameters -> down(act(gate x) * up x).

    Kept: x and A x, gate and up (or not: then they are computed again), A of down times its input.
    """

    @staticmethod
    def forward(ctx: Any, x, first: Group, last: Group, keep: bool, activation: str, *parameters):
        flat = x.reshape(-1, x.shape[-1])
        ours, theirs = _split(parameters, len(first.parameters()))
        with torch.autocast(x.device.type, enabled=False):
            masks, rates, last_rates = first.masks(flat), first.rates(), last.rates()
            fed = first.fed(flat)
            inner = first.inner(fed, ours, masks, rates)
            outputs, of_first = first.outputs(fed, inner, ours, masks, rates)
            fed_last = last.room(len(flat))
            kernels.gated(last.values(fed_last), *first.parts(outputs), activation)
            masks += last.masks(last.values(fed_last))
            inner_last = last.inner(fed_last, theirs, masks[2:], last_rates)
            out, of_last = last.outputs(fed_last, inner_last, theirs, masks[2:], last_rates)
        kept = [*outputs, *of_first] if keep else []
        ctx.save_for_backward(fed, inner, inner_last, *masks, *ours, *theirs, *of_last, *kept)
        ctx.settings = (first, last, activation, rates, last_rates, x.shape, x.dtype)
        ctx.counts = (len(masks), len(ours), len(theirs), len(of_last), len(outputs))
        return out[0].view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, d_out):
        first, last, activation, rates, last_rates, shape, dtype = ctx.settings
        fed, inner, inner_last, *rest = ctx.saved_tensors
        masks, ours, theirs, of_last, outputs, of_first = _split(rest, *ctx.counts)
        with torch.autocast(fed.device.type, enabled=False):
            if not outputs:
                outputs, of_first = first.outputs(fed, inner, ours, masks[:2], rates)
            gate, up = first.parts(outputs)
            d_y = last.gathered([d_out.reshape(len(fed), -1)])
            fed_last = last.room(len(fed))
            kernels.gated(last.values(fed_last), gate, up, activation)
            d_hidden, d_theirs = last.backward(
                d_y, fed_last, inner_last, of_last, theirs, masks[2:], last_rates, needs_x=True
            )
            del fed_last
            d_outputs = [torch.empty_like(output) for output in outputs]
            kernels.gated_backward(*first.parts(d_outputs), d_hidden, gate, up, activation)
            d_x, d_ours = first.backward(
                d_outputs, fed, inner, of_first, ours, masks[:2], rates, ctx.needs_input_grad[0]
            )
        return None if d_x is None else d_x.reshape(shape).to(dtype), None, None, None, None, *d_ours, *d_theirs


def _split(values: Sequence, *counts: int) -> list[Sequence]:
    """So many each, and the rest."""
    ends = [0, *itertools.accumulate(counts)]
    return [*(values[start:end] for start, end in itertools.pairwise(ends)), values[ends[-1] :]]
