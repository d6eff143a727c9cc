"""LoRA layers of peft that share an input, and their products: forward, and the gradients of input, A and B.

Promises: parameters are peft's own. In 32 bits the weights stay where they are and the adapters are added into the
result of each product. In 16 bits base and adapters are one product, so that the small update isn't rounded against the
large output: the matrix `joint` [sum of outputs, inputs + ranks] holds W in its first columns and s_i B_i, block by
block, in the others, [x, A x] times it is everything, and W's parameters become views of it. Weights in few bits stay
packed; what reaches x through them is computed with one of them at a time as plain numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from swift.models.quantized import is_quantized, plain_weight
from swift.train.lean import pages

Masks = Sequence[torch.Tensor | None]


def kind_of(layer: nn.Module) -> type[Projections]:
    """How the products of a LoRA layer of peft are computed."""
    if is_quantized(layer.base_layer):
        return Packed
    return Apart if layer.base_layer.weight.dtype == torch.float32 else Joined


class Projections:
    """y_i = W_i x + s_i B_i A_i x + b_i of layers (peft's, of one kind, this one adapter) with the same input; what is
    computed has the type `dtype`. What is fed to the products is `room`, whose `values` are x, or `fed(x)`;
    `inner` [tokens, sum of ranks] is A x. Outputs and their gradients are lists of [tokens, ...], which `parts` takes
    apart and `gathered` puts together.
    """

    def __init__(self, layers: list[nn.Module], adapter: str, dtype: torch.dtype):
        self.layers, self.adapter, self.dtype = layers, adapter, dtype
        self.bases = [layer.base_layer for layer in layers]
        self.inputs = self.bases[0].in_features
        self.widths = [base.out_features for base in self.bases]
        self.ranks = [layer.r[adapter] for layer in layers]
        self.scales = [float(layer.scaling[adapter]) for layer in layers]

    def dismantle(self) -> None:
        """Weights of their own again."""

    def ready(self, device: str) -> bool:
        """Whether the layers are in the state in which this stands for them."""
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) != self.dtype:
            return False
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

    def weight(self, place: int) -> torch.Tensor:
        """W of a layer [outputs, inputs] as plain numbers."""
        return self.bases[place].weight

    def masks(self, x: torch.Tensor) -> list[torch.Tensor | None]:
        return [keep_mask(x.shape, rate, x.device) if rate else None for rate in self.rates()]

    # ---- the products ----

    def room(self, tokens: int) -> torch.Tensor:
        """Empty; its `values` are to be set to x."""
        raise NotImplementedError

    def values(self, fed: torch.Tensor) -> torch.Tensor:
        """x [tokens, inputs] of what is fed."""
        return fed[:, : self.inputs]

    def fed(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def inner(self, fed: torch.Tensor, parameters: tuple, masks: Masks, rates: list[float]) -> torch.Tensor:
        x, to_inner = self.values(fed), [a.to(self.dtype) for a in parameters[0::2]]
        if all(mask is None for mask in masks):
            return x @ torch.cat(to_inner).T
        each = zip(to_inner, masks, rates, strict=True)
        return torch.cat([dropped(x, mask, rate) @ a.T for a, mask, rate in each], dim=1)

    def outputs(
        self, fed: torch.Tensor, inner: torch.Tensor, parameters: tuple, masks: Masks, rates: list[float]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """(outputs, what `backward` needs to know of them)."""
        return self.sums(fed, inner, parameters), []

    def sums(self, fed: torch.Tensor, inner: torch.Tensor, parameters: tuple) -> list[torch.Tensor]:
        """W x + s B A x + b"""
        raise NotImplementedError

    def parts(self, outputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError

    def gathered(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        raise NotImplementedError

    def backward(
        self,
        d_outputs: list[torch.Tensor],
        fed: torch.Tensor,
        inner: torch.Tensor,
        kept: Sequence[torch.Tensor],
        parameters: tuple,
        masks: Masks,
        rates: list[float],
        needs_x: bool,
    ) -> tuple[torch.Tensor | None, list[torch.Tensor]]:
        """(gradient of x or None, gradients of the parameters)."""
        d_x, d_inner = self.through(d_outputs, parameters, needs_x)
        if needs_x:
            self.through_a(d_x, d_inner, parameters, masks, rates)
        return d_x, self.of_adapters(d_outputs, d_inner, fed, inner, parameters, masks, rates)

    def through_a(
        self, d_x: torch.Tensor, d_inner: torch.Tensor, parameters: tuple, masks: Masks, rates: list[float]
    ) -> None:
        """Add what reaches x through A."""
        to_inner = [a.to(self.dtype) for a in parameters[0::2]]
        if all(mask is None for mask in masks):
            d_x.addmm_(d_inner, torch.cat(to_inner))
            return
        for d_i, a, mask, rate in zip(d_inner.split(self.ranks, dim=1), to_inner, masks, rates, strict=True):
            d_x += dropped(d_i @ a, mask, rate)

    def of_adapters(
        self,
        d_outputs: list[torch.Tensor],
        d_inner: torch.Tensor,
        fed: torch.Tensor,
        inner: torch.Tensor,
        parameters: tuple,
        masks: Masks,
        rates: list[float],
    ) -> list[torch.Tensor]:
        """The gradients of A and B in turn."""
        x = self.values(fed)
        if all(mask is None for mask in masks):
            of_a = (d_inner.T @ x).split(self.ranks)
        else:
            each = zip(d_inner.split(self.ranks, dim=1), masks, rates, strict=True)
            of_a = [d_i.T @ dropped(x, mask, rate) for d_i, mask, rate in each]
        # not `d_out.T @ inner`: few columns take a CPU's library ten times as long as few rows
        each = zip(inner.split(self.ranks, dim=1), self.parts(d_outputs), self.scales, strict=True)
        of_b = [(i.T @ d_out).T.mul(scale) for i, d_out, scale in each]
        pairs = zip(of_a, of_b, parameters[0::2], parameters[1::2], strict=True)
        return [g for d_a, d_b, a, b in pairs for g in (d_a.to(a.dtype), d_b.to(b.dtype))]

    def through(
        self, d_outputs: list[torch.Tensor], parameters: tuple, needs_x: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """(what reaches x through W, a tensor of its own, or None; what reaches A x [tokens, sum of ranks])."""
        raise NotImplementedError


class Apart(Projections):
    """Each weight where it is."""

    def product(self, place: int, fed: torch.Tensor) -> torch.Tensor:
        """W x + b of a layer."""
        return F.linear(fed, self.bases[place].weight, self.bases[place].bias)

    def room(self, tokens: int) -> torch.Tensor:
        return torch.empty(tokens, self.inputs, dtype=self.dtype, device=self.layers[0].weight.device)

    def fed(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.dtype)

    def sums(self, fed: torch.Tensor, inner: torch.Tensor, parameters: tuple) -> list[torch.Tensor]:
        found = [self.product(place, fed) for place in range(len(self.bases))]
        each = zip(found, inner.split(self.ranks, dim=1), parameters[1::2], self.scales, strict=True)
        return [out.addmm_(i, b.to(out.dtype).T, alpha=scale) for out, i, b, scale in each]

    def parts(self, outputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(outputs)

    def gathered(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [part.to(self.dtype) for part in parts]

    def through(
        self, d_outputs: list[torch.Tensor], parameters: tuple, needs_x: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        each = zip(d_outputs, parameters[1::2], self.scales, strict=True)
        d_inner = torch.cat([(d_out @ b.to(d_out.dtype)).mul_(scale) for d_out, b, scale in each], dim=1)
        d_x = None
        if needs_x:
            for place, d_out in enumerate(d_outputs):
                d_x = d_out @ self.weight(place) if d_x is None else d_x.addmm_(d_out, self.weight(place))
        return d_x, d_inner


class Packed(Apart):
    """Each weight where it is, in few bits."""

    def product(self, place: int, fed: torch.Tensor) -> torch.Tensor:
        return self.bases[place](fed)

    def weight(self, place: int) -> torch.Tensor:
        return plain_weight(self.bases[place]).to(self.dtype)


class Joined(Projections):
    """Base weights and adapters in a single matrix; what is fed is [x, A x]."""

    def __init__(self, layers: list[nn.Module], adapter: str, dtype: torch.dtype):
        super().__init__(layers, adapter, dtype)
        weight = self.bases[0].weight
        self.joint = weight.new_zeros(sum(self.widths), self.inputs + sum(self.ranks))
        for base, rows in zip(self.bases, self.joint[:, : self.inputs].split(self.widths), strict=True):
            before = base.weight.data
            rows.copy_(before)
            base.weight.data = rows
            pages.give_back(before)
        biases = [base.bias for base in self.bases]
        self.bias = None
        if any(bias is not None for bias in biases):
            parts = [weight.new_zeros(n) if b is None else b.data for b, n in zip(biases, self.widths, strict=True)]
            self.bias = torch.cat(parts)

    def dismantle(self) -> None:
        for base in self.bases:
            base.weight.data = base.weight.data.clone(memory_format=torch.contiguous_format)

    def room(self, tokens: int) -> torch.Tensor:
        return self.joint.new_empty(tokens, self.joint.shape[1])

    def fed(self, x: torch.Tensor) -> torch.Tensor:
        wide = self.room(len(x))
        self.values(wide).copy_(x)
        return wide

    def sums(self, fed: torch.Tensor, inner: torch.Tensor, parameters: tuple) -> list[torch.Tensor]:
        fed[:, self.inputs :] = inner
        rows = self.joint[:, self.inputs :].split(self.widths)
        for place, (part, b, scale) in enumerate(zip(rows, parameters[1::2], self.scales, strict=True)):
            part.split(self.ranks, dim=1)[place].copy_(b.detach() * scale)
        return [F.linear(fed, self.joint, self.bias)]

    def parts(self, outputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return outputs[0].split(self.widths, dim=1)

    def gathered(self, parts: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.cat([part.to(self.dtype) for part in parts], dim=1)]

    def through(
        self, d_outputs: list[torch.Tensor], parameters: tuple, needs_x: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        if not needs_x:
            return None, d_outputs[0] @ self.joint[:, self.inputs :]
        both = d_outputs[0] @ self.joint
        return both[:, : self.inputs], both[:, self.inputs :]


def keep_mask(shape: torch.Size, rate: float, device: torch.device) -> torch.Tensor:
    """bool, True with probability 1 - rate (in steps of 2^-16), from torch's default generator."""
    count = shape.numel()
    drawn = torch.empty(-(-count // 4), dtype=torch.int64, device=device).random_(torch.iinfo(torch.int64).min, None)
    return (drawn.view(torch.int16)[:count] >= round(rate * 65536) - 32768).view(shape)


def dropped(x: torch.Tensor, mask: torch.Tensor | None, rate: float) -> torch.Tensor:
    return x if mask is None else x * mask * (1 / (1 - rate))
