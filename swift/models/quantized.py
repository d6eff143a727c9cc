"""A model whose weights are held in few bits, whoever packed them: how much of it, in how many bytes, and the plain
model that its numbers stand for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from swift.hub.resources import human_bytes
from swift.models.packed import BLOCK, PackedWeight, fused_experts

BITSANDBYTES = ("Linear4bit", "Linear8bitLt")


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight is a tensor that holds few bits and computes (PackedWeight, torchao's kinds); by its
    class no one takes it for a layer whose weight can be joined with others or read as numbers.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.weight, PackedWeight) or not (torch.is_grad_enabled() and x.requires_grad):
            return super().forward(x)
        return _Frozen.apply(x, self.weight, self.bias)


class _Frozen(torch.autograd.Function):
    """A linear layer that doesn't train, for kernels that have no gradient (torchao's int4 on a processor)."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        context.weight = weight
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return gradient @ context.weight.dequantize().to(gradient.dtype), None, None


def is_quantized(layer: nn.Module) -> bool:
    return isinstance(layer, QuantizedLinear) or type(layer).__name__ in BITSANDBYTES


def mark_quantized(model: nn.Module) -> None:
    """Give linear layers with a quantized weight their class."""
    for layer in model.modules():
        if type(layer) is nn.Linear and _is_packed(layer.weight):
            layer.__class__ = QuantizedLinear


def _is_packed(weight: torch.Tensor) -> bool:
    return isinstance(weight, PackedWeight) or type(weight).__module__.startswith("torchao.")


def dequantize(model: nn.Module, dtype: str) -> None:
    """Make a model that was quantized while it was loaded a plain one, with the values that its numbers stand for."""
    from swift.models.load import forget_quantization

    wanted = getattr(torch, dtype)
    for name, layer in list(model.named_modules()):
        if is_quantized(layer):
            plain = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
            plain.weight = nn.Parameter(plain_weight(layer).to(wanted), requires_grad=False)
            plain.bias = layer.bias
            model.set_submodule(name, plain)
    packed = [name for name, parameter in model.named_parameters() if isinstance(parameter, PackedWeight)]
    for name in packed:
        owner, _, leaf = name.rpartition(".")
        plain = nn.Parameter(model.get_parameter(name).plain().to(wanted), requires_grad=False)
        setattr(model.get_submodule(owner), leaf, plain)
    forget_quantization(model)


@torch.no_grad()
def plain_weight(layer: nn.Module) -> torch.Tensor:
    """The weight [outputs, inputs] of a quantized layer as the numbers that it stands for."""
    weight = layer.weight
    if isinstance(layer, QuantizedLinear):
        return weight.plain() if isinstance(weight, PackedWeight) else weight.dequantize()
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    return dequantize_bnb_weight(weight, getattr(layer, "state", None))


def quantized_weights(model: nn.Module) -> tuple[int, int]:
    """(weights that are held in few bits, all other weights of the model)."""
    layers = [m for m in model.modules() if is_quantized(m)]
    packed = {id(m.weight): m.in_features * m.out_features for m in layers}
    packed |= {id(p): p.numel() for p in model.parameters() if isinstance(p, PackedWeight)}
    kept = sum(p.numel() for p in model.parameters() if id(p) not in packed)
    return sum(packed.values()), kept


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all weights as they are held."""
    held = sum(held_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))
    states = [getattr(p, "quant_state", None) for p in model.parameters()]
    held += sum(s.absmax.nbytes for s in states if s is not None)
    return held + sum(p.SCB.nbytes for p in model.parameters() if getattr(p, "SCB", None) is not None)


def held_bytes(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, or of the tensors that one of another kind consists of."""
    if isinstance(tensor, PackedWeight):
        return tensor.packed_bytes
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(held_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.nbytes


def quantized_share(model: nn.Module) -> str:
    """What was really quantized, and how much memory the weights take, as a sentence."""
    quantized, kept = quantized_weights(model)
    share = 100 * quantized / (quantized + kept)
    left = sum(model.get_parameter(name).numel() for name in fused_experts(model) if not _in_bits(model, name))
    note = f"; experts ({100 * left / (quantized + kept):.0f} %) stay in {model.dtype}" if left else ""
    if not quantized:
        note += f"; no layer's rows are a multiple of {BLOCK} numbers, which this needs here"
    held, plain = weight_bytes(model), (quantized + kept) * torch.empty(0, dtype=model.dtype).element_size()
    too = ", experts included" if any(isinstance(p, PackedWeight) and p.ndim == 3 for p in model.parameters()) else ""
    said = f"{share:.0f} % of the weights are quantized{too}{note}: {human_bytes(held)} instead of {human_bytes(plain)}"
    return said.replace("torch.", "")


def _in_bits(model: nn.Module, name: str) -> bool:
    return isinstance(model.get_parameter(name), PackedWeight)
