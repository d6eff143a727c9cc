"""--probe: the largest batch goes through forward and backward before the first step, so that memory that isn't enough
shows at once and not after hours.

Promises: weights, gradients, random states and logged sums are afterwards what they were before.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from swift.train import metrics, random_state

log = logging.getLogger("swift")
ADAM_MOMENTS = 2


class Probe(TrainerCallback):
    """`lengths`: tokens of each training row (or bin of rows)."""

    def __init__(self, trainer: Any, lengths: Sequence[int]):
        self.trainer, self.lengths = trainer, lengths

    def on_train_begin(self, args: Any, state: Any, control: Any, model: torch.nn.Module, **kwargs: Any) -> None:
        trainer = self.trainer
        longest = sorted(range(len(self.lengths)), key=self.lengths.__getitem__, reverse=True)
        rows = [trainer.train_dataset[i] for i in longest[: args.train_batch_size]]
        batch = trainer.data_collator(rows)
        # The optimizer's state comes into being in the first step: its room is held meanwhile.
        trained = [p for p in model.parameters() if p.requires_grad]
        room = [torch.ones_like(p) for p in trained for _ in range(ADAM_MOMENTS)] if state.global_step == 0 else []
        with random_state.untouched(), trainer.meter.untouched():
            tokens = trainer._get_num_items_in_batch([batch], args.device).clamp(min=1)
            trainer.training_step(trainer.model_wrapped, batch, tokens)
        del room
        trainer.model_wrapped.zero_grad(set_to_none=True)
        trainer.forget_batches()
        shape = " x ".join(map(str, batch["input_ids"].shape))
        log.info(
            "probe: the largest batch (%s tokens) fits, peak %.2f GiB", shape, metrics.peak_memory_gib(args.device)
        )
