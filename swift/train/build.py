"""Puts a trainer together from a config, a model and encoded rows."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from swift import runs
from swift.config.commands import SftConfig
from swift.errors import MissingPackage, UsageError
from swift.models.parts import ALIGNER, VIT, find_parts
from swift.models.tuners import optimizer_groups
from swift.plugins import make_callbacks
from swift.train import muon
from swift.train.callbacks import LogFile, Progress, Schedule
from swift.train.heads import HeadTrainer, Objective
from swift.train.interrupt import Interrupt
from swift.train.kept import Saving
from swift.train.lean.kernels import compile_layers
from swift.train.lean.model import base_of
from swift.train.lean.path import Compiling, FastPath
from swift.train.ondemand import OnDemand
from swift.train.profile import Profile
from swift.train.trainer import SftTrainer
from swift.train.weights import load_weights, save_weights

# option value -> (module, what to pip install)
REPORTERS = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "swanlab": ("swanlab", "swanlab"),
}


def check_packages(config: SftConfig) -> None:
    """MissingPackage for an option whose library isn't installed, UsageError for a callback that no plugin has."""
    make_callbacks(config.logging.callbacks)
    wanted = [(f"--report_to {name}", *REPORTERS[name]) for name in config.logging.report_to if name != "none"]
    if config.training.use_liger_kernel:
        wanted.append(("--use_liger_kernel", "liger_kernel", "liger-kernel"))
    for option, module, package in wanted:
        if importlib.util.find_spec(module) is None:
            raise MissingPackage(f"{option} needs {package}", fix=f"pip install {package}")


def build_trainer(
    config: SftConfig,
    args: TrainingArguments,
    model: torch.nn.Module,
    tokenizer: Any,
    train_rows: Sequence[Any],
    val_rows: Sequence[Any] | None,
    collate: Callable[[list[Any]], dict[str, torch.Tensor]],
    *,
    sources: Callable[[int], str],
    lengths: Sequence[int] | None = None,
    interrupt: Interrupt | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    save_tokenizer: bool = True,
    processor_files: Sequence[Path] = (),
    data_fingerprint: str = "",
    objective: Objective | None = None,
    on_demand: OnDemand | None = None,
) -> SftTrainer:
    """A trainer that writes its checkpoints and logging.jsonl to `args.output_dir` (which exists).

    `lengths`: tokens of each training row, needed by --group_by_length. `sources(row_id)`: file:line of a row.
    `processor_files` are saved with the tokenizer. `objective`: what a model that doesn't write text is trained for.
    `on_demand`: what encodes the training rows, where that isn't done ahead.
    """
    training, kept = config.training, config.saving
    run_dir = Path(args.output_dir)

    def save_model_files(directory: Path, state: dict[str, torch.Tensor] | None = None) -> None:
        save_weights(model, directory, kept.max_shard_size, state)
        if save_tokenizer:
            tokenizer.save_pretrained(str(directory))
            for file in processor_files:
                shutil.copyfile(file, directory / file.name)
        if (run_dir / runs.ARGS).is_file():
            shutil.copyfile(run_dir / runs.ARGS, directory / runs.ARGS)

    return (SftTrainer if objective is None else partial(HeadTrainer, objective=objective))(
        model=model,
        args=args,
        data_collator=collate,
        train_dataset=train_rows,
        eval_dataset=val_rows,
        schedule=Schedule(config.logging, config.evaluation, kept, interrupt or Interrupt()),
        callbacks=[*_watchers(config, run_dir), *callbacks, *make_callbacks(config.logging.callbacks)],
        saving=Saving(
            save_model_files,
            lambda directory: load_weights(model, directory),
            total_limit=kept.save_total_limit,
            only_model=kept.save_only_model,
            resume_only_model=kept.resume_only_model,
            symlinks=kept.create_checkpoint_symlink,
            data_fingerprint=data_fingerprint,
        ),
        sources=sources,
        lengths=lengths if training.group_by_length else None,
        fast_path=_fast_path(config, model),
        parameter_groups=_parameter_groups(config, model),
        make_optimizer=_muon(config, model) if training.optim == muon.NAME else None,
        shuffle=training.train_dataloader_shuffle and not config.supply.streaming,
        acc_strategy=config.evaluation.acc_strategy,
        label_smoothing=training.label_smoothing_factor,
        eval_sums_to_host_every=config.evaluation.eval_accumulation_steps,
        row_watch=None if on_demand is None else on_demand.watch,
        first_rows=None if on_demand is None else on_demand.train,
    )


def _watchers(config: SftConfig, run_dir: Path) -> list[TrainerCallback]:
    """Who shows how the run goes."""
    quiet = config.logging.log_level in ("warning", "error")
    progress = Progress(plain=config.logging.disable_tqdm, quiet=quiet)
    training = config.training
    profile = [Profile(run_dir, training.profile_steps)] if training.profile else []
    return [LogFile(runs.RunLog(run_dir / runs.LOG)), progress, *_reporters(config, run_dir), *profile]


def _parameter_groups(
    config: SftConfig, model: torch.nn.Module
) -> Callable[[frozenset[str]], list[dict[str, Any]]] | None:
    """The optimizer's groups by the names that decay, where parts have rates of their own or we make it."""
    rates, ratio = _part_rates(config, model), config.tuner.lorap_lr_ratio
    if not rates and ratio is None and config.training.optim != muon.NAME:
        return None
    return lambda decayed: optimizer_groups(
        model,
        learning_rate=config.training.learning_rate,
        weight_decay=config.training.weight_decay,
        lorap_lr_ratio=ratio,
        part_rates=rates,
        decays=decayed.__contains__,
    )


def _muon(config: SftConfig, model: torch.nn.Module) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    settings = muon.settings_of(config.training.optim_args)
    return lambda groups: muon.MuonWithAdamW(groups, config.training, muon.is_matrix(model), settings)


def _fast_path(config: SftConfig, model: torch.nn.Module) -> FastPath | None:
    training = config.training
    parts = {name: bool(config.value(name)) for name in ("padding_free", "lean_head", "fused_layers")}
    compiling = (
        Compiling(training.torch_compile_backend, training.torch_compile_mode) if training.torch_compile else None
    )
    if not any(parts.values()):
        if compiling is not None:
            compile_layers(base_of(model), *compiling)
        return None
    path = FastPath(model, **parts, light=training.recompute == "light", compiling=compiling)
    path.engage()
    return path


def _part_rates(config: SftConfig, model: torch.nn.Module) -> dict[str, float]:
    """--vit_lr and --aligner_lr by part; UsageError where no parameter that trains would have the rate."""
    parts = find_parts(model)
    trained = {parts.of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    given = ((VIT, "vit_lr", "freeze_vit"), (ALIGNER, "aligner_lr", "freeze_aligner"))
    rates = {}
    for part, option, flag in given:
        rate = config.value(option)
        if rate is not None:
            if part not in trained:
                raise UsageError("nothing that trains has this rate", where=f"--{option}", fix=f"--{flag} false")
            rates[part] = rate
    return rates


def _reporters(config: SftConfig, run_dir: Path) -> list[TrainerCallback]:
    from transformers.integrations import SwanLabCallback, WandbCallback

    from swift.train.tensorboard import TensorBoard

    logging = config.logging
    made: dict[str, Callable[[], TrainerCallback]] = {
        "tensorboard": lambda: TensorBoard(Path(logging.logging_dir) if logging.logging_dir else run_dir / "runs"),
        "wandb": WandbCallback,
        "swanlab": SwanLabCallback,
    }
    return [made[name]() for name in logging.report_to if name != "none"]
