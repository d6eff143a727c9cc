"""Training whose weights, gradients or optimizer state are spread over processes: what it goes with, decided early.

Promises: what doesn't combine is refused before data is read. Imports no torch.
"""

from __future__ import annotations

import logging
import os

from swift.config.commands import SftConfig
from swift.errors import UsageError
from swift.train.fsdp_options import read_fsdp

log = logging.getLogger("swift")

DDP = "leave out --fsdp: with quantized weights every process holds them all (DDP)"
# Optimizers that compute each element by itself, so that a shard of a tensor is as good as the whole.
ELEMENTWISE = ("adamw_torch", "adamw_torch_fused", "sgd", "adagrad", "rmsprop")


def sharded(config: SftConfig) -> bool:
    """True when no process holds all weights."""
    return read_fsdp(config) is not None


def decide_sharding(config: SftConfig, processes: int) -> SftConfig:
    """The config with what FSDP decides; UsageError for what it can't do."""
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
    _refuse(config)
    for note in fsdp.notes:
        log.info("fsdp: %s", note)
    if fsdp.checkpointing is not None and not config.given("gradient_checkpointing"):
        config = config.decide(
            "activation_checkpointing of the FSDP settings", gradient_checkpointing=fsdp.checkpointing
        )
    return config


def _refuse(config: SftConfig) -> None:
    training = config.training
    for unfit, option, why, fix in (
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
    ):
        if unfit:
            raise UsageError(why, where=f"--{option} with --fsdp", fix=fix)
