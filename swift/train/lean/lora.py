"""LoRA projections that share an input as one: base weights and adapters in a single matrix product.

Promises: parameters are peft's own; values are those of peft's layers, but that base and adapter are added up before
the result is rounded. For the backward pass only the input and its product with A are kept (with dropout, a byte per
value and adapter). Knows nothing of DoRA, quantized weights or trained biases.

For projections y_i = W_i x + s_i B_i A_i x + b_i the matrix `joint` [sum of outputs, inputs + ranks] holds W in its
first columns and s_i B_i, block by block, in the others: [x, A x] times it is everything. W's parameters become views
of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from swift.train.lean import kernels, pages


class Projections:
    """LoRA layers of peft (`peft.tuners.lora.Linear`, one adapter) with the same input."""

    def __init__(self, layers: list[nn.Module], adapter: str):
        self.layers, self.adapter = layers, adapter
        bases = [layer.base_layer for layer in layers]
        self.inputs = bases[0].in_features
        self.outputs = [base.out_features for base in bases]
        self.ranks = [layer.r[adapter] for layer in layers]
        self.scales = [float(layer.scaling[adapter]) for layer in layers]
        weight = bases[0].weight
        self.joint = torch.zeros(
            sum(self.outputs), self.inputs + sum(self.ranks), dtype=weight.dtype, device=weight.device
        )
        for base, rows in zip(bases, self.joint[:, : self.inputs].split(self.outputs), strict=True):
            before = base.weight.data
            rows.copy_(before)
            base.weight.data = rows
            pages.give_back(before)
        biases = [base.bias for base in bases]
        self.bias = None
        if any(bias is not None for bias in biases):
            parts = [weight.new_zeros(n) if b is None else b.data for b, n in zip(biases, self.outputs, strict=True)]
            self.bias = torch.cat(parts)

    def dismantle(self) -> None:
        """Weights of their own again."""
        for layer in self.layers:
            layer.base_layer.weight.data = layer.base_layer.weight.data.clone(memory_format=torch.contiguous_format)

    def ready(self) -> bool:
        """Whether the layers are in the state in which this stands for them."""
        return all(
            not layer.merged and not layer.disable_adapters and list(layer.active_adapters) == [self.adapter]
            for layer in self.layers
        )

    def parameters(self) -> list[nn.Parameter]:
        """A and B of each layer."""
        found = []
        for layer in self.layers:
            found += [layer.lora_A[self.adapter].weight, layer.lora_B[self.adapter].weight]
        return found

    def rates(self) -> list[float]:
        """Dropout of each layer, 0 outside training."""
        modules = [layer.lora_dropout[self.adapter] for layer in self.layers]
        return [module.p if isinstance(module, nn.Dropout) and module.training else 0.0 for module in modules]

    # ---- the products, on [tokens, inputs] ----

    def masks(self, x: torch.Tensor) -> list[torch.Tensor | None]:
        return [keep_mask(x.shape, rate, x.device) if rate else None for rate in self.rates()]

    def room(self, tokens: int) -> torch.Tensor:
        """[tokens, inputs + ranks] for x, to be put into the first columns, and A x."""
        return self.joint.new_empty(tokens, self.joint.shape[1])

    def forward(self, wide: torch.Tensor, parameters: tuple, masks: list, rates: list[float]):
        """Outputs [tokens, sum of outputs] of [x, A x], of which only x is there; A x is put in."""
        dtype = self.joint.dtype
        inner = wide[:, self.inputs :].split(self.ranks, dim=1)
        blocks = self._blocks(self.joint)
        if any(mask is not None for mask in masks):
            for place, a, mask, rate in zip(inner, parameters[0::2], masks, rates, strict=True):
                place.copy_(dropped(wide[:, : self.inputs], mask, rate) @ a.to(dtype).T)
        else:
            joined = torch.cat([a.to(dtype) for a in parameters[0::2]])
            wide[:, self.inputs :] = wide[:, : self.inputs] @ joined.T
        for block, b, scale in zip(blocks, parameters[1::2], self.scales, strict=True):
            block.copy_(b.detach() * scale)
        return torch.nn.functional.linear(wide, self.joint, self.bias)

    def _blocks(self, matrix: torch.Tensor) -> list[torch.Tensor]:
        """The parts of [sum of outputs, inputs + ranks] that belong to one layer's B."""
        rows = matrix[:, self.inputs :].split(self.outputs)
        return [part.split(self.ranks, dim=1)[i] for i, part in enumerate(rows)]

    def backward(
        self, d_y: torch.Tensor, wide: torch.Tensor, parameters: tuple, masks: list, rates: list[float], needs_x
    ):
        """(gradient of x or None, gradients of A and B in turn)."""
        dtype = self.joint.dtype
        x = wide[:, : self.inputs]
        if needs_x:
            d_wide = d_y @ self.joint
            d_x, d_inner = d_wide[:, : self.inputs], d_wide[:, self.inputs :]
        else:
            d_x, d_inner = None, d_y @ self.joint[:, self.inputs :]
        gradients = []
        each = zip(
            d_inner.split(self.ranks, dim=1),
            wide[:, self.inputs :].split(self.ranks, dim=1),
            d_y.split(self.outputs, dim=1),
            parameters[0::2],
            parameters[1::2],
            self.scales,
            masks,
            rates,
            strict=True,
        )
        dropping = any(mask is not None for mask in masks)
        for d_i, inner, d_out, a, b, scale, mask, rate in each:
            seen = dropped(x, mask, rate)
            gradients.append((d_i.T @ seen).to(a.dtype))
            # not `d_out.T @ inner`: few columns take a CPU's library ten times as long as few rows
            gradients.append((inner.T @ d_out).T.mul(scale).to(b.dtype))
            if needs_x and dropping:
                d_x += dropped(d_i @ a.to(dtype), mask, rate)
        if needs_x and not dropping:
            d_x = torch.addmm(d_x, d_inner, torch.cat([a.to(dtype) for a in parameters[0::2]]))
        return d_x, gradients


def keep_mask(shape: torch.Size, rate: float, device: torch.device) -> torch.Tensor:
    """bool, True with probability 1 - rate (in steps of 2^-16), from torch's default generator."""
    count = shape.numel()
    drawn = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(torch.iinfo(torch.int64).min, None)
    return (drawn.view(torch.int16)[:count] >= round(rate * 65536) - 32768).view(shape)


def dropped(x: torch.Tensor, mask: torch.Tensor | None, rate: float) -> torch.Tensor:
    return x if mask is None else x * mask * (1 / (1 - rate))


class Project(torch.autograd.Function):
    """x [..., inputs], projections, their parameters -> one output per projection."""

    @staticmethod
    def forward(ctx: Any, x, group: Projections, *parameters):
        flat = x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            masks, rates = group.masks(flat), group.rates()
            wide = group.room(len(flat))
            wide[:, : group.inputs].copy_(flat)
            y = group.forward(wide, parameters, masks, rates)
        ctx.save_for_backward(wide, *(mask for mask in masks if mask is not None), *parameters)
        ctx.group, ctx.masked, ctx.rates = group, [m is not None for m in masks], rates
        ctx.like = (x.shape, x.dtype)
        # of their own each, or a kept v would keep q and k as they were before their rotation
        return tuple(part.contiguous() for part in y.view(*x.shape[:-1], -1).split(group.outputs, dim=-1))

    @staticmethod
    def backward(ctx: Any, *d_outputs):
        group = ctx.group
        saved = iter(ctx.saved_tensors)
        wide = next(saved)
        masks = [next(saved) if masked else None for masked in ctx.masked]
        parameters = tuple(saved)
        shape, dtype = ctx.like
        with torch.autocast(wide.device.type, enabled=False):
            d_y = torch.cat([d.reshape(len(wide), -1).to(wide.dtype) for d in d_outputs], dim=1)
            d_x, gradients = group.backward(d_y, wide, parameters, masks, ctx.rates, ctx.needs_input_grad[0])
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
            masks, rates = first.masks(flat), first.rates()
            wide, wide_hidden = first.room(len(flat)), last.room(len(flat))
            wide[:, : first.inputs].copy_(flat)
            y = first.forward(wide, ours, masks, rates)
            hidden = wide_hidden[:, : last.inputs]
            kernels.gated(hidden, *y.split(first.outputs, dim=1), activation)
            masks += last.masks(hidden)
            out = last.forward(wide_hidden, theirs, masks[2:], last.rates())
        inner = wide_hidden[:, last.inputs :].clone()
        ctx.save_for_backward(wide, inner, y if keep else None, *masks, *parameters)
        ctx.settings = (first, last, activation, rates, last.rates(), x.shape, x.dtype)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, d_out):
        first, last, activation, rates, last_rates, shape, dtype = ctx.settings
        wide, inner, y, *rest = ctx.saved_tensors
        masks, parameters = rest[:3], rest[3:]
        with torch.autocast(wide.device.type, enabled=False):
            if y is None:
                y = torch.nn.functional.linear(wide, first.joint, first.bias)
            gate, up = y.split(first.outputs, dim=1)
            d_out = d_out.reshape(len(wide), -1).to(wide.dtype)
            wide_hidden = last.room(len(wide))
            kernels.gated(wide_hidden[:, : last.inputs], gate, up, activation)
            wide_hidden[:, last.inputs :] = inner
            d_hidden, of_last = last.backward(d_out, wide_hidden, parameters[4:], masks[2:], last_rates, True)
            del wide_hidden
            d_y = torch.empty_like(y)
            d_gate, d_up = d_y.split(first.outputs, dim=1)
            kernels.gated_backward(d_gate, d_up, d_hidden, gate, up, activation)
            d_x, of_first = first.backward(d_y, wide, parameters[:4], masks[:2], rates, ctx.needs_input_grad[0])
        return None if d_x is None else d_x.reshape(shape).to(dtype), None, None, None, None, *of_first, *of_last
