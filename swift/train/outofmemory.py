"""Memory that runs out in a training step: the step before is kept, the batch named, and the ways out are ordered by
what they cost.

Promises: after `StepStart` has seen a step begin, a checkpoint written when that step fails is the one that would have
been written before it. Knows nothing of why memory is short.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from swift.config.commands import SftConfig
from swift.config.packages import bnb_switched_off
from swift.errors import ResourceError
from swift.models.device import cards
from swift.train.portions import Portions, smaller
from swift.train.random_state import RandomState

if TYPE_CHECKING:
    from swift.train.trainer import SftTrainer

log = logging.getLogger("swift")

# What allocators say where they don't raise torch.OutOfMemoryError.
_SAYINGS = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory", "bad_alloc")
SHOWN_ROWS = 4


def is_out_of_memory(error: BaseException) -> bool:
    """True for what torch raises when an allocation fails, on any device."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error).lower() for saying in _SAYINGS)


class StepStart(TrainerCallback):
    """Keeps what a step changes before its weights: random states and the sums of the logging window."""

    def __init__(self, trainer: SftTrainer) -> None:
        self.trainer = trainer
        self._kept: tuple[RandomState, torch.Tensor] | None = None
        trainer.add_callback(self)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._kept = (RandomState.now(), self.trainer.meter.tally.sums.clone())

    def go_back(self) -> None:
        """Random states and sums as the step that failed found them."""
        if self._kept is not None:
            state, sums = self._kept
            state.restore()
            self.trainer.meter.tally.sums.copy_(sums)


def keep_last_step(trainer: SftTrainer, start: StepStart) -> Path | None:
    """Free the failed step's memory and save the step before it, if a checkpoint may be written and isn't there.

    Returns the newest checkpoint, None without any. With several processes nothing is saved: the others wait in the
    middle of the step. Nor where memory doesn't suffice for that either.
    """
    trainer.model.zero_grad(set_to_none=True)
    for module in cards():
        module.empty_cache()
    saves = trainer.args.world_size == 1 and trainer.schedule.saving.save_strategy != "no"
    already = trainer.last_saved is not None and trainer.last_saved.name == f"checkpoint-{trainer.state.global_step}"
    if saves and trainer.state.global_step > 0 and not already:
        try:
            start.go_back()
            trainer._save_checkpoint(trainer.model, None)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("memory ran out once more while step %d was saved", trainer.state.global_step)
    return trainer.last_saved


def explained(
    trainer: SftTrainer, config: SftConfig, portions: Portions, saved: Path | None, quantized: bool
) -> ResourceError:
    """The error for the user: step, batch, rows, and what to change, cheapest first. `quantized`: the checkpoint is."""
    rows, shape = trainer.in_hand
    step = trainer.state.global_step + 1
    what = f"out of memory in step {step}, in a batch of {shape[0]} x {shape[1]} tokens"
    if not rows:
        what = f"out of memory on the way to step {step}"
    named = [trainer.sources(row) for row in rows[:SHOWN_ROWS]] + (["..."] if len(rows) > SHOWN_ROWS else [])
    kept = f"; the steps before it are in {saved}: add --resume_from_checkpoint auto" if saved else ""
    return ResourceError(
        what,
        where=", ".join(named) or None,
        fix=", else ".join(remedies(config, portions, shape[1], quantized)) + kept,
    )


def remedies(config: SftConfig, portions: Portions, length: int, quantized: bool) -> list[str]:
    """What to type, the cheapest first: time, then quality, then data. `length`: of the batch, 0 before the first."""
    found = []
    less = smaller(portions) if length else None
    if less is not None:
        found.append(
            f"--per_device_train_batch_size {less.batch} --gradient_accumulation_steps {less.accumulation} "
            "(the same training; --auto_find_batch_size true does it by itself)"
        )
    if not config.training.gradient_checkpointing:
        found.append("--gradient_checkpointing true (a third slower)")
    packed = quantized or config.quantization.quant_bits or config.quantization.quant_method
    if config.tuner.tuner_type != "full" and not packed and not bnb_switched_off():
        found.append("--load_in_4bit true (QLoRA)")
    if config.tuner.tuner_type == "full":
        found.append("--tuner_type lora (adapters only)")
    if length > 1:
        found.append(f"--max_length {length // 2} (shorter rows)")
    return found
