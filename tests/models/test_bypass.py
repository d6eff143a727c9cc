"""Layers that aren't asked the way a linear layer is: read past their forward, of another shape, or linear by another
name. The classes are made up here; what is real is tested by the matrix.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from swift.models.bypass import bypassed, cast_to, has_own_gradients, linear_by_another_name, odd_layers


class Grouped(nn.Linear):
    """Two groups of inputs with weights of their own, as in DeepSeek-V4."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves = x.unflatten(-1, (2, -1))
        return torch.einsum("...gi,goi->...go", halves, self.weight.unflatten(0, (2, -1)))


class Renamed(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x @ self.weight.T
        return out if self.bias is None else out + self.bias


class Doubled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Router(nn.Linear):
    """A linear layer with two results, as Llama 4's router."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = super().forward(x)
        return scores.sigmoid(), scores


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.read, self.asked, self.typed, self.sliced = (nn.Linear(8, 8) for _ in range(4))
        self.grouped, self.renamed, self.doubled = Grouped(4, 8), Renamed(8, 8), Doubled(8, 8)
        self.router = Router(8, 4)
        self.patches = nn.ModuleDict({"proj": nn.Linear(8, 8)})
        self.pretraining_tp = 1
        nn.init.zeros_(self.asked.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.asked(x).to(self.typed.weight.dtype)
        wanted = self.patches.proj.weight.dtype
        x = self.patches.proj(x.to(dtype=wanted))
        if self.pretraining_tp > 1:
            x = functional.linear(x, self.sliced.weight[:4])
        return self.typed(x) + functional.linear(x, self.read.weight)


ODD = tuple(f"layers.{i}.{name}" for i in (0, 1) for name in ("grouped", "router"))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Mixer(), Mixer()])


def test_only_weights_that_are_computed_with_elsewhere_count_as_bypassed():
    assert bypassed(Model()) == ("layers.0.read", "layers.1.read")


def test_layers_of_another_shape_are_odd_and_renamed_ones_are_not():
    model = Model()
    assert odd_layers(model) == ODD
    with torch.device("meta"):
        assert odd_layers(Model()) == ODD
    renamed = linear_by_another_name(model)
    assert renamed == [layer.renamed for layer in model.layers]


def test_layers_to_whose_dtype_inputs_are_cast_stay_out_of_few_bits():
    assert cast_to(Model()) == tuple(f"layers.{i}.{name}" for i in (0, 1) for name in ("patches.proj", "typed"))


def test_a_model_that_runs_the_backward_of_its_layers_itself_is_known():
    from transformers import BloomForCausalLM, ReformerModelWithLMHead

    assert has_own_gradients(ReformerModelWithLMHead.__new__(ReformerModelWithLMHead))
    assert not has_own_gradients(BloomForCausalLM.__new__(BloomForCausalLM))
