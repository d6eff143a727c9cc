"""One training run, step by step: device and dtype, rows, weights, run directory, training, summary.

The order is the promise: rows are read and encoded before any weight is loaded, the run directory comes after both.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift import runs
from swift.config.commands import SftConfig
from swift.config.record import save_args
from swift.errors import CheckpointError, ResourceError, UsageError
from swift.hub import check_disk
from swift.hub.resources import human_bytes
from swift.models import imports
from swift.models.device import Device, pick_device
from swift.models.plan import LoadPlan, plan_loading
from swift.train import elastic, manifest, summary
from swift.train.checkpoints import clean_leftovers
from swift.train.examples import Examples, prepare_examples, save_report
from swift.train.fsdp_options import read_fsdp
from swift.train.interrupt import Interrupt
from swift.train.ondemand import OnDemand
from swift.train.resume import ResumePoint
from swift.train.sft import Advice, Setup
from swift.train.sharding import DDP, sharded

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from swift.train.trainer import SftTrainer

log = logging.getLogger("swift")


def plan(setup: Setup) -> tuple[Setup, LoadPlan]:
    """Device, dtype and quantization, decided without reading a weight; the setup with them in its config."""
    with imports.left_out(imports.unused(setup.config, setup.files)):
        return _plan(setup)


def _plan(setup: Setup) -> tuple[Setup, LoadPlan]:
    config = setup.config
    device = pick_device(config.training.use_cpu)
    config = _decide_device(config, device)
    options = config.model
    if config.tuner.tuner_type == "full" and options.torch_dtype == "float16":
        config = config.decide("weights that train in float16 lose small updates", torch_dtype="float32", fp16=True)
    loading = plan_loading(config.model, config.quantization, setup.files, device, training=True)
    if config.tuner.tuner_type == "full" and loading.dtype == "float16":
        config = config.decide("weights that train in float16 lose small updates", torch_dtype="float32", fp16=True)
        loading = plan_loading(config.model, config.quantization, setup.files, device, training=True)
    if sharded(config) and loading.quantized and read_fsdp(config) is not None:
        raise UsageError("the checkpoint's weights are quantized, and can't be cut in shards", where="--fsdp", fix=DDP)
    if read_fsdp(config) is not None and config.tuner.tuner_type == "full" and loading.dtype == "bfloat16":
        why = "FSDP keeps weights that train in float32 and computes in bfloat16"
        config = config.decide(why, torch_dtype="float32", bf16=True)
        loading = plan_loading(config.model, config.quantization, setup.files, device, training=True)
    if sharded(config) and device.kind != "cpu":
        # each process moves its shards to its device; ZeRO-3 makes them while it loads
        loading = dataclasses.replace(loading, device_map={"": "cpu"} if read_fsdp(config) is not None else None)
    if config.model.torch_dtype is None:
        config = config.decide(loading.reasons["dtype"], torch_dtype=loading.dtype)
    config = _decide_autocast(config, loading.dtype)
    from swift.train import benchmarks, compiling
    from swift.train.arguments import check_schedule
    from swift.train.build import check_packages
    from swift.train.optimizers import check_name

    check_schedule(config)
    check_name(config)
    check_packages(config)
    compiling.check(config)
    benchmarks.check(config)
    return dataclasses.replace(setup, config=config), loading


def _decide_device(config: SftConfig, device: Device) -> SftConfig:
    if device.kind == "cpu" and not config.training.use_cpu:
        config = config.decide("no accelerator was found", use_cpu=True)
    if device.kind != "cuda" and config.training.dataloader_pin_memory:
        if config.given("dataloader_pin_memory"):
            raise UsageError("--dataloader_pin_memory needs a CUDA device", fix="leave it out")
        config = config.decide(f"no use on {device.kind}", dataloader_pin_memory=False)
    if config.training.fp16 and device.kind == "cpu":
        raise UsageError("--fp16 needs an accelerator", fix="--torch_dtype bfloat16 or float32")
    return config


def _decide_autocast(config: SftConfig, dtype: str) -> SftConfig:
    """Mixed precision follows the dtype of the weights unless it was asked for."""
    for flag, name in (("bf16", "bfloat16"), ("fp16", "float16")):
        if config.value(flag) is None:
            config = config.decide(f"the weights are {dtype}", **{flag: dtype == name})
    return config


def train(setup: Setup, loading: LoadPlan, advice: Advice | None = None) -> int:
    """Read, encode, load, train, report; the exit code."""
    from swift.models.load import load_tokenizer

    config = setup.config
    tokenizer = load_tokenizer(
        _weights_directory(setup),
        trust_remote_code=loading.trust_remote_code,
        new_special_tokens=loading.new_special_tokens,
    )
    config, examples = prepare_examples(config, setup.model, tokenizer, setup.world_size)
    setup = dataclasses.replace(setup, config=config)
    _check_same_rows(setup, examples)
    for line in loading.lines():
        log.info(line)
    if advice is not None:
        rows = examples.prepared.train
        share = int(rows.trained.sum()) / int(rows.lengths.sum())
        config, lines = advice(config, setup.model, examples.lengths_known(), share)
        setup = dataclasses.replace(setup, config=config)
        for line in lines:
            log.info(line)
    return _train(setup, loading, tokenizer, examples)


def _weights_directory(setup: Setup) -> Path:
    """The directory that weights and tokenizer come from: a whole model goes on from its checkpoint."""
    if setup.point is not None and setup.config.tuner.tuner_type == "full":
        return setup.point.checkpoint
    from swift.models.gguf import as_directory

    return as_directory(setup.model.path)


def _check_same_rows(setup: Setup, examples: Examples) -> None:
    if setup.point is None or setup.config.saving.resume_only_model:
        return
    if manifest.saved_fingerprint(setup.point.checkpoint) != examples.fingerprint:
        raise CheckpointError(
            "the training rows aren't those of the run: the data, the template or the prompts have changed",
            where=str(setup.point.checkpoint),
            fix="restore them, or train on with --resume_only_model true",
        )


def _train(setup: Setup, loading: LoadPlan, tokenizer: Any, examples: Examples) -> int:
    """From here on torch, transformers and peft are at work."""
    from transformers import set_seed

    from swift.models.heads import head_of, is_classifier, with_head
    from swift.models.load import load_model
    from swift.models.tuners import apply_tuner, trainable_summary
    from swift.train import benchmarks
    from swift.train.arguments import steps_in_run, training_arguments
    from swift.train.distributed import may_leave_out
    from swift.train.loop import train_in_memory
    from swift.train.optimizers import check_optimizer

    config = setup.config
    total = steps_in_run(config, len(examples.train), setup.world_size)
    if setup.point is not None and setup.point.step >= total and not starts_anew(config):
        return _nothing_left(setup.point, config)
    args = training_arguments(config, total)
    check_optimizer(args)
    set_seed(config.training.seed)
    fresh = setup.point is None and setup.adapter is None and not is_classifier(setup.files.config)
    model = load_model(_weights_directory(setup), with_head(loading, head_of(config.head, fresh)))
    setup = _settle_checkpointing(setup, args, model)
    config = setup.config
    if setup.adapter is not None:
        from swift.models.adapters import load_adapter

        model = load_adapter(model, setup.adapter, trainable=True)
    else:
        set_seed(config.training.seed)  # the adapter's first values depend on the seed alone
        model = apply_tuner(model, config.tuner, new_token_ids=_new_token_ids(loading, setup, tokenizer))
    log.info(trainable_summary(model))
    if setup.world_size > 1 and args.ddp_find_unused_parameters is None:
        why = may_leave_out(model)
        args.ddp_find_unused_parameters = why is not None
        if why is not None:
            log.info("DDP looks for parameters without gradient in every step: %s", why)
    run_dir = _run_dir(setup, args, model, examples)
    args.output_dir = str(run_dir)
    save_tokenizer = config.tuner.tuner_type == "full" or bool(loading.new_special_tokens)
    with Interrupt() as interrupt:
        trainer = train_in_memory(setup, args, model, tokenizer, examples, interrupt, save_tokenizer, total)
    if examples.on_demand is not None:
        _report_rows(examples.on_demand, trainer.rows_seen(), run_dir if args.should_save else None)
    if args.should_save:
        summary.finish(run_dir, _outcome(trainer, config, interrupt))
    trainer.leave_group()
    if args.should_save and benchmarks.wanted(config) and not interrupt.exit_code and trainer.last_saved is not None:
        result = _outcome(trainer, config, interrupt).result
        benchmarks.evaluate(config, result or trainer.last_saved)
    return interrupt.exit_code


def _report_rows(prepared: OnDemand, saved: list[dict[str, Any]], run_dir: Path | None) -> None:
    """The data report of rows that were encoded while training went on."""
    if run_dir is not None:
        prepared = dataclasses.replace(prepared, report=prepared.final_report(saved))
        log.info(prepared.report.to_text())
        save_report(run_dir, prepared)


def _settle_checkpointing(setup: Setup, args: TrainingArguments, model: Any) -> Setup:
    """Without recomputing activations where the architecture can't, unless it was asked for."""
    if not args.activation_checkpointing or model.supports_gradient_checkpointing:
        return setup
    what = f"{type(model).__name__} can't recompute activations"
    if setup.config.given("gradient_checkpointing"):
        raise UsageError(what, where="--gradient_checkpointing", fix="leave it out, or say false")
    log.info("%s: they are kept, which takes more memory", what)
    args.activation_checkpointing = False
    return dataclasses.replace(setup, config=setup.config.decide(what, gradient_checkpointing=False))


def _outcome(trainer: SftTrainer, config: SftConfig, interrupt: Interrupt) -> summary.Outcome:
    state = trainer.state
    return summary.Outcome(
        step=state.global_step,
        max_steps=state.max_steps,
        seconds=trainer.meter.watch.elapsed(),
        last=trainer.last_saved,
        best=trainer.best_saved,
        best_metric=state.best_metric,
        metric=_metric(config),
        tokens_seen=trainer.meter.tokens_seen,
        speed=trainer.meter.sitting(),
        prefer_best=config.evaluation.load_best_model_at_end,
        interrupted=interrupt.signal is not None and state.global_step < state.max_steps,
    )


def _nothing_left(point: ResumePoint, config: SftConfig) -> int:
    """The run was complete; what a kill may have left undone after its last checkpoint is done now."""
    log.warning("nothing is left to train: the run has had all its %d steps", point.step)
    best = config.evaluation.load_best_model_at_end
    if int(os.environ.get("RANK", "0")) == 0:
        summary.finish(point.run_dir, summary.outcome_of(point.checkpoint, _metric(config), best))
    return 0


def _metric(config: SftConfig) -> str:
    return (config.evaluation.metric_for_best_model or "loss").removeprefix("eval_")


def starts_anew(config: SftConfig) -> bool:
    """Only the weights are taken from the checkpoint: steps and rows begin at zero."""
    return config.saving.resume_only_model and config.saving.ignore_data_skip


def _new_token_ids(loading: LoadPlan, setup: Setup, tokenizer: Any) -> list[int]:
    """Ids of the tokens that --new_special_tokens added to the model's own vocabulary."""
    if not loading.new_special_tokens:
        return []
    from swift.models.load import add_special_tokens, load_tokenizer

    own = load_tokenizer(_weights_directory(setup), trust_remote_code=loading.trust_remote_code)
    return add_special_tokens(own, loading.new_special_tokens)


def _run_dir(setup: Setup, args: TrainingArguments, model: Any, examples: Examples) -> Path:
    """The directory of this run, the same in all processes: a new one, or that of the run that goes on."""
    made: list[str | None] = [None]
    failure: list[BaseException | None] = [None]
    if args.should_save:
        try:
            made[0] = str(_make_run_dir(setup, model, examples))
        except BaseException as error:
            if args.world_size == 1:
                raise
            failure[0] = error
    if args.world_size > 1:
        import torch.distributed as dist

        both = [made[0], failure[0]]
        dist.broadcast_object_list(both)
        made[0], failure[0] = both
        if failure[0] is not None:
            raise failure[0]
    return _seen_from_here(Path(str(made[0])))


def _seen_from_here(run_dir: Path) -> Path:
    """The run directory, which every process writes its part of a checkpoint to; a network disk may be a bit late."""
    for _ in range(20):
        if run_dir.is_dir():
            return run_dir
        time.sleep(0.5)
    raise ResourceError(
        f"{socket.gethostname()} doesn't see the run directory that the first process made",
        where=str(run_dir),
        fix="--output_dir on a disk that all machines share",
    )


def _make_run_dir(setup: Setup, model: Any, examples: Examples) -> Path:
    config, point = setup.config, setup.point
    output_dir = Path(str(config.saving.output_dir)).expanduser()
    if point is not None and goes_on_in_place(config, point.run_dir):
        run_dir = point.run_dir
        clean_leftovers(run_dir)
        runs.RunLog(run_dir / runs.LOG).truncate_after(point.step)
    else:
        check_disk(output_dir, _checkpoint_bytes(config, model), "a checkpoint")
        run_dir = runs.create_run_dir(output_dir, config.saving.add_version).resolve()
        _refuse_used(run_dir)
    log.info("run directory: %s", run_dir)
    runs.announce(run=run_dir)
    save_options(run_dir, setup)
    examples.save(run_dir)
    manifest.begin(run_dir, setup, examples, elastic.job_id())
    return run_dir


def save_options(run_dir: Path, setup: Setup) -> None:
    """args.json: the options as they are in force, for resuming and for the commands that come after."""
    config = setup.config
    command = "sft" if config.chat.use_chat_template else "pt"
    path = _weights_directory(setup) if setup.point is None else setup.model.directory
    save_args(run_dir, command, config, model_path=str(path))


def goes_on_in_place(config: SftConfig, run_dir: Path) -> bool:
    """A resumed run stays in its directory unless only its weights are used or another --output_dir was typed."""
    if config.saving.resume_only_model:
        return False
    if not config.given("output_dir"):
        return True
    typed = Path(str(config.saving.output_dir)).expanduser().resolve()
    return typed in (run_dir, run_dir.parent)


def _refuse_used(run_dir: Path) -> None:
    """With --add_version false a directory that holds a run already is not written over."""
    if (run_dir / runs.ARGS).exists() or (run_dir / runs.LOG).exists():
        raise UsageError(
            "this directory holds a run already",
            where=str(run_dir),
            fix="--resume_from_checkpoint auto goes on with it; or choose another --output_dir",
        )


def _checkpoint_bytes(config: SftConfig, model: Any) -> int:
    """Bytes of the first checkpoint: trained weights and Adam's two moments; a whole model with its frozen weights."""
    from swift.train.zero import numel

    if config.saving.save_strategy == "no":
        return 0
    trained = sum(numel(p) * p.element_size() for p in model.parameters() if p.requires_grad)
    stored = trained
    if config.tuner.tuner_type == "full":
        stored = sum(numel(p) * p.element_size() for p in model.parameters())
    needed = stored + (0 if config.saving.save_only_model else 2 * trained)
    log.debug("a checkpoint takes about %s", human_bytes(needed))
    return needed
