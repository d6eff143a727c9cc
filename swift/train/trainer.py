"""transformers' Trainer with an exact loss and count and an exact evaluation; its checkpoints are `kept`'s.

Promises: the loss of a step is the mean over all label tokens of its batches, over all processes; evaluation is the
mean over all label tokens and leaves the random state alone; a loss or gradient that isn't finite stops the run before
the weights are touched and names the rows. Distribution, mixed precision, optimizers and schedules are transformers'
and accelerate's.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import DefaultFlowCallback, PrinterCallback, TrainerCallback, TrainingArguments

from swift.data.seen import Seen
from swift.errors import TrainingError
from swift.models.embed import takes_logits_to_keep
from swift.train import metrics, random_state
from swift.train.callbacks import Reporter, Schedule
from swift.train.kept import KeptTrainer, Saving
from swift.train.lean.check import CheckFirst
from swift.train.lean.path import FastPath
from swift.train.losses import IGNORED, LossParts, causal_loss, label_count, label_positions
from swift.train.meter import MEANS, Meter
from swift.train.rowwatch import RowWatch
from swift.train.shares import EpochOrder, Filled, WithoutFillers


class SftTrainer(KeptTrainer):
    """`train_dataset` and `eval_dataset`: sequences of encoded rows. `data_collator` gives `input_ids`,
    `attention_mask`, `labels` int64 [B, T] and `row_ids`, a list of B; `sources(row_id)` says where a row comes from.

    `parameter_groups(names)`, if given, makes the optimizer's groups; the parameters of these names decay. Of them
    `make_optimizer(groups)`, if given, makes the optimizer itself.
    `row_watch` counts what batches tell of their rows (`seen`); `first_rows`: some rows to try the fast path on, where
    `train_dataset` isn't to be asked twice.
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
        saving: Saving,
        sources: Callable[[int], str],
        lengths: Sequence[int] | None = None,
        parameter_groups: Callable[[frozenset[str]], list[dict[str, Any]]] | None = None,
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer] | None = None,
        fast_path: FastPath | None = None,
        shuffle: bool = True,
        acc_strategy: str = "token",
        label_smoothing: float = 0.0,
        eval_sums_to_host_every: int | None = None,
        row_watch: RowWatch | None = None,
        first_rows: Sequence[Any] | None = None,
    ):
        self.schedule, self.saving, self.sources = schedule, saving, sources
        self.parameter_groups, self.make_optimizer, self.fast_path = parameter_groups, make_optimizer, fast_path
        self.acc_strategy, self.label_smoothing = acc_strategy, label_smoothing
        self.eval_sums_to_host_every = eval_sums_to_host_every
        seed = args.data_seed if args.data_seed is not None else args.seed
        pass_rows = args.train_batch_size * args.world_size
        group = pass_rows * args.gradient_accumulation_steps
        count = len(train_dataset)
        if args.world_size > 1:
            data_collator = WithoutFillers(data_collator)
            if not args.dataloader_drop_last:
                train_dataset = Filled(train_dataset, pass_rows)
        self.order = EpochOrder(count, seed, shuffle, lengths, group, len(train_dataset))
        self.row_watch = row_watch
        self.narrow_logits = takes_logits_to_keep(model)
        self.own_loss = not args.use_liger_kernel
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
        self.add_callback(CheckFirst(self, train_dataset if first_rows is None else first_rows))
        self.loss_is_scaled_for_ga = True
        self.meter = Meter(model, args.device, _product_dtype(model, args), acc_strategy, args.world_size)
        self.add_callback(self.meter.times)
        self.in_hand: tuple[list[int], tuple[int, ...]] = ([], (0, 0))  # rows and shape of the batch being computed
        self._step_losses: list[tuple[torch.Tensor, list[int]]] = []
        self._step_seen: list[Seen] = []

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

    def get_batch_samples(self, *args: Any, **kwargs: Any):
        self.meter.begin()
        with self.meter.times.span("data"):
            return super().get_batch_samples(*args, **kwargs)

    # ---- one step ----

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, torch.Tensor]], device: torch.device):
        """Label tokens of the step's batches, int64 scalar; of all processes with average_tokens_across_devices."""
        if not batch_samples:
            return None
        of_batch = self.fast_path.label_count if self.is_fast else label_count
        count = torch.stack([of_batch(batch) for batch in batch_samples]).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return count.clamp(min=1)  # a step may have no label: all its rows were dropped

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        with self.meter.times.span("step"):
            return super().training_step(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        """The batch's share of the step's mean: sum of its tokens' losses over the label tokens of the whole step."""
        rows = inputs.pop("row_ids")
        if self.row_watch is not None:
            self._step_seen += inputs.pop("seen").seen
        self.in_hand = (rows, tuple(inputs["input_ids"].shape))
        with self.meter.times.span("forward"), self.meter.needed.counting():
            loss, parts = self.forward_pass(model, inputs, num_items_in_batch, self.label_smoothing)
        if self.args.average_tokens_across_devices:
            # DDP takes the mean of the processes' gradients; each holds its part of one sum.
            loss = loss * self.accelerator.num_processes
        self._step_losses.append((loss.detach(), rows))
        self.meter.add_batch(loss, parts, inputs, rows, self.is_fast)
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
        self.meter.tally.end_step()
        losses = torch.stack([loss for loss, _ in self._step_losses])
        if not torch.isfinite(losses).all():
            bad = [rows for loss, rows in self._step_losses if not torch.isfinite(loss)]
            self._not_finite("loss", bad)
        scaled = self.accelerator.scaler is not None or (self.is_deepspeed_enabled and self.args.fp16)
        if norm is not None and not math.isfinite(float(norm)) and not scaled:
            self._not_finite("gradient", [rows for _, rows in self._step_losses])
        if self.row_watch is not None:
            self.row_watch.add(self._step_seen)
        self.forget_batches()
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
        self._step_seen.clear()

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        if self.optimizer is None and self.parameter_groups is not None:
            groups = self.parameter_groups(frozenset(self.get_decay_parameter_names(self.model)))
            if self.make_optimizer is None:
                kind, settings = self.get_optimizer_cls_and_kwargs(self.args, self.model)
                self.optimizer = kind(groups, **settings)
            else:
                self.optimizer = self.make_optimizer(groups)
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
        values = self._over_processes(self.meter.tally.values())
        if values["steps"] == 0:
            self.control.should_log = False
            return
        record = {"loss": values["loss"] / values["steps"]}
        if grad_norm is not None:
            record["grad_norm"] = float(grad_norm)
        record["learning_rate"] = learning_rate if learning_rate is not None else self._get_learning_rate()
        self.log(record | self.meter.record(values))

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
            "elapsed_seconds": round(self.meter.watch.elapsed(), 3),
            "eta_seconds": round(self.meter.watch.eta(self.state.global_step, self.state.max_steps), 3),
        }
        self.state.log_history.append(record)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, record)

    # ---- evaluation ----

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss and accuracy over all label tokens of the validation rows, each row once over all processes."""
        began = time.monotonic()
        training = self.model.training
        self.model.eval()
        self.weights_at_rest()
        with random_state.untouched(), torch.no_grad():
            values = self._over_processes_sum(self._evaluation_sums())
        self.model.train(training)
        took = time.monotonic() - began
        share = metrics.accuracy(values, self.acc_strategy)
        result = {f"{metric_key_prefix}_loss": values["loss"] / values["tokens"]}
        if share is not None:
            result[f"{metric_key_prefix}_{metrics.ACCURACY[self.acc_strategy]}"] = share
        result[f"{metric_key_prefix}_seconds"] = round(took, 3)
        self.meter.watch.pause(took)
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
            batch.pop("row_ids")
            one = torch.ones((), dtype=torch.int64, device=self.args.device)
            loss, parts = self.forward_pass(self.model, batch, one, 0.0)
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
            nothing = torch.zeros((), device=self.args.device)
            tally.add_batch(loss, parts or _counted(batch["labels"]), nothing, nothing, nothing)
            if self.eval_sums_to_host_every and number % self.eval_sums_to_host_every == 0:
                total = {name: total[name] + value for name, value in tally.values().items()}
                tally.reset()
        return {name: total[name] + value for name, value in tally.values().items()}

    def _over_processes_sum(self, values: dict[str, float]) -> dict[str, float]:
        if self.args.world_size == 1:
            return values
        mine = torch.tensor([list(values.values())], dtype=torch.float64, device=self.args.device)
        return dict(zip(values, self.accelerator.reduce(mine, "sum")[0].tolist(), strict=True))


def _counted(labels: torch.Tensor) -> LossParts:
    """Counts of a batch whose logits aren't there."""
    kept = labels[:, 1:] != IGNORED
    zero = torch.zeros((), dtype=torch.int64, device=labels.device)
    return LossParts(zero, kept.sum(), zero, kept.any(dim=1).sum(), zero)


def _product_dtype(model: torch.nn.Module, args: TrainingArguments) -> torch.dtype:
    """What most matrix products are computed in."""
    if args.bf16 or args.fp16:
        return torch.bfloat16 if args.bf16 else torch.float16
    return model.dtype
