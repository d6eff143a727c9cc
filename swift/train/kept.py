"""The half of the trainer that keeps a run: checkpoints as transactions, and going on from one.

Promises: a checkpoint is whole or isn't there; a run that goes on has the weights, optimizer, schedule, random state,
open logging window and patience of the run that was cut off. Knows nothing of losses.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from swift import runs
from swift.train import checkpoints, fsdp, metrics, zero
from swift.train.callbacks import Schedule
from swift.train.meter import MEANS, Meter
from swift.train.rowwatch import RowWatch


@dataclass(frozen=True)
class Saving:
    """How checkpoints are written and read.

    `save_model_files(directory, state)` writes the weights (and the tokenizer) of one checkpoint, out of `state` where
    the model holds shards; `load_weights(directory)` puts a checkpoint's weights into the model.
    """

    save_model_files: Callable[[Path, dict[str, torch.Tensor] | None], None]
    load_weights: Callable[[Path], None]
    total_limit: int | None = None
    only_model: bool = False
    resume_only_model: bool = False
    symlinks: bool = False
    data_fingerprint: str = ""


class KeptTrainer(Trainer):
    """A subclass sets `saving`, `schedule`, `meter` and `row_watch` (None where rows are encoded ahead), and says
    whether a window's sums are over all processes."""

    saving: Saving
    schedule: Schedule
    meter: Meter
    row_watch: RowWatch | None
    best_saved: Path | None = None
    last_saved: Path | None = None

    @property
    def run_dir(self) -> Path:
        return Path(self.args.output_dir)

    def weights_at_rest(self) -> None:
        """The weights that an optimizer stands for, where those of its steps are others (schedule-free ones); the next
        step takes them back."""
        if self.optimizer is not None:
            self.optimizer.eval()

    def _save_checkpoint(self, model, trial) -> None:
        began = time.monotonic()
        self.weights_at_rest()
        step = self.state.global_step
        final = self.run_dir / checkpoints.name_of(step)
        if self.state.best_global_step == step:
            self.best_saved = final
        self.state.best_model_checkpoint = str(self.best_saved) if self.best_saved else None
        progress = self._progress()
        staging = self.run_dir / f"{runs.STAGING_PREFIX}{checkpoints.name_of(step)}"
        if self.args.should_save:
            with checkpoints.writing(final):
                checkpoints.staging_dir(self.run_dir, step)
        self.accelerator.wait_for_everyone()
        with checkpoints.writing(final, remove_on_failure=staging if self.args.should_save else None):
            if not self.saving.only_model:
                self._save_rng_state(str(staging))
                self._save_optimizer_and_scheduler(str(staging))
                self._save_scaler(str(staging))
            self.accelerator.wait_for_everyone()
            state = self._gathered_weights()
            if self.args.should_save:
                self.saving.save_model_files(staging, state)
                self.state.save_to_json(str(staging / checkpoints.TRAINER_STATE))
                runs.write_json(staging / checkpoints.PROGRESS, progress)
                checkpoints.commit(staging, self.run_dir, step)
        self.last_saved = final
        if self.args.should_save:
            self._tidy(final)
        self.accelerator.wait_for_everyone()
        self.meter.watch.pause(time.monotonic() - began)

    def _tidy(self, final: Path) -> None:
        checkpoints.rotate(self.run_dir, self.saving.total_limit, final, [self.best_saved] if self.best_saved else [])
        if self.saving.symlinks:
            checkpoints.link(self.run_dir, "last", final)
            if self.best_saved:
                checkpoints.link(self.run_dir, "best", self.best_saved)

    def _progress(self) -> dict[str, Any]:
        """What transformers' state leaves out: the open logging window, time, tokens, patience."""
        return {
            "step": self.state.global_step,
            "world_size": self.args.world_size,
            "data": self.saving.data_fingerprint,
            "window": self._over_processes(self.meter.tally.values()),
            "tokens_seen": self.meter.tokens_seen,
            "elapsed_seconds": self.meter.watch.elapsed(),
            "evaluations_without_gain": self.schedule.evaluations_without_gain,
            "best_checkpoint": self.best_saved.name if self.best_saved else None,
            "rows": self.rows_seen(),
        }

    def rows_seen(self) -> list[dict[str, Any]]:
        """Each process's counts of the rows that it was told of; [] where rows were counted ahead."""
        return [] if self.row_watch is None else gather_object([self.row_watch.to_json()])

    @property
    def shards(self) -> str | None:
        """`fsdp` or `zero3` where each process holds a part of the weights, None where it holds them all."""
        if self.is_fsdp_enabled:
            return "fsdp"
        zero3 = self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        return "zero3" if zero3 else None

    def _gathered_weights(self) -> dict[str, torch.Tensor] | None:
        """The weights to save where the model holds shards of them, None otherwise; all processes take part."""
        gathered = {"fsdp": fsdp.gathered_weights, "zero3": zero.gathered_weights}.get(self.shards)
        if gathered is None:
            return None
        return gathered(self.model, self.args.should_save, trained_only=isinstance(self.model, PeftModel))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = fsdp.gathered_optimizer(self.optimizer, self.args.should_save)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _prepare_for_training(self, max_steps, train_dataloader, resume_from_checkpoint):
        place = resume_from_checkpoint
        alone = self.is_deepspeed_enabled and self.saving.resume_only_model
        if place is not None and (self.is_fsdp_enabled or alone):
            self.saving.load_weights(Path(place))  # while they are whole
        with self._readable_state(None if alone else place) as state:
            found = super()._prepare_for_training(max_steps, train_dataloader, state)
        if place is not None and alone:
            self._load_optimizer_and_scheduler(place)
        return found

    @contextmanager
    def _readable_state(self, checkpoint: str | None) -> Iterator[str | None]:
        """The place of the optimizer's state: the checkpoint, or while it is read a converted copy of it, where
        DeepSpeed wrote it in another number of parts than there are processes now."""
        if checkpoint is None or not checkpoints.other_parts(Path(checkpoint), self.args.world_size):
            yield checkpoint
            return
        place = self.run_dir / f"{runs.STAGING_PREFIX}state-of-{Path(checkpoint).name}"
        if self.args.should_save:
            zero.write_whole_state(Path(checkpoint), place)
        self.accelerator.wait_for_everyone()
        self.accelerator.state.deepspeed_plugin.deepspeed_config["checkpoint"] = zero.READ_WHOLE
        yield str(place)
        zero.after_whole_state(self.optimizer, self.lr_scheduler)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            shutil.rmtree(place)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if not self.is_fsdp_enabled:
            self.saving.load_weights(Path(resume_from_checkpoint))

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ):
        if self.saving.resume_only_model and self.args.ignore_data_skip:
            resume_from_checkpoint = None  # the weights are loaded; steps and rows begin at zero
        found = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if self.row_watch is not None:
            self.row_watch.restore()
        if resume_from_checkpoint is not None:
            self.args.eval_on_start = False
            if self.saving.resume_only_model:  # another course may have another best
                self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
            self._restore_progress(Path(resume_from_checkpoint))
        self.meter.start(self.state.global_step)
        return found

    def _restore_progress(self, checkpoint: Path) -> None:
        progress = json.loads((checkpoint / checkpoints.PROGRESS).read_text(encoding="utf-8"))
        window = dict.fromkeys(metrics.FIELDS, 0.0)
        if self.args.process_index == 0:
            # The main process carries the sums of all of them on; what is a mean over processes is scaled back.
            saved = progress["window"]
            window = saved | {name: saved[name] * self.args.world_size for name in MEANS}
        if self.row_watch is not None and self.args.process_index == 0:
            self.row_watch.restore(*progress["rows"])
        self.meter.restore(window, progress["tokens_seen"], progress["elapsed_seconds"])
        self.schedule.evaluations_without_gain = progress["evaluations_without_gain"]
        best = progress["best_checkpoint"]
        self.best_saved = self.run_dir / best if best and (self.run_dir / best).is_dir() else None
        self.state.best_model_checkpoint = str(self.best_saved) if self.best_saved else None
        self.last_saved = checkpoint
        if self.args.should_save and checkpoints.list_checkpoints(self.run_dir)[-1:] == [checkpoint]:
            self._tidy(checkpoint)  # the kill may have come between the save and this

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.saving.resume_only_model:
            if checkpoint is None or not self.is_fsdp_enabled:
                super()._load_optimizer_and_scheduler(checkpoint)
                return
            place = Path(checkpoint)
            fsdp.load_optimizer(self.optimizer, torch.load(place / OPTIMIZER_NAME, "cpu", weights_only=True))
            self.lr_scheduler.load_state_dict(torch.load(place / SCHEDULER_NAME, weights_only=True))
            return
        for _ in range(self.state.global_step):
            self.lr_scheduler.step()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if not self.saving.resume_only_model:
            super()._load_rng_state(checkpoint)
