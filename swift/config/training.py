"""Sections of the training loop: steps and optimizer, evaluation, saving and resuming, logging."""

from __future__ import annotations

from dataclasses import dataclass

from swift.config.options import option

STRATEGIES = ("no", "steps", "epoch")


@dataclass(frozen=True)
class TrainingOptions:
    num_train_epochs: float = option(3.0, low=0, aliases=("max_epochs",))
    max_steps: int = option(-1)
    per_device_train_batch_size: int = option(1, low=1, aliases=("batch_size", "train_batch_size"))
    gradient_accumulation_steps: int | None = option(low=1)
    learning_rate: float | None = option(low=0, aliases=("lr",))
    weight_decay: float = option(0.1, low=0)
    adam_beta1: float = option(0.9, low=0, high=1)
    adam_beta2: float = option(0.95, low=0, high=1)
    adam_epsilon: float = option(1e-8, low=0)
    max_grad_norm: float = option(1.0, low=0)
    optim: str = option("adamw_torch_fused")
    optim_args: str | None = option()
    lr_scheduler_type: str = option("cosine", aliases=("lr_scheduler",))
    lr_scheduler_kwargs: dict | None = option()
    warmup_ratio: float | None = option(low=0, high=1)
    warmup_steps: float | None = option(low=0)
    gradient_checkpointing: bool = option(True, aliases=("activation_checkpointing",))
    gradient_checkpointing_kwargs: dict | None = option(aliases=("activation_checkpointing_kwargs",))
    seed: int = option(42)
    full_determinism: bool = option(False)
    bf16: bool | None = option()
    fp16: bool | None = option()
    use_cpu: bool = option(False)
    padding_free: bool | None = option()
    lean_head: bool | None = option()
    torch_compile: bool = option(False)
    torch_compile_backend: str | None = option()
    torch_compile_mode: str | None = option()
    use_liger_kernel: bool = option(False, aliases=("use_liger",))
    neftune_noise_alpha: float | None = option(low=0)
    label_smoothing_factor: float = option(0.0, low=0, high=1)
    average_tokens_across_devices: bool = option(True)
    force: bool = option(False)
    probe: bool = option(False)
    auto_find_batch_size: bool = option(False)
    train_dataloader_shuffle: bool = option(True)
    group_by_length: bool = option(False)
    dataloader_num_workers: int = option(0, low=0)
    dataloader_pin_memory: bool = option(True)
    dataloader_persistent_workers: bool = option(False)
    dataloader_prefetch_factor: int | None = option(low=1)
    dataloader_drop_last: bool = option(False)
    torch_empty_cache_steps: int | None = option(low=1)
    ddp_timeout: int = option(1800, low=1)
    ddp_backend: str | None = option(choices=("nccl", "gloo", "mpi", "xccl", "hccl", "cncl", "mccl"))
    ddp_find_unused_parameters: bool | None = option()
    ddp_broadcast_buffers: bool | None = option()
    fsdp: str | None = option()
    fsdp_config: str | None = option()


@dataclass(frozen=True)
class EvaluationOptions:
    per_device_eval_batch_size: int = option(1, low=1, aliases=("eval_batch_size",))
    eval_strategy: str | None = option(choices=STRATEGIES, aliases=("evaluation_strategy",))
    eval_steps: float | None = option(low=0)
    eval_on_start: bool = option(False)
    eval_delay: float = option(0, low=0)
    eval_accumulation_steps: int | None = option(low=1)
    metric_for_best_model: str | None = option()
    greater_is_better: bool | None = option()
    load_best_model_at_end: bool = option(False)
    early_stop_interval: int | None = option(low=1, aliases=("early_stopping_patience",))
    acc_strategy: str = option("token", choices=("token", "seq"))


@dataclass(frozen=True)
class SavingOptions:
    output_dir: str | None = option()
    add_version: bool = option(True, aliases=("add_output_dir_suffix",))
    save_strategy: str | None = option(choices=(*STRATEGIES, "best"))
    save_steps: float = option(500, low=0)
    save_total_limit: int | None = option(low=1)
    save_only_model: bool = option(False)
    max_shard_size: str = option("5GB")
    resume_from_checkpoint: str | None = option()
    resume_only_model: bool = option(False)
    ignore_data_skip: bool = option(False)
    create_checkpoint_symlink: bool = option(False)


@dataclass(frozen=True)
class LoggingOptions:
    logging_steps: float = option(5, low=0)
    logging_first_step: bool = option(True)
    logging_dir: str | None = option()
    callbacks: tuple[str, ...] = option(())
    report_to: tuple[str, ...] = option(("tensorboard",), choices=("tensorboard", "wandb", "swanlab", "none"))
    run_name: str | None = option()
    disable_tqdm: bool = option(False)
    log_level: str = option("info", choices=("debug", "info", "warning", "error"))
