"""Weights and optimizer state of a model that FSDP2 has cut in shards, as one process would have them, and back.

Promises: what is gathered has the names, shapes and order of a run without FSDP, so that checkpoints are the same and
any number of processes goes on from them. One tensor at a time is gathered, and only the first process keeps it, in
main memory. Every process must call these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor


def gathered_weights(model: nn.Module, keep: bool, trained_only: bool = False) -> dict[str, torch.Tensor]:
    """The whole tensors of a sharded model by name; empty where `keep` is False. Tied weights stay one tensor."""
    seen: dict[int, torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}
    for name, tensor, trains in _tensors(model):
        if trained_only and not trains:
            continue
        if id(tensor) not in seen:
            seen[id(tensor)] = _whole(tensor, keep)
        if keep:
            found[name] = seen[id(tensor)]
    return found


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """Parameters and the buffers that belong to a checkpoint: (name, tensor, whether it trains)."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        yield name, parameter, parameter.requires_grad
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(prefix, recurse=False):
            if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                yield name, buffer, False


def _whole(tensor: torch.Tensor, keep: bool) -> torch.Tensor:
    value = tensor.detach()
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.cpu().clone() if keep else torch.empty(0)


def gathered_optimizer(optimizer: Any, keep: bool) -> dict[str, Any]:
    """`optimizer.state_dict()` with whole tensors; None for each of them where `keep` is False."""
    state = optimizer.state_dict()
    whole = {
        number: {
            name: _whole(value, keep) if isinstance(value, torch.Tensor) else value for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": whole}


def load_optimizer(optimizer: Any, state: dict[str, Any]) -> None:
    """Give each process its shards of an optimizer's whole state."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    shards = {}
    for number, values in state["state"].items():
        parameter = parameters[number]
        shards[number] = {name: _shard(value, parameter) for name, value in values.items()}
    optimizer.load_state_dict({**state, "state": shards})


def _shard(value: Any, parameter: torch.Tensor) -> Any:
    """The part of `value` that belongs to this process's part of `parameter`; steps and other scalars stay whole."""
    if not isinstance(value, torch.Tensor) or not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    device = parameter.to_local().device
    mesh = parameter.device_mesh
    placed = value.to(mesh.device_type if device.type == "cpu" else device)
    return distribute_tensor(placed, mesh, parameter.placements, src_data_rank=None)
