"""transformers' Trainer with an exact loss and count, an exact evaluation, and checkpoints that are transactions.

Promises: the loss of a step is the mean over all label tokens of its batches, over all processes; evaluation is the
mean over all label tokens and leaves the random state alone; a loss or gradient that isn't finite stops the run before
the weights are touched and names the rows. Distribution, mixed precision, optimizers and schedules are transformers'
and accelerate's.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers import DefaultFlowCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from swift import runs
from swift.errors import TrainingError
from swift.models.embed import takes_logits_to_keep
from swift.train import checkpoints, fsdp, metrics, random_state, zero
from swift.train.callbacks import Reporter, Schedule
from swift.train.lean.check import CheckFirst
from swift.train.lean.path import FastPath
from swift.train.losses import IGNORED, LossParts, causal_loss, label_count, label_positions
from swift.train.shares import EpochOrder, Filled, WithoutFillers, counted_tokens
from swift.train.steptimes import StepTimes

# Sums of a window that are the same in every process, or a mean over them.
MEANS = ("loss", "steps")


class SftTrainer(Trainer):
    """`train_dataset` and `eval_dataset`: sequences of encoded rows. `data_collator` gives `input_ids`,
    `attention_mask`, `labels` int64 [B, T] and `row_ids`, a list of B; `sources(row_id)` says where a row comes from.

    `save_model_files(directory, state)` writes the weights (and the tokenizer) of one checkpoint, out of `state` where
    the model holds shards; `load_weights(directory)` puts a checkpoint's weights into the model. `parameter_groups()`,
    if given, are the optimizer's.
    """

    def __init__(
        self,
        *,
        model: torch.nn.Module,
        args: TrainingArguments,
        data_collator: Callable[[list[Any]], dict[str, torch.Tensor]],
        train_dataset: Sequence[Any],
        eval_dataset: Sequence[Any] | None,
        schedule: Schedule,
        callbacks: Sequence[TrainerCallback] = (),
        save_model_files: Callable[[Path, dict[str, torch.Tensor] | None], None],
        load_weights: Callable[[Path], None],
        sources: Callable[[int], str],
        lengths: Sequence[int] | None = None,
        parameter_groups: Callable[[], list[dict[str, Any]]] | None = None,
        fast_path: FastPath | None = None,
        shuffle: bool = True,
        acc_strategy: str = "token",
        label_smoothing: float = 0.0,
        eval_sums_to_host_every: int | None = None,
        save_total_limit: int | None = None,
        save_only_model: bool = False,
        resume_only_model: bool = False,
        symlinks: bool = False,
        data_fingerprint: str = "",
    ):
        self.schedule = schedule
        self.save_model_files, self.load_weights, self.sources = save_model_files, load_weights, sources
        self.parameter_groups, self.fast_path = parameter_groups, fast_path
        self.acc_strategy, self.label_smoothing = acc_strategy, label_smoothing
        self.eval_sums_to_host_every = eval_sums_to_host_every
        self.save_total_limit, self.save_only_model = save_total_limit, save_only_model
        self.resume_only_model, self.symlinks = resume_only_model, symlinks
        seed = args.data_seed if args.data_seed is not None else args.seed
        pass_rows = args.train_batch_size * args.world_size
        group = pass_rows * args.gradient_accumulation_steps
        count = len(train_dataset)
        if args.world_size > 1:
            data_collator = WithoutFillers(data_collator)
            if not args.dataloader_drop_last:
                train_dataset = Filled(train_dataset, pass_rows)
        self.order = EpochOrder(count, seed, shuffle, lengths, group, len(train_dataset))
        self.narrow_logits = takes_logits_to_keep(model) and not args.torch_compile
        self.own_loss = not args.use_liger_kernel
        self.data_fingerprint = data_fingerprint
        self.best_saved: Path | None = None
        self.last_saved: Path | None = None
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=[schedule, *callbacks],
        )
        self.remove_callback(DefaultFlowCallback)
        self.remove_callback(PrinterCallback)
        self.add_callback(CheckFirst(self))
        self.loss_is_scaled_for_ga = True
        self.tally = metrics.Tally(args.device)
        self.times = StepTimes(args.device)
        self.add_callback(self.times)
        self.watch = metrics.Stopwatch()
        self.tokens_seen = {"inputs": 0, "tokens": 0}
        self.in_hand: tuple[list[int], tuple[int, ...]] = ([], (0, 0))  # rows and shape of the batch being computed
        self._step_losses: list[tuple[torch.Tensor, list[int]]] = []

    @property
    def run_dir(self) -> Path:
        return Path(self.args.output_dir)

    def close_reporters(self) -> None:
        """Leave the terminal and the event files in order, also when training ended in an error."""
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, Reporter):
                callback.close()

    def leave_group(self) -> None:
        """Let go of the other processes, all at the same time: wrappers first, since one that outlives its process
        group can wait for ever when it is torn down."""
        if self.args.world_size == 1:
            return
        self.accelerator.wait_for_everyone()
        self.model_wrapped = self.model
        self.callback_handler.model = self.model
        self.callback_handler.train_dataloader = None
        self.accelerator.free_memory()
        gc.collect()
        self.accelerator.end_training()

    # ---- data ----

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochOrder:
        return self.order

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self.order.epoch = kwargs["epoch"]
        super()._run_epoch(*args, **kwargs)

    # ---- one step ----

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device):
        """Label tokens of the step's batches, int64 scalar; of all processes with average_tokens_across_devices."""
        if not batch_samples:
            return None
        of_batch = self.fast_path.label_count if self.is_fast else label_count
        count = torch.stack([of_batch(batch) for batch in batch_samples]).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.times.step():
            return super().training_step(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """The batch's share of the step's mean: sum of its tokens' losses over the label tokens of the whole step."""
        rows = inputs.pop("row_ids")
        self.in_hand = (rows, tuple(inputs["input_ids"].shape))
        with self.times.forward():
            loss, parts = self.forward_pass(model, inputs, num_items_in_batch, self.label_smoothing)
        if self.args.average_tokens_across_devices:
            # DDP takes the mean of the processes' gradients; each holds its part of one sum.
            loss = loss * self.accelerator.num_processes
        self._step_losses.append((loss.detach(), rows))
        self.tally.add_batch(loss, parts, counted_tokens(inputs["attention_mask"], rows))
        return loss

    @property
    def is_fast(self) -> bool:
        return self.fast_path is not None and self.fast_path.joins

    def forward_pass(
        self, model, inputs, tokens: torch.Tensor, smoothing: float
    ) -> tuple[torch.Tensor, LossParts | None]:
        if self.is_fast:
            return self.fast_path.loss(model, inputs, tokens, smoothing, self.router_coefficient)
        return self.plain_forward(model, inputs, tokens, smoothing)

    def plain_forward(self, model, inputs, tokens: torch.Tensor, smoothing: float):
        labels = inputs["labels"]
        if not self.own_loss:
            return model(**inputs, num_items_in_batch=tokens).loss, None
        weights = inputs.get("loss_scale")
        inputs = {name: value for name, value in inputs.items() if name not in ("labels", "loss_scale")}
        if self.narrow_logits:
            positions = label_positions(labels)
            outputs = model(**inputs, logits_to_keep=positions)
            logits, following = outputs.logits, positions + 1
        else:
            outputs = model(**inputs)
            logits, following = outputs.logits[:, :-1], slice(1, None)
        parts = causal_loss(logits, labels[:, following], smoothing, None if weights is None else weights[:, following])
        loss = parts.total / tokens
        if outputs.get("aux_loss") is not None:
            # The routers' balance loss is a mean of its own: each batch carries its share of it.
            share = parts.tokens / tokens
            loss = loss + self.router_coefficient * outputs["aux_loss"].to(loss.device) * share
        return loss, parts

    @property
    def router_coefficient(self) -> float:
        return getattr(self.model.config.get_text_config(), "router_aux_loss_coef", 0.0)

    def _get_grad_norm(self, model, grad_norm=None):
        """Called once a step between the backward passes and the optimizer: the place to refuse what isn't finite."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        self.tally.end_step()
        losses = torch.stack([loss for loss, _ in self._step_losses])
        if not torch.isfinite(losses).all():
            bad = [rows for loss, rows in self._step_losses if not torch.isfinite(loss)]
            self._not_finite("loss", bad)
        scaled = self.accelerator.scaler is not None or (self.is_deepspeed_enabled and self.args.fp16)
        if norm is not None and not math.isfinite(float(norm)) and not scaled:
            self._not_finite("gradient", [rows for _, rows in self._step_losses])
        self._step_losses.clear()
        return norm

    def _not_finite(self, what: str, batches: list[list[int]]) -> None:
        rows = [self.sources(row) for batch in batches for row in batch]
        shown = ", ".join(rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
        weights = "were touched" if self.is_deepspeed_enabled else "are as before it"  # DeepSpeed steps in backward
        raise TrainingError(
            f"the {what} of step {self.state.global_step + 1} is not a finite number; the weights {weights}",
            where=shown,
            fix="look at these rows, lower --learning_rate, or use --torch_dtype bfloat16 or float32",
        )

    def forget_batches(self) -> None:
        """Let go of the batches of a step that isn't finished."""
        self._step_losses.clear()

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.parameter_groups is not None:
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = kind(self.parameter_groups(), **settings)
        return super().create_optimizer(model)

    # ---- between steps ----

    def _maybe_log_save_evaluate(
        self, tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate=None
    ) -> None:
        if self.control.should_log:
            self._log_window(grad_norm, learning_rate)
        if self.control.should_evaluate:
            values = self._evaluate(trial, ignore_keys_for_eval)
            is_best = self._determine_best_metric(metrics=values, trial=trial)
            if is_best:
                self.state.best_global_step = self.state.global_step
            self.schedule.after_evaluation(self.control, is_best)
            if self.control.should_log:
                self._log_window(grad_norm, learning_rate)
        if self.control.should_save:
            self._save_checkpoint(model, trial)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _log_window(self, grad_norm, learning_rate) -> None:
        values = self._over_processes(self.tally.values())
        self.tally.reset()
        for name in self.tokens_seen:
            self.tokens_seen[name] += int(values[name])
        if values["steps"] == 0:
            self.control.should_log = False
            return
        record = {"loss": values["loss"] / values["steps"]}
        if grad_norm is not None:
            record["grad_norm"] = float(grad_norm)
        record["learning_rate"] = learning_rate if learning_rate is not None else self._get_learning_rate()
        share = metrics.accuracy(values, self.acc_strategy)
        if share is not None:
            record[metrics.ACCURACY[self.acc_strategy]] = share
        seconds = self.watch.window()
        record["tokens_per_second"] = values["inputs"] / seconds
        record |= self.times.shares(seconds)
        record["memory_gib"] = metrics.peak_memory_gib(self.args.device)
        self.log(record)

    def _over_processes(self, values: dict[str, float]) -> dict[str, float]:
        """Counts are summed, the loss is a mean (it was scaled for one), steps are common to all."""
        if self.args.world_size == 1:
            return values
        mine = torch.tensor([list(values.values())], dtype=torch.float64, device=self.args.device)
        total = self.accelerator.reduce(mine, "sum")[0].tolist()
        summed = dict(zip(values, total, strict=True))
        return summed | {name: summed[name] / self.args.world_size for name in MEANS}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add where the run is to a record, keep it in the state and hand it to whoever shows it."""
        if "train_runtime" in logs:
            return  # transformers' closing record; the run's summary says it better
        record = {
            **logs,
            "epoch": round(self.state.epoch or 0.0, 6),
            "step": self.state.global_step,
            "max_steps": self.state.max_steps,
            "elapsed_seconds": round(self.watch.elapsed(), 3),
            "eta_seconds": round(self.watch.eta(self.state.global_step, self.state.max_steps), 3),
        }
        self.state.log_history.append(record)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, record)

    # ---- evaluation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss and accuracy over all label tokens of the validation rows, each row once over all processes."""
        began = time.monotonic()
        training = self.model.training
        self.model.eval()
        with random_state.untouched(), torch.no_grad():
            values = self._over_processes_sum(self._evaluation_sums())
        self.model.train(training)
        took = time.monotonic() - began
        share = metrics.accuracy(values, self.acc_strategy)
        result = {f"{metric_key_prefix}_loss": values["loss"] / values["tokens"]}
        if share is not None:
            result[f"{metric_key_prefix}_{metrics.ACCURACY[self.acc_strategy]}"] = share
        result[f"{metric_key_prefix}_seconds"] = round(took, 3)
        self.watch.pause(took)
        self.log(dict(result))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, result)
        return result

    def _evaluation_sums(self) -> dict[str, float]:
        dataset = self.eval_dataset
        if self.shards:  # every process must compute as many batches, since each holds a part of the weights
            dataset = Filled(dataset, self.args.per_device_eval_batch_size * self.args.world_size)
        rows = range(self.args.process_index, len(dataset), self.args.world_size)
        loader = DataLoader(
            dataset,
            batch_size=self.args.per_device_eval_batch_size,
            sampler=list(rows),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type == "cuda",
        )
        total = dict.fromkeys(metrics.FIELDS, 0.0)
        tally = metrics.Tally(self.args.device)
        for number, batch in enumerate(loader, 1):
            batch = self._prepare_inputs(batch)
            row_ids = batch.pop("row_ids")
            one = torch.ones((), dtype=torch.int64, device=self.args.device)
            loss, parts = self.forward_pass(self.model, batch, one, 0.0)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            tally.add_batch(loss, parts or _counted(batch["labels"]), counted_tokens(batch["attention_mask"], row_ids))
            if self.eval_sums_to_host_every and number % self.eval_sums_to_host_every == 0:
                total = {name: total[name] + value for name, value in tally.values().items()}
                tally.reset()
        return {name: total[name] + value for name, value in tally.values().items()}

    def _over_processes_sum(self, values: dict[str, float]) -> dict[str, float]:
        if self.args.world_size == 1:
            return values
        mine = torch.tensor([list(values.values())], dtype=torch.float64, device=self.args.device)
        return dict(zip(values, self.accelerator.reduce(mine, "sum")[0].tolist(), strict=True))

    # ---- checkpoints ----

    def _save_checkpoint(self, model, trial) -> None:
        began = time.monotonic()
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
            if not self.save_only_model:
                self._save_rng_state(str(staging))
                self._save_optimizer_and_scheduler(str(staging))
                self._save_scaler(str(staging))
            self.accelerator.wait_for_everyone()
            state = self._gathered_weights()
            if self.args.should_save:
                self.save_model_files(staging, state)
                self.state.save_to_json(str(staging / checkpoints.TRAINER_STATE))
                runs.write_json(staging / checkpoints.PROGRESS, progress)
                checkpoints.commit(staging, self.run_dir, step)
        self.last_saved = final
        if self.args.should_save:
            self._tidy(final)
        self.accelerator.wait_for_everyone()
        self.watch.pause(time.monotonic() - began)

    def _tidy(self, final: Path) -> None:
        checkpoints.rotate(self.run_dir, self.save_total_limit, final, [self.best_saved] if self.best_saved else [])
        if self.symlinks:
            checkpoints.link(self.run_dir, "last", final)
            if self.best_saved:
                checkpoints.link(self.run_dir, "best", self.best_saved)

    def _progress(self) -> dict[str, Any]:
        """What transformers' state leaves out: the open logging window, time, tokens, patience."""
        return {
            "step": self.state.global_step,
            "world_size": self.args.world_size,
            "data": self.data_fingerprint,
            "window": self._over_processes(self.tally.values()),
            "tokens_seen": self.tokens_seen,
            "elapsed_seconds": self.watch.elapsed(),
            "evaluations_without_gain": self.schedule.evaluations_without_gain,
            "best_checkpoint": self.best_saved.name if self.best_saved else None,
        }

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
        alone = self.is_deepspeed_enabled and self.resume_only_model
        if place is not None and (self.is_fsdp_enabled or alone):
            self.load_weights(Path(place))  # while they are whole
        found = super()._prepare_for_training(max_steps, train_dataloader, None if alone else place)
        if place is not None and alone:
            self._load_optimizer_and_scheduler(place)
        return found

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        if not self.is_fsdp_enabled:
            self.load_weights(Path(resume_from_checkpoint))

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ):
        if self.resume_only_model and self.args.ignore_data_skip:
            resume_from_checkpoint = None  # the weights are loaded; steps and rows begin at zero
        found = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is not None:
            self.args.eval_on_start = False
            if self.resume_only_model:  # another course may have another best
                self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
            self._restore_progress(Path(resume_from_checkpoint))
        self.watch = metrics.Stopwatch(self.watch.earlier, self.state.global_step)
        return found

    def _restore_progress(self, checkpoint: Path) -> None:
        progress = json.loads((checkpoint / checkpoints.PROGRESS).read_text(encoding="utf-8"))
        if self.args.process_index == 0:
            # The main process carries the sums of all of them on; what is a mean over processes is scaled back.
            window = progress["window"]
            self.tally.restore(window | {name: window[name] * self.args.world_size for name in MEANS})
        self.tokens_seen = dict(progress["tokens_seen"])
        self.watch = metrics.Stopwatch(progress["elapsed_seconds"])
        self.schedule.evaluations_without_gain = progress["evaluations_without_gain"]
        best = progress["best_checkpoint"]
        self.best_saved = self.run_dir / best if best and (self.run_dir / best).is_dir() else None
        self.state.best_model_checkpoint = str(self.best_saved) if self.best_saved else None
        self.last_saved = checkpoint
        if self.args.should_save and checkpoints.list_checkpoints(self.run_dir)[-1:] == [checkpoint]:
            self._tidy(checkpoint)  # the kill may have come between the save and this

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.resume_only_model:
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
        if not self.resume_only_model:
            super()._load_rng_state(checkpoint)


def _counted(labels: torch.Tensor) -> LossParts:
    """Counts of a batch whose logits aren't there."""
    kept = labels[:, 1:] != IGNORED
    zero = torch.zeros((), dtype=torch.int64, device=labels.device)
    return LossParts(zero, kept.sum(), zero, kept.any(dim=1).sum(), zero)
