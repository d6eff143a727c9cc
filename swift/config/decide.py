"""Defaults of training that depend on other values, each with its reason; and combinations that can't mean anything.

Promises: pure functions from a config to a config, no torch, no files; a value the user gave is never changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from swift.config.commands import ExportConfig, SftConfig
from swift.config.decide_head import decide_head
from swift.config.decide_supply import decide_supply
from swift.config.speed import decide_speed
from swift.errors import UsageError

E = TypeVar("E", SftConfig, ExportConfig)
GLOBAL_BATCH = 16
DEFAULT_MAX_LENGTH = 2048
METRICS = ("loss", "token_acc")
HEAD_METRICS = ("loss", "accuracy")
# Typing one of these asks for an evaluation.
EVALUATION_WISHES = (
    "eval_strategy",
    "eval_steps",
    "eval_on_start",
    "metric_for_best_model",
    "load_best_model_at_end",
    "early_stop_interval",
)


def decide_sft(config: SftConfig, model_name: str, context: int | None, world_size: int = 1) -> SftConfig:
    """Everything that needs neither data nor weights. `context`: the longest input of the model in tokens, if known."""
    steps: tuple[Callable[[SftConfig], SftConfig], ...] = (
        _check_combinations,
        decide_head,
        lambda c: _output_dir(c, model_name),
        _learning_rate,
        lambda c: _accumulation(c, world_size),
        _warmup,
        lambda c: decide_chat(c, context),
        _evaluation,
        _saving,
        decide_speed,
        decide_supply,
    )
    for step in steps:
        config = step(config)
    _check_best(config)
    return config


def _check_combinations(config: SftConfig) -> SftConfig:
    training = config.training
    if training.warmup_ratio is not None and training.warmup_steps is not None:
        raise UsageError("both --warmup_ratio and --warmup_steps are set", fix="leave one of them out")
    if training.bf16 and training.fp16:
        raise UsageError("both --bf16 and --fp16 are set", fix="leave one of them out")
    if not training.dataloader_num_workers:
        for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
            if config.value(name):
                raise UsageError(f"--{name} needs worker processes", fix="add --dataloader_num_workers 1 or more")
    if training.group_by_length and not training.train_dataloader_shuffle:
        raise UsageError("--group_by_length orders the rows itself", fix="leave out --train_dataloader_shuffle false")
    if config.saving.resume_only_model and config.saving.resume_from_checkpoint is None:
        raise UsageError("--resume_only_model needs --resume_from_checkpoint", fix="name a checkpoint, a run or auto")
    if training.num_train_epochs <= 0 and training.max_steps <= 0:
        raise UsageError("nothing to train: --num_train_epochs is 0", fix="give a number of epochs or --max_steps")
    return config


def _output_dir(config: SftConfig, model_name: str) -> SftConfig:
    if config.saving.output_dir is not None:
        return config
    return config.decide("./output/ and the model's name", output_dir=f"./output/{model_name}")


def _learning_rate(config: SftConfig) -> SftConfig:
    if config.training.learning_rate is not None:
        return config
    full = config.tuner.tuner_type == "full"
    why = "all weights train: small steps" if full else "only adapters train"
    return config.decide(why, learning_rate=1e-5 if full else 1e-4)


def _accumulation(config: SftConfig, world_size: int) -> SftConfig:
    if config.training.gradient_accumulation_steps is not None:
        return config
    per_pass = config.training.per_device_train_batch_size * world_size
    steps = max(1, math.ceil(GLOBAL_BATCH / per_pass))
    return config.decide(f"a step sees {steps * per_pass} rows", gradient_accumulation_steps=steps)


def _warmup(config: SftConfig) -> SftConfig:
    if config.training.warmup_ratio is not None or config.training.warmup_steps is not None:
        return config
    return config.decide("the first twentieth of the steps", warmup_ratio=0.05)


def decide_chat(config: E, context: int | None) -> E:
    """How rows are encoded: for training, and for cached data sets that training reads."""
    return _plain_text(_max_length(config, context))


def _max_length(config: E, context: int | None) -> E:
    if config.chat.max_length is not None:
        return config
    limit = config.model.max_model_len or context
    if limit is not None and limit <= DEFAULT_MAX_LENGTH:
        return config.decide("the model's context", max_length=limit)
    why = f"memory grows with it; the model's context is {limit or 'unknown'}"
    return config.decide(why, max_length=DEFAULT_MAX_LENGTH)


def _plain_text(config: E) -> E:
    """Without a chat template there are no turns: everything is learned, and a long text is cut in pieces."""
    if config.chat.use_chat_template or config.head.task_type != "causal_lm":
        return config
    for name in (
        "template",
        "enable_thinking",
        "preserve_thinking",
        "add_non_thinking_prefix",
        "template_kwargs",
        "response_prefix",
    ):
        if config.given(name):
            raise UsageError(f"--{name} has no meaning without a chat template", fix=f"leave out --{name}")
    if config.chat.loss_scale != "all":
        if config.given("loss_scale"):
            raise UsageError(
                "without a chat template every token is learned", where="--loss_scale", fix="--loss_scale all"
            )
        config = config.decide("without a chat template there are no turns", loss_scale="all")
    if "truncation_strategy" not in config.origins:
        config = config.decide("a long text becomes several rows", truncation_strategy="split")
    return config


def has_validation(config: SftConfig) -> bool:
    return bool(config.data.val_dataset or config.supply.cached_val_dataset) or config.data.split_dataset_ratio > 0


def _evaluation(config: SftConfig) -> SftConfig:
    strategy = config.evaluation.eval_strategy
    wished = [name for name in EVALUATION_WISHES if config.given(name) and config.value(name) not in (False, "no")]
    _check_benchmarks(config)
    if config.evaluate.eval_dataset and not has_validation(config) and "eval_steps" in wished:
        _check_benchmark_steps(config)
        wished.remove("eval_steps")  # they say when the benchmarks are asked
    if wished and strategy != "no" and not has_validation(config):
        config = config.decide(
            f"--{wished[0]} asks for an evaluation and there is no --val_dataset", split_dataset_ratio=0.01
        )
    if strategy is None:
        config = _eval_strategy(config)
    if config.evaluation.eval_strategy == "no":
        useless = [name for name in wished if name != "eval_steps"]
        if useless:
            raise UsageError(f"--{useless[0]} has no evaluation to work on", fix="--eval_strategy steps or epoch")
        return config
    if config.evaluation.eval_steps is None:
        config = config.decide("as save_steps", eval_steps=config.saving.save_steps)
    return _metric(config)


def _check_benchmarks(config: SftConfig) -> None:
    if config.evaluate.eval_dataset:
        if config.saving.save_strategy == "no":
            raise UsageError(
                "benchmarks are asked of checkpoints, and --save_strategy no keeps none", where="--eval_dataset"
            )
        return
    for name, spec in config.specs().items():
        if spec.section == "evaluate" and config.given(name):
            raise UsageError("there is no benchmark to ask", where=f"--{name}", fix="add --eval_dataset NAME")


def _check_benchmark_steps(config: SftConfig) -> None:
    """Benchmarks are asked of checkpoints: there must be one at each of their steps."""
    every, saved = config.evaluation.eval_steps, config.saving.save_steps
    if config.saving.save_strategy not in (None, "steps") or every is None or every % saved or every < 1:
        raise UsageError(
            f"benchmarks are asked of checkpoints, which are saved every {saved:g} steps",
            where=f"--eval_steps {every:g}",
            fix="--eval_steps a whole multiple of --save_steps",
        )


def _eval_strategy(config: SftConfig) -> SftConfig:
    if not has_validation(config):
        return config.decide("there is no validation data", eval_strategy="no")
    if config.given("eval_steps"):
        return config.decide("eval_steps is set", eval_strategy="steps")
    saving = config.saving.save_strategy or "steps"
    if saving in ("steps", "epoch"):
        return config.decide("there is validation data; as save_strategy", eval_strategy=saving)
    return config.decide("there is validation data", eval_strategy="steps")


def _metric(config: SftConfig) -> SftConfig:
    metric = config.evaluation.metric_for_best_model
    if metric is None:
        config = config.decide("the validation loss", metric_for_best_model="loss")
    known = METRICS if config.head.task_type == "causal_lm" else HEAD_METRICS
    if metric is not None and metric.removeprefix("eval_") not in known:
        raise UsageError(f"no such metric: {metric}", where="--metric_for_best_model", fix=f"one of {', '.join(known)}")
    metric = config.evaluation.metric_for_best_model
    if config.evaluation.greater_is_better is None:
        config = config.decide(f"{metric} is the measure", greater_is_better=not metric.endswith("loss"))
    return config


def _saving(config: SftConfig) -> SftConfig:
    if config.saving.save_strategy is None:
        config = config.decide("every save_steps and at the end", save_strategy="steps")
    if config.saving.save_strategy == "no":
        config = config.decide("save_strategy is no: nothing will be kept", save_strategy="no")
    return config


def _check_best(config: SftConfig) -> None:
    """The best model can only be kept where it is saved: at the steps at which it is measured."""
    saving, evaluation = config.saving, config.evaluation
    if saving.save_strategy == "best" and evaluation.eval_strategy == "no":
        raise UsageError(
            "--save_strategy best has no evaluation to work on", fix="--val_dataset or --split_dataset_ratio"
        )
    if not evaluation.load_best_model_at_end or saving.save_strategy == "best":
        return
    if saving.save_strategy != evaluation.eval_strategy:
        raise UsageError(
            f"--load_best_model_at_end needs evaluation and saving at the same steps, not {evaluation.eval_strategy} "
            f"and {saving.save_strategy}",
            fix=f"--save_strategy {evaluation.eval_strategy} or --save_strategy best",
        )
    if saving.save_strategy == "steps" and saving.save_steps % evaluation.eval_steps:
        raise UsageError(
            f"--load_best_model_at_end needs save_steps ({saving.save_steps:g}) to be a multiple of eval_steps "
            f"({evaluation.eval_steps:g})",
            fix="give both the same value",
        )
