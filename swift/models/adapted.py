"""LoRA over packed experts without the experts in full: base and low-rank change stay apart until something computes.

peft adds an adapter to fused experts [experts, rows, columns] as one tensor base + scaling * left @ right. Over experts
in 8 or 4 bits this would hold all of a layer's experts unpacked, and autograd would keep them. AdaptedExperts is that
sum not yet taken. Picking one expert and transposing leave it so; a product x @ it is x @ base + scaling * (x @ left)
@ right, for which one expert at a time is unpacked, and again in the backward pass. Other operations take the sum.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.Tensor.bmm, torch.mm)
_TURNS = (torch.transpose, torch.Tensor.transpose, torch.swapaxes, torch.Tensor.swapaxes)


class AdaptedExperts(torch.Tensor):
    """base + scaling * left @ right: base a PackedWeight [..., rows, columns], left [..., rows, rank], right [...,
    rank, columns].
    """

    base: torch.Tensor
    left: torch.Tensor
    right: torch.Tensor
    scaling: float

    @staticmethod
    def __new__(cls, base: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scaling: float):
        made = torch.Tensor._make_wrapper_subclass(cls, base.shape, dtype=base.dtype, device=base.device)
        made.base, made.left, made.right, made.scaling = base, left, right, scaling
        return made

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __repr__(self, **_: Any) -> str:
        return f"AdaptedExperts({self.base!r}, rank {self.left.shape[-1]})"

    def summed(self) -> torch.Tensor:
        """The plain tensor, through which gradients reach left and right."""
        return self.base + self.scaling * (self.left @ self.right)

    def turned(self) -> AdaptedExperts:
        return AdaptedExperts(
            self.base.transpose(-1, -2), self.right.transpose(-1, -2), self.left.transpose(-1, -2), self.scaling
        )

    def after(self, x: torch.Tensor) -> torch.Tensor:
        """x @ self."""
        return x @ self.base + self.scaling * (x @ self.left @ self.right)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__name__", "") == "__get__":
            if function in (torch.Tensor.T.__get__, torch.Tensor.mT.__get__):
                return args[0].turned()
            return torch._C._disabled_torch_function_impl(function, types, args, kwargs)
        if not kwargs or function is functional.linear:
            kept = _without_sum(function, args, kwargs)
            if kept is not None:
                return kept
        args, kwargs = torch.utils._pytree.tree_map_only(cls, cls.summed, (args, kwargs))
        return function(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = torch.utils._pytree.tree_map_only(cls, cls.summed, (args, kwargs or {}))
        return function(*args, **kwargs)


def _without_sum(function: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation that needs no sum, or None."""
    first, rest = args[0], args[1:]
    if isinstance(first, AdaptedExperts):
        if function is torch.Tensor.__getitem__ and first.ndim == 3 and _picks_experts(rest[0]):
            index = rest[0]
            return AdaptedExperts(first.base[index], first.left[index], first.right[index], first.scaling)
        if function in _TURNS and {axis % first.ndim for axis in rest} == {first.ndim - 2, first.ndim - 1}:
            return first.turned()
        if function in (torch.t, torch.Tensor.t):
            return first.turned()
        return None
    other = rest[0] if rest else None
    if not isinstance(other, AdaptedExperts) or other.ndim != 2 and first.ndim != other.ndim:
        return None
    if function is functional.linear:
        bias = rest[1] if len(rest) > 1 else kwargs.get("bias")
        low = functional.linear(functional.linear(first, other.right), other.left)
        return functional.linear(first, other.base, bias) + other.scaling * low
    return other.after(first) if function in _PRODUCTS else None


def _picks_experts(index: Any) -> bool:
    """Whether the index is a number, or a tensor of numbers."""
    return isinstance(index, int) or (isinstance(index, torch.Tensor) and index.dtype == torch.long)
