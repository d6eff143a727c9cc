"""DoRA (Liu et al., 2024, arXiv 2402.09353) over LoRA projections: the rows of W + s B A at lengths m of their own.

Promises: as peft, the length of the direction is a constant for gradients, and with dropout the part that m changes
sees the dropped input. That length is made from |W|^2, W A' and A A', without the matrix W + s B A.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from swift.train.lean.projections import Masks, Projections, dropped


class Dora:
    """z_i = W_i x + s_i B_i A_i x, y_i = z_i + (m_i / |W_i + s_i B_i A_i| - 1) z_i + b_i: `Projections` whose
    `parameters` end with the lengths m_i. With dropout the second z_i is of the dropped input.
    """

    def __init__(self, plain: Projections):
        self.plain = plain
        self.squares: list[torch.Tensor] = []

    def __getattr__(self, name: str):
        return getattr(self.plain, name)

    def parameters(self) -> list[nn.Parameter]:
        """A and B of each layer, then the lengths."""
        vectors = [layer.lora_magnitude_vector[self.plain.adapter].weight for layer in self.plain.layers]
        return self.plain.parameters() + vectors

    def inner(self, fed: torch.Tensor, parameters: tuple, masks: Masks, rates: list[float]) -> torch.Tensor:
        return self.plain.inner(fed, self._adapters(parameters), masks, rates)

    def outputs(
        self, fed: torch.Tensor, inner: torch.Tensor, parameters: tuple, masks: Masks, rates: list[float]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Kept: the lengths of the directions, then z of each layer with dropout, y without."""
        plain, adapters = self.plain, self._adapters(parameters)
        norms = self._norms(adapters)
        outputs = plain.sums(fed, inner, adapters)
        factors = self._factors(parameters, norms)
        parts = plain.parts(outputs)
        if all(mask is None for mask in masks):
            for part, base, factor in zip(parts, plain.bases, factors, strict=True):
                part.mul_(factor)
                if base.bias is not None:
                    part.sub_((factor - 1) * base.bias)
            return outputs, [*norms, *outputs]
        x, z = plain.values(fed), []
        each = zip(inner.split(plain.ranks, dim=1), adapters[1::2], plain.scales, masks, rates, strict=True)
        for place, (i, b, scale, mask, rate) in enumerate(each):
            of_w = F.linear(dropped(x, mask, rate), plain.weight(place))
            z.append(of_w.addmm_(i, b.to(i.dtype).T, alpha=scale))
            parts[place].add_(z[place] * (factors[place] - 1))
        return outputs, [*norms, *z]

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
        plain, adapters, count = self.plain, self._adapters(parameters), len(self.plain.layers)
        norms, factors = kept[:count], self._factors(parameters, kept[:count])
        d_parts = plain.parts(d_outputs)
        d_z = plain.gathered([d * factor for d, factor in zip(d_parts, factors, strict=True)])
        if all(mask is None for mask in masks):
            of_lengths = self._of_lengths(d_parts, plain.parts(kept[count:]), norms, factors)
            d_x, gradients = plain.backward(d_z, fed, inner, (), adapters, masks, rates, needs_x)
            return d_x, gradients + self._typed(of_lengths, parameters)
        each = zip(d_parts, kept[count:], norms, strict=True)
        of_lengths = [(d.float() * z).sum(0) / norm for d, z, norm in each]
        _, d_inner = plain.through(d_z, adapters, False)
        gradients = plain.of_adapters(d_z, d_inner, fed, inner, adapters, masks, rates)
        d_x = None
        if needs_x:
            d_x = plain.through(d_outputs, adapters, True)[0]
            for place, (d, factor) in enumerate(zip(d_parts, factors, strict=True)):
                d_x += dropped((d * (factor - 1)).to(plain.dtype) @ plain.weight(place), masks[place], rates[place])
            plain.through_a(d_x, d_inner, adapters, masks, rates)
        return d_x, gradients + self._typed(of_lengths, parameters)

    def _of_lengths(self, d_parts, parts, norms, factors) -> list[torch.Tensor]:
        """The gradients of m, d z summed over tokens and divided by |W + s B A|, with z as (y - b) / factor."""
        found = []
        for d, y, base, norm, factor in zip(d_parts, parts, self.plain.bases, norms, factors, strict=True):
            total = (d * y).sum(0, dtype=torch.float32)
            if base.bias is not None:
                total -= d.sum(0, dtype=torch.float32) * base.bias
            found.append(total / factor / norm)
        return found

    def _adapters(self, parameters: tuple) -> tuple:
        return parameters[: 2 * len(self.plain.layers)]

    def _typed(self, gradients: list[torch.Tensor], parameters: tuple) -> list[torch.Tensor]:
        lengths = parameters[2 * len(self.plain.layers) :]
        return [g.to(m.dtype) for g, m in zip(gradients, lengths, strict=True)]

    def _factors(self, parameters: tuple, norms: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """float32: few steps of m would be seen in 16 bits"""
        lengths = parameters[2 * len(self.plain.layers) :]
        return [m.detach().float() / norm for m, norm in zip(lengths, norms, strict=True)]

    def _norms(self, adapters: tuple) -> list[torch.Tensor]:
        """|W + s B A| of each output, float32 [outputs] for each layer."""
        found = []
        for place, (a, b, scale) in enumerate(zip(adapters[0::2], adapters[1::2], self.plain.scales, strict=True)):
            weight = self.plain.weight(place)
            if len(self.squares) == place:
                self.squares.append(torch.linalg.vector_norm(weight, dim=1, dtype=torch.float32).square_())
            crossed, b = (a.to(weight.dtype) @ weight.T).T.float(), b.float()
            a = a.float()
            square = self.squares[place] + (b * (2 * scale * crossed + scale * scale * (b @ (a @ a.T)))).sum(1)
            found.append(square.clamp_(min=0).sqrt_())
        return found
