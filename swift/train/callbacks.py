"""What happens between steps: when to log, evaluate, save and stop; the progress shown and the log written."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from swift.config.training import EvaluationOptions, LoggingOptions, SavingOptions
from swift.runs import RunLog
from swift.train.clock import clock
from swift.train.interrupt import Interrupt


class Schedule(TrainerCallback):
    """Decides after each step, all at once, in place of transformers' flow: log, then evaluate, then save, then stop.

    An epoch's end counts as part of its last step, so a checkpoint always holds what was known at its step, and a run
    that resumes from it does nothing twice and skips nothing. The last step logs, evaluates and saves.
    """

    def __init__(
        self,
        logging: LoggingOptions,
        evaluation: EvaluationOptions,
        saving: SavingOptions,
        interrupt: Interrupt,
    ):
        self.logging, self.evaluation, self.saving, self.interrupt = logging, evaluation, saving, interrupt
        self.evaluations_without_gain = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self._log_every = _interval(self.logging.logging_steps, state.max_steps)
        self._evaluate_every = _interval(self.evaluation.eval_steps or 0, state.max_steps)
        self._save_every = _interval(self.saving.save_steps, state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        step, last = state.global_step, state.global_step >= state.max_steps
        epoch_over = state.epoch == int(state.epoch)
        control.should_log = last or _due(step, self._log_every) or (step == 1 and self.logging.logging_first_step)
        control.should_evaluate = self._evaluation_due(state, last, epoch_over)
        control.should_save = self.saving.save_strategy in ("steps", "epoch") and (
            last or (epoch_over if self.saving.save_strategy == "epoch" else _due(step, self._save_every))
        )
        control.should_training_stop = last
        if self._interrupted(args):
            control.should_training_stop = True
            control.should_save = self.saving.save_strategy != "no"
        return control

    def _interrupted(self, args: TrainingArguments) -> bool:
        """Whether any process was asked to stop; all of them learn it at the same step."""
        if args.world_size > 1:
            asked = torch.tensor(self.interrupt.signal or 0, device=args.device)
            torch.distributed.all_reduce(asked, torch.distributed.ReduceOp.MAX)
            self.interrupt.signal = int(asked) or None
        return self.interrupt.signal is not None

    def _evaluation_due(self, state: TrainerState, last: bool, epoch_over: bool) -> bool:
        by_epoch = self.evaluation.eval_strategy == "epoch"
        if self.evaluation.eval_strategy == "no" or self.evaluation.eval_delay > (
            state.epoch if by_epoch else state.global_step
        ):
            return False
        return last or (epoch_over if by_epoch else _due(state.global_step, self._evaluate_every))

    def after_evaluation(self, control: TrainerControl, is_best: bool) -> None:
        """Early stopping, and `save_strategy best`."""
        self.evaluations_without_gain = 0 if is_best else self.evaluations_without_gain + 1
        if self.saving.save_strategy == "best":
            control.should_save = control.should_save or is_best
        patience = self.evaluation.early_stop_interval
        if patience is not None and self.evaluations_without_gain >= patience:
            control.should_training_stop = True
            control.should_log = True
            control.should_save = control.should_save or self.saving.save_strategy in ("steps", "epoch")


def _interval(steps: float, total: int) -> int:
    """`steps` below 1 is a share of the run; 0 means never."""
    return math.ceil(steps * total) if 0 < steps < 1 else int(steps)


def _due(step: int, interval: int) -> bool:
    return interval > 0 and step % interval == 0


class LogFile(TrainerCallback):
    """logging.jsonl: every record as it comes, by the main process."""

    def __init__(self, log: RunLog):
        self.log = log

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Mapping[str, Any], **kwargs
    ):
        if state.is_world_process_zero:
            self.log.write(logs)


class Reporter(TrainerCallback):
    """A callback that holds something open until the end of training, however it ends."""

    def close(self) -> None:
        raise NotImplementedError

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        self.close()


class Progress(Reporter):
    """A bar on a terminal, a line per record elsewhere (or with `plain`)."""

    def __init__(self, plain: bool, quiet: bool = False):
        self.plain = plain or not sys.stderr.isatty()
        self.quiet = quiet
        self.bar = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if state.is_world_process_zero and not self.plain and not self.quiet:
            from tqdm import tqdm

            self.bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}",
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any):
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: Mapping[str, Any], **kwargs
    ):
        if self.quiet or not state.is_world_process_zero:
            return
        if self.bar is None:
            print(record_line(logs), flush=True)
        elif "eval_loss" in logs:
            self.bar.write(record_line(logs))
        else:
            self.bar.set_postfix_str(short_line(logs))

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


SHOWN = {
    "loss": "loss {:.4f}",
    "eval_loss": "eval_loss {:.4f}",
    "token_acc": "acc {:.3f}",
    "eval_token_acc": "eval_acc {:.3f}",
    "accuracy": "acc {:.3f}",
    "eval_accuracy": "eval_acc {:.3f}",
    "grad_norm": "grad {:.2f}",
    "learning_rate": "lr {:.2e}",
    "tokens_per_second": "{:.0f} tok/s",
    "mfu": "mfu {:.1%}",
    "memory_gib": "{:.2f} GiB",
}


def short_line(record: Mapping[str, Any]) -> str:
    return "  ".join(text.format(record[name]) for name, text in SHOWN.items() if record.get(name) is not None)


def record_line(record: Mapping[str, Any]) -> str:
    """One record for a log on paper: where we are, the figures, how long it still takes."""
    eta = f"  eta {clock(record['eta_seconds'])}" if record.get("eta_seconds") is not None else ""
    return f"step {record['step']}/{record['max_steps']}  {short_line(record)}{eta}"
