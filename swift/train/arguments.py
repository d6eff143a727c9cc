"""Our options as transformers' TrainingArguments: one place that knows how they map.

Saving, evaluating and logging are left out on purpose: `callbacks.Schedule` decides them, so transformers is told "no".
"""

from __future__ import annotations

import logging
import math

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.trainer_utils import SchedulerType

from swift.compat.deepspeed_on_cpu import USE_IT, start_group
from swift.config.commands import SftConfig
from swift.errors import SwiftError, UsageError
from swift.train import muon
from swift.train.deepspeed_options import read_deepspeed
from swift.train.fsdp_options import read_fsdp
from swift.train.optimizers import projected

SAME_NAME = (
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "optim",
    "optim_args",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "seed",
    "full_determinism",
    "use_cpu",
    "use_liger_kernel",
    "neftune_noise_alpha",
    "average_tokens_across_devices",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "dataloader_drop_last",
    "torch_empty_cache_steps",
    "ddp_timeout",
    "ddp_backend",
    "ddp_find_unused_parameters",
    "ddp_broadcast_buffers",
)
# transformers is as talkative as we are one level up.
LOG_LEVELS = {"debug": "info", "info": "warning", "warning": "error", "error": "error"}


def check_schedule(config: SftConfig) -> None:
    """UsageError for an unknown schedule, or arguments that it doesn't take."""
    value, choices = config.training.lr_scheduler_type, [member.value for member in SchedulerType]
    if value not in choices:
        raise UsageError(f"no such value: {value}", where="--lr_scheduler_type", fix=f"one of {', '.join(choices)}")
    probe = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    try:
        get_scheduler(config.training.lr_scheduler_type, probe, 1, 10, config.training.lr_scheduler_kwargs)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error), where="--lr_scheduler_kwargs", fix="see the schedules of transformers") from error


def steps_in_run(config: SftConfig, rows: int, world_size: int) -> int:
    """Optimizer steps of the whole run over `rows` training rows."""
    training = config.training
    if training.max_steps > 0:
        return training.max_steps
    per_batch = training.per_device_train_batch_size * world_size
    batches = rows // per_batch if training.dataloader_drop_last else math.ceil(rows / per_batch)
    per_epoch = max(1, math.ceil(batches / (training.gradient_accumulation_steps or 1)))
    return math.ceil(training.num_train_epochs * per_epoch)


def warmup_steps(config: SftConfig, total: int) -> int:
    """The warm-up in steps: `warmup_steps` (a share of the run when below 1) or `warmup_ratio` of the run."""
    training = config.training
    if training.warmup_steps is not None:
        return math.ceil(training.warmup_steps * total) if training.warmup_steps < 1 else int(training.warmup_steps)
    return math.ceil((training.warmup_ratio or 0.0) * total)


def training_arguments(config: SftConfig, total_steps: int) -> TrainingArguments:
    """The arguments, without an output directory yet: the run directory is made last, and making these starts the
    process group, so combinations that can't work show before."""
    training, evaluation = config.training, config.evaluation
    values = {name: config.value(name) for name in SAME_NAME} | _sharding(config)
    if training.optim == muon.NAME:  # transformers doesn't know it; the trainer is given a maker
        values |= {"optim": "adamw_torch", "optim_args": None}
    try:
        return TrainingArguments(
            **values,
            output_dir=".",
            warmup_steps=warmup_steps(config, total_steps),
            bf16=bool(training.bf16),
            fp16=bool(training.fp16),
            activation_checkpointing=training.gradient_checkpointing,
            activation_checkpointing_kwargs=_checkpointing_kwargs(training.gradient_checkpointing_kwargs),
            data_seed=config.data.data_seed,
            per_device_eval_batch_size=evaluation.per_device_eval_batch_size,
            optim_target_modules=projected(config),
            metric_for_best_model=evaluation.metric_for_best_model,
            greater_is_better=evaluation.greater_is_better,
            eval_on_start=evaluation.eval_on_start,
            ignore_data_skip=config.saving.ignore_data_skip,
            eval_strategy="no",
            save_strategy="no",
            logging_strategy="no",
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            log_level=LOG_LEVELS[config.logging.log_level],
        )
    except SwiftError:
        raise
    except (ValueError, ImportError) as error:
        # transformers checks combinations of its own; its message names the options.
        raise UsageError(str(error).strip().splitlines()[0], where="training options") from error


def _sharding(config: SftConfig) -> dict:
    """FSDP's or DeepSpeed's arguments, where one is asked for."""
    fsdp, zero = read_fsdp(config), read_deepspeed(config)
    if fsdp is not None:
        return {"fsdp": True, "fsdp_config": dict(fsdp.settings)}
    if zero is None:
        return {}
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not config.training.use_cpu:
        return {"deepspeed": zero}
    start_group(config.training.ddp_timeout)
    return {"deepspeed": zero, "use_cpu": False, "accelerator_config": USE_IT}


def _checkpointing_kwargs(given: dict | None) -> dict:
    """Without reentrance a frozen embedding needs no gradient, so no hook that forces one."""
    return {"use_reentrant": False, **(given or {})}
