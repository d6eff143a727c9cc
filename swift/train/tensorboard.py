"""The log as TensorBoard events: one scalar per number, train/... and eval/..., by step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments

from swift.train.callbacks import Reporter

WHERE = ("epoch", "step", "max_steps", "elapsed_seconds", "eta_seconds")


class TensorBoard(Reporter):
    """Writes events into `directory`; a resumed run hides what an interrupted one wrote beyond its checkpoint."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.writer = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if state.is_world_process_zero:
            from torch.utils.tensorboard import SummaryWriter

            resumed = state.global_step > 0
            self.writer = SummaryWriter(str(self.directory), purge_step=state.global_step + 1 if resumed else None)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Mapping[str, Any], **kwargs
    ):
        if self.writer is None:
            return
        for name, value in logs.items():
            if name not in WHERE:
                tag = f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
                self.writer.add_scalar(tag, value, logs["step"])
        self.writer.flush()

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None
