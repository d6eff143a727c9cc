"""Training whose weights, gradients or optimizer state are spread over processes: what it goes with, decided early.

Promises: what doesn't combine is refused before data is read. Imports no torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from swift.config.commands import SftConfig
from swift.errors import CheckpointError, UsageError
from swift.train.checkpoints import other_parts, processes_of, zero_stages
from swift.train.deepspeed_options import check_deepspeed, read_deepspeed, stage
from swift.train.fsdp_options import read_fsdp

log = logging.getLogger("swift")

PLAIN = "--optim adamw_torch_fused"
OUT, EITHER, TWO = "leave it out", "leave one of them out", "--deepspeed zero2"
DDP = "leave out --fsdp: with quantized weights every process holds them all (DDP)"
# Optimizers that compute each element by itself, so that a shard of a tensor is as good as the whole.
ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")


def sharded(config: SftConfig) -> bool:
    """True when no process holds all weights."""
    zero = read_deepspeed(config)
    return read_fsdp(config) is not None or (zero is not None and stage(zero) == 3)


def decide_sharding(
    config: SftConfig, processes: int, checkpoint: Path | None = None, quantization: str | None = None
) -> SftConfig:
    """The config with what FSDP or DeepSpeed decide; UsageError for what they can't do. `checkpoint`: the one that the
    run goes on from. `quantization`: how the model's own weights are quantized and stay so."""
    zero = read_deepspeed(config)
    if quantization is not None and sharded(config):
        raise UsageError(
            f"{quantization} weights can't be cut in parts",
            where="--fsdp" if zero is None else f"--deepspeed {config.training.deepspeed}",
            fix="leave it out: every process then holds them all (DDP); or --deepspeed zero2",
        )
    if checkpoint is not None and not config.saving.resume_only_model:
        _check_state(config, processes, checkpoint)
    if zero is None:
        return _decide_fsdp(config, processes)
    if config.training.fsdp is not None:
        raise UsageError("both --deepspeed and --fsdp are set", fix="leave one of them out")
    check_deepspeed(config, zero, processes)
    if "LOCAL_RANK" not in os.environ:
        fix = "NPROC_PER_NODE=1 swift sft ... starts one process, NPROC_PER_NODE=2 two"
        raise UsageError("DeepSpeed needs a launcher's environment", where="--deepspeed", fix=fix)
    _refuse(config, _unfit_for_zero(config, stage(zero)), "--deepspeed")
    return config


def _check_state(config: SftConfig, processes: int, checkpoint: Path) -> None:
    """CheckpointError when the state of optimizer is of another kind than the engine asked for reads."""
    zero, stages = read_deepspeed(config), zero_stages(checkpoint)
    alone = "--resume_only_model true goes on from the weights alone, with a fresh optimizer"
    if zero is None and not stages:
        return
    if not stages:
        raise CheckpointError("was written without DeepSpeed", where=str(checkpoint), fix=f"leave it out; or {alone}")
    names = " or ".join(f"zero{each}" for each in stages)
    if zero is None:
        raise CheckpointError("was written by DeepSpeed", where=str(checkpoint), fix=f"--deepspeed {names}; or {alone}")
    if stage(zero) not in stages:
        raise CheckpointError(
            f"holds the optimizer's state of {names}, which ZeRO-{stage(zero)} doesn't read",
            where=str(checkpoint),
            fix=f"--deepspeed {names}; or {alone}",
        )
    if other_parts(checkpoint, processes):
        before, adam = processes_of(checkpoint), config.training.optim.startswith("adamw_torch")
        if not adam:
            raise CheckpointError(
                f"DeepSpeed cut the state of {config.training.optim} for {before} processes and converts AdamW's only",
                where=str(checkpoint),
                fix=f"NPROC_PER_NODE={before}; or {alone}",
            )
        log.warning("the optimizer's state, cut for %d processes, is converted for %d", before, processes)


def _decide_fsdp(config: SftConfig, processes: int) -> SftConfig:
    fsdp = read_fsdp(config)
    if fsdp is None:
        return config
    if processes == 1 and "LOCAL_RANK" not in os.environ:
        if not config.given("fsdp"):
            return config.decide("one process has nothing to share", fsdp=None, fsdp_config=None)
        raise UsageError(
            "FSDP shares weights between processes, and there is one",
            where="--fsdp",
            fix="NPROC_PER_NODE=2 swift sft ... starts two; or leave it out",
        )
    _refuse(config, _unfit_for_fsdp(config), "--fsdp")
    for note in fsdp.notes:
        log.info("fsdp: %s", note)
    if fsdp.checkpointing is not None and not config.given("gradient_checkpointing"):
        config = config.decide(
            "activation_checkpointing of the FSDP settings", gradient_checkpointing=fsdp.checkpointing
        )
    return config


class Unfit(NamedTuple):
    """`met`: the config asks for it. `option` doesn't go with the engine, because of `why`."""

    met: bool
    option: str
    why: str
    fix: str


def _refuse(config: SftConfig, cases: Iterable[Unfit], engine: str) -> None:
    for case in cases:
        if case.met:
            raise UsageError(case.why, where=f"--{case.option} with {engine}", fix=case.fix)


def _unfit_for_zero(config: SftConfig, level: int) -> list[Unfit]:
    training, cut = config.training, "and ZeRO-3 cuts them"
    found = [
        Unfit(config.model.device_map is not None, "device_map", "DeepSpeed places the weights itself", OUT),
        Unfit(training.torch_compile, "torch_compile", "DeepSpeed with compiled layers is not built", EITHER),
        Unfit(training.optim == "muon", "optim", "muon looks at whole matrices, and DeepSpeed flattens them", PLAIN),
        Unfit(training.probe, "probe", "a probe would be a step of DeepSpeed's", OUT),
    ]
    if level < 3:
        return found
    svd = config.tuner.init_weights.lower() in ("pissa", "olora")
    quantized = config.quantization.quant_method is not None or config.quantization.quant_bits is not None
    return [
        *found,
        Unfit(quantized, "quant_bits", "quantized weights can't be cut in parts", TWO),
        Unfit(config.tuner.use_dora, "use_dora", f"DoRA takes norms of whole weights, {cut}", OUT),
        Unfit(svd, "init_weights", f"this initialization takes whole weights, {cut}", "--init_weights true"),
        Unfit(
            bool(config.model.new_special_tokens),
            "new_special_tokens",
            f"embeddings grow whole, {cut}",
            TWO,
        ),
    ]


def _unfit_for_fsdp(config: SftConfig) -> list[Unfit]:
    training = config.training
    cases = (
        (
            config.quantization.quant_method is not None or config.quantization.quant_bits is not None,
            "quant_bits",
            "quantized weights can't be cut in shards",
            DDP,
        ),
        (config.model.device_map is not None, "device_map", "FSDP places the weights itself", "leave it out"),
        (training.torch_compile, "torch_compile", "FSDP with compiled layers is not built", "leave one of them out"),
        (
            training.optim not in ELEMENTWISE,
            "optim",
            f"{training.optim} looks at whole tensors, and FSDP cuts them",
            f"--optim {ELEMENTWISE[1]} or another of {', '.join(ELEMENTWISE)}",
        ),
        (training.optim_args is not None, "optim_args", "not built together with FSDP", "leave one of them out"),
        (
            config.tuner.use_dora,
            "use_dora",
            "DoRA takes norms of whole weights, and FSDP cuts them",
            "leave it out",
        ),
        (
            config.tuner.init_weights.lower() in ("pissa", "olora"),
            "init_weights",
            "an initialization out of the weights is not built together with FSDP",
            "--init_weights true",
        ),
    )
    return [Unfit(*case) for case in cases]
