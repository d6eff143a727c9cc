"""The training loop as a whole, and what happens when memory runs out in it."""

from __future__ import annotations

import dataclasses
import gc
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from swift.errors import UsageError
from swift.models.load import processor_files
from swift.train import benchmarks, outofmemory, random_state
from swift.train.arguments import training_arguments
from swift.train.build import build_trainer
from swift.train.distributed import left_out
from swift.train.examples import Examples
from swift.train.heads import objective_of
from swift.train.interrupt import Interrupt
from swift.train.lean import pages
from swift.train.outofmemory import StepStart
from swift.train.portions import Portions, smaller
from swift.train.probe import Probe
from swift.train.sft import Setup
from swift.train.trainer import SftTrainer
from swift.train.watchdog import Watchdog

log = logging.getLogger("swift")


def train_in_memory(
    setup: Setup,
    args: TrainingArguments,
    model: torch.nn.Module,
    tokenizer: Any,
    examples: Examples,
    interrupt: Interrupt,
    save_tokenizer: bool,
    total_steps: int,
) -> SftTrainer:
    """Train to the end and give back the trainer. With --auto_find_batch_size memory that runs out makes the passes
    smaller and their number larger, from the step that failed; otherwise it is a ResourceError that says what to do.
    """
    if setup.config.training.auto_find_batch_size and args.world_size > 1:
        raise UsageError("--auto_find_batch_size works in one process", fix="--probe true finds out before training")
    checkpoint = setup.point.checkpoint if setup.point else None
    while True:
        trainer = build_trainer(
            setup.config,
            args,
            model,
            tokenizer,
            examples.train,
            examples.val,
            examples.collate,
            callbacks=benchmarks.callbacks(setup.config, Path(args.output_dir)),
            sources=examples.source,
            lengths=None if examples.train.lengths is None else examples.train.lengths.tolist(),
            interrupt=interrupt,
            save_tokenizer=save_tokenizer,
            processor_files=processor_files(setup.model.directory),
            data_fingerprint=examples.fingerprint,
            objective=objective_of(setup.config),
            on_demand=examples.on_demand,
        )
        if setup.config.training.probe:
            trainer.add_callback(Probe(trainer, examples.train.lengths))
        portions, checkpoint = _train(trainer, setup, checkpoint)
        if portions is None:
            return trainer
        setup = dataclasses.replace(setup, config=_with(setup, portions))
        model = _released(trainer)
        del trainer
        gc.collect()  # the optimizer's state among it
        pages.give_back_freed()
        args = _arguments(setup, total_steps, args.output_dir)


def _train(trainer: SftTrainer, setup: Setup, checkpoint: Path | None) -> tuple[Portions | None, Path | None]:
    """Train from `checkpoint`; (None, ...) when it ended, else smaller portions to go on with and where from."""
    start = StepStart(trainer)
    watchdog = Watchdog(trainer, setup.config.training.ddp_timeout, trainer.run_dir)
    try:
        with watchdog, random_state.no_outside_entropy():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return None, None
    except Exception as error:
        if not outofmemory.is_out_of_memory(error):
            gone = left_out(error) or watchdog.peer_gone(error)
            if gone is None:
                raise
            raise gone from error
        training = setup.config.training
        now = Portions(
            training.per_device_train_batch_size, training.gradient_accumulation_steps or 1, trainer.args.world_size
        )
        saved = outofmemory.keep_last_step(trainer, start)
        failure = outofmemory.explained(trainer, setup.config, now, saved, setup.files.quantization is not None)
        goes_on = training.auto_find_batch_size and trainer.in_hand[0] and _can_go_on(trainer, saved)
        less = smaller(now) if goes_on else None
        if less is None:
            raise failure from error
    finally:
        trainer.close_reporters()
    log.warning("%s: going on with %s", failure.what, less)
    return less, saved


def _can_go_on(trainer: SftTrainer, saved: Path | None) -> bool:
    """From the first step, whose weights are as they were loaded, or from a checkpoint with the optimizer's state."""
    return trainer.state.global_step == 0 or (saved is not None and not trainer.saving.only_model)


def _with(setup: Setup, portions: Portions) -> Any:
    return setup.config.decide(
        "memory ran out in larger passes",
        per_device_train_batch_size=portions.batch,
        gradient_accumulation_steps=portions.accumulation,
    )


def _released(trainer: SftTrainer) -> torch.nn.Module:
    """The model without what the trainer put around it."""
    if trainer.fast_path is not None:
        trainer.fast_path.release()
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    if trainer.args.neftune_noise_alpha is not None:
        trainer._deactivate_neftune(model)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.accelerator.free_memory()
    return model


def _arguments(setup: Setup, total_steps: int, output_dir: str) -> TrainingArguments:
    from swift.train.run import save_options

    save_options(Path(output_dir), setup)
    args = training_arguments(setup.config, total_steps)
    args.output_dir = output_dir
    return args
