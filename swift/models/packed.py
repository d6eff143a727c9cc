"""Weights in 8 or 4 bits: a tensor that is stored packed and computes as the plain one that it stands for.

transformers fuses the experts of a layer into tensors [experts, rows, columns], which the quantization libraries pass
over. A PackedWeight stands in their place as the module's parameter, in FP8 also in that of a linear layer's matrix
[rows, columns]. Picking experts and transposing stay packed; whatever computes gets plain numbers, and autograd keeps
the packed form for the backward pass.

  int8      integers with a bfloat16 scale for every 128 columns at most
  int4      integers 0 to 15, two a byte, with a bfloat16 step and smallest value for every 64 columns at most
  fp8       float8_e4m3fn with a float32 scale for every block of 128 x 128, as FP8 checkpoints have it
  nf4, fp4  codes of bitsandbytes in blocks of 64, with bfloat16 scales
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from swift.models.adapted import AdaptedExperts
from swift.models.packing import pack_fp8, unpack_fp8

BLOCK = 64  # weights that share a scale in 4 bits
GROUP = 128  # at most so many in 8 bits
BITSANDBYTES = ("nf4", "fp4")
aten = torch.ops.aten


@dataclass(frozen=True)
class Packing:
    """How the codes are to be read. `shape` is [experts, rows, columns] or [rows, columns]; `kind`: see the module."""

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def can_pack(weight: torch.Tensor, kind: str) -> bool:
    """Whether `weight` [experts, rows, columns] divides into blocks."""
    if kind == "int4":
        return weight.shape[-1] % 2 == 0
    return kind not in BITSANDBYTES or (weight.shape[1] * weight.shape[2]) % BLOCK == 0


def pack(weight: torch.Tensor, kind: str) -> PackedWeight:
    """`weight` [experts, rows, columns] in few bits, one expert after the other (little memory beside it); or one
    matrix [rows, columns].
    """
    packing = Packing(kind, tuple(weight.shape), weight.dtype)
    if weight.ndim == 2:
        return PackedWeight(*_pack_one(weight.detach(), kind), packing)
    coded = [_pack_one(one, kind) for one in weight.detach()]
    codes, scales = (torch.stack(parts) for parts in zip(*coded, strict=True))
    return PackedWeight(codes, scales, packing)


def _pack_one(one: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    if kind == "fp8":
        return pack_fp8(one)
    if kind in BITSANDBYTES:
        return _pack_4bit(one, kind)
    return _pack_int8(one) if kind == "int8" else _pack_int4(one)


def _group(columns: int, most: int = GROUP) -> int:
    """The largest power of two up to `most` that divides the columns, or all columns where that would be below 16."""
    group = most
    while columns % group:
        group //= 2
    return group if group >= 16 or columns > most else columns


def _pack_int8(one: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    grouped = one.float().unflatten(-1, (-1, _group(one.shape[-1])))
    scales = (grouped.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-12).bfloat16()
    codes = (grouped / scales.float()).round().clamp(-127, 127).to(torch.int8)
    return codes.flatten(-2), scales.squeeze(-1)


def _pack_int4(one: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    grouped = one.float().unflatten(-1, (-1, _group(one.shape[-1], BLOCK)))
    least = grouped.amin(-1, keepdim=True).bfloat16()
    step = ((grouped.amax(-1, keepdim=True) - least.float()) / 15).clamp(min=1e-12).bfloat16()
    codes = ((grouped - least.float()) / step.float()).round().clamp(0, 15).to(torch.uint8).flatten(-2)
    return codes[..., ::2] | codes[..., 1::2] << 4, torch.cat([step, least], -1)


def _pack_4bit(one: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    from bitsandbytes.functional import quantize_4bit

    # in rows of one block: with rows that end within a block, bitsandbytes reads other numbers on a CPU than it wrote
    rows = one.reshape(-1, BLOCK).contiguous()
    codes, state = quantize_4bit(rows, blocksize=BLOCK, quant_type=kind, compress_statistics=False)
    return codes.flatten(), state.absmax.bfloat16()


def unpack(codes: torch.Tensor, scales: torch.Tensor, packing: Packing) -> torch.Tensor:
    """The plain tensor of `packing.shape` and dtype."""
    if packing.kind == "int8":
        group = packing.shape[-1] // scales.shape[-1]
        plain = codes.to(packing.dtype).unflatten(-1, (-1, group)) * scales.to(packing.dtype).unsqueeze(-1)
        return plain.flatten(-2)
    if packing.kind == "int4":
        step, least = scales.to(packing.dtype).unsqueeze(-2).unbind(-1)
        plain = torch.stack([codes & 15, codes >> 4], -1).to(packing.dtype)
        return plain.view(*scales.shape[:-1], -1).mul_(step).add_(least).flatten(-2)
    if packing.kind == "fp8":
        return unpack_fp8(codes, scales, packing.dtype)
    from bitsandbytes.functional import QuantState, dequantize_4bit, get_4bit_type

    state = QuantState(
        absmax=scales.float().flatten(),
        shape=torch.Size((scales.numel(), BLOCK)),
        code=get_4bit_type(packing.kind, device=codes.device),
        blocksize=BLOCK,
        quant_type=packing.kind,
        dtype=packing.dtype,
    )
    return dequantize_4bit(codes.reshape(-1, 1), state).reshape(packing.shape)


class PackedWeight(torch.Tensor):
    """See the module. `turned`: the last two dimensions are swapped. One expert [rows, columns] is packed as well."""

    codes: torch.Tensor
    scales: torch.Tensor
    packing: Packing
    turned: bool

    @staticmethod
    def __new__(cls, codes: torch.Tensor, scales: torch.Tensor, packing: Packing, turned: bool = False):
        shape = (*packing.shape[:-2], packing.shape[-1], packing.shape[-2]) if turned else packing.shape
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=packing.dtype, device=codes.device)
        made.codes, made.scales, made.packing, made.turned = codes, scales, packing, turned
        return made

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __repr__(self, **_: Any) -> str:
        return f"PackedWeight({self.packing.kind}, {tuple(self.shape)}, {self.dtype})"

    @property
    def packed_bytes(self) -> int:
        return self.codes.nbytes + self.scales.nbytes

    def plain(self) -> torch.Tensor:
        found = unpack(self.codes, self.scales, self.packing)
        return found.transpose(-1, -2) if self.turned else found

    def _like(self, turn: bool = False, dtype: torch.dtype | None = None, device: Any = None) -> PackedWeight:
        packing = replace(self.packing, dtype=dtype or self.packing.dtype)
        codes, scales = (part.to(device) if device is not None else part for part in (self.codes, self.scales))
        return PackedWeight(codes, scales, packing, self.turned != turn)

    def _some(self, index: Any) -> PackedWeight:
        """The experts of an index into the first dimension: a number, or a tensor of numbers."""
        codes, scales = self.codes[index], self.scales[index]
        first = () if isinstance(index, int) else tuple(index.shape)
        packing = replace(self.packing, shape=(*first, *self.packing.shape[-2:]))
        return PackedWeight(codes, scales, packing, self.turned)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.baddbmm and isinstance(args[0], cls) and kwargs.keys() <= {"alpha"}:  # peft's LoRA
            return AdaptedExperts(*args, kwargs.get("alpha", 1))
        if torch.is_inference_mode_enabled():  # in which no view of a packed tensor can be made
            with torch.inference_mode(False), torch.no_grad():
                return torch._C._disabled_torch_function_impl(function, types, args, kwargs)
        return torch._C._disabled_torch_function_impl(function, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, cls):
            kept = _stays_packed(function, first, args[1:], kwargs)
            if kept is not None:
                return kept
        args, kwargs = torch.utils._pytree.tree_map_only(cls, cls.plain, (args, kwargs))
        return function(*args, **kwargs)


def _stays_packed(function: Any, one: PackedWeight, rest: Any, kwargs: Any) -> PackedWeight | None:
    """The result of an operation that needs no numbers, or None."""
    if function in (aten.detach.default, aten.alias.default, aten.clone.default, aten.lift_fresh.default):
        return one._like()
    if function is aten.set_.source_Tensor and rest[0] is one:
        return one
    if function is aten._to_copy.default:
        dtype = kwargs.get("dtype")
        if dtype is None or dtype.is_floating_point:
            return one._like(dtype=dtype, device=kwargs.get("device"))
    if function is aten.select.int and one.ndim == 3 and rest[0] == 0:
        return one._some(int(rest[1]))
    if function is aten.index.Tensor and one.ndim == 3 and len(rest[0]) == 1 and rest[0][0].dtype == torch.long:
        return one._some(rest[0][0])
    if function is aten.t.default and one.ndim == 2:
        return one._like(turn=True)
    if function is aten.transpose.int and {d % one.ndim for d in rest} == {one.ndim - 2, one.ndim - 1}:
        return one._like(turn=True)
    return None


def fused_experts(model: nn.Module) -> list[str]:
    """Full names of the parameters [experts, rows, columns] that hold the experts of a layer in one."""
    counts = expert_counts(model.config)
    found = []
    for owner, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{owner}.{name}" if owner else name
            if parameter.ndim == 3 and (".experts." in full or (parameter.shape[0] in counts and _wide(parameter))):
                found.append(full)
    return found


def _wide(parameter: torch.Tensor) -> bool:
    return min(parameter.shape[1:]) > 1


def expert_counts(config: Any) -> set[int]:
    """Numbers of experts that a config names."""
    text = config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_experts_per_layer")
    counts = {getattr(text, name, None) for name in names}
    return {count for count in counts if isinstance(count, int) and not isinstance(count, bool) and count > 1}
