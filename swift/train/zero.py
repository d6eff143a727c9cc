"""What DeepSpeed has cut in parts: ZeRO-3's weights as one process would have them, and the size of such weights; the
optimizer's state of a checkpoint, whole, for another number of processes.

Promises: one tensor at a time is gathered, and only the first process keeps it, in main memory. Every process must
call `gathered_weights`. `write_whole_state` is DeepSpeed's own conversion to a universal checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.trainer import SCHEDULER_NAME

from swift.train import checkpoints

# what makes DeepSpeed read a universal checkpoint
READ_WHOLE = {"load_universal": True}


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


def write_whole_state(checkpoint: Path, place: Path) -> None:
    """Write the state of a checkpoint of ZeRO-1 to 3 with AdamW into the new directory `place`, each parameter's whole,
    as DeepSpeed reads it in any number of processes; the schedule beside it. One process calls this.

    ResourceError when the disk is full; nothing is left behind then.
    """
    from deepspeed.checkpoint.ds_to_universal import main

    state = checkpoints.deepspeed_state(checkpoint)
    whole = place / f"{state.name}_universal"
    options = argparse.Namespace(
        input_folder=str(state),
        output_folder=str(whole),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    shutil.rmtree(place, ignore_errors=True)
    with checkpoints.writing(place, remove_on_failure=place):
        whole.mkdir(parents=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            main(options)
        _leave_settings_out(whole / "zero" / "optimizer_state.pt")
        shutil.copy2(checkpoint / SCHEDULER_NAME, place)


def _leave_settings_out(path: Path) -> None:
    """ZeRO-3 would give each group of parameters the first one's weight decay and learning rate: the run's own options
    and its schedule say what they are."""
    found = torch.load(path, map_location="cpu", weights_only=False)
    for holder in (found, found.get("optimizer_state_dict")):
        if isinstance(holder, dict) and "param_groups" in holder:
            holder["param_groups"] = [{"params": []} for _ in holder["param_groups"]]
    torch.save(found, path)


def after_whole_state(optimizer: Any, schedule: Any) -> None:
    """Put right what DeepSpeed leaves after it has read a whole state: each group's learning rate is the schedule's
    last, and ZeRO-3's groups count their steps each by itself (in 0.19.8 all share one counter, which every group's
    step moves on)."""
    for group, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        group["lr"] = rate
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()
