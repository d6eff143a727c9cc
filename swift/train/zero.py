"""Weights that DeepSpeed's ZeRO-3 has cut in parts, as one process would have them, and the size of such weights.

Promises: one tensor at a time is gathered, and only the first process keeps it, in main memory. Every process must
call `gathered_weights`.
"""

from __future__ import annotations

import torch
from torch import nn


def numel(parameter: torch.Tensor) -> int:
    """Elements of the whole parameter, of which ZeRO-3 leaves none in its place."""
    return getattr(parameter, "ds_numel", parameter.numel())


def gathered_weights(model: nn.Module, keep: bool, trained_only: bool = False) -> dict[str, torch.Tensor]:
    """The whole tensors of the model by name; empty where `keep` is False. Tied weights stay one tensor."""
    from deepspeed.runtime.zero import GatheredParameters

    seen: dict[int, torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if trained_only and not parameter.requires_grad:
            continue
        if id(parameter) not in seen:
            with GatheredParameters([parameter]):
                seen[id(parameter)] = parameter.detach().cpu().clone() if keep else torch.empty(0)
        if keep:
            found[name] = seen[id(parameter)]
    if keep and not trained_only:
        found |= {name: buffer for name, buffer in model.state_dict().items() if name not in found}
    return found
