"""Which parts of the fast path are on and what is computed twice, as far as options tell; the model has its say when it
is loaded, and the estimate of memory when the rows are known.

Promises: pure functions from a config to a config; a value the user gave is kept, or refused when it can't work.
"""

from __future__ import annotations

from swift.config.commands import SftConfig
from swift.errors import UsageError

WHY = {
    "padding_free": "no work on padding; attention keeps rows apart",
    "lean_head": "the logits of a batch never exist whole",
    "fused_layers": "less work and less kept for the backward pass",
}


def decide_speed(config: SftConfig) -> SftConfig:
    """The parts of the fast path, each with its reason, and the first word on recomputing."""
    joining = _against_joining(config)
    config = _part(config, "padding_free", joining)
    config = _packing(config, joining)
    joined = None if config.training.padding_free else "it works on batches without padding"
    config = _part(config, "lean_head", joining or joined)
    config = _part(config, "fused_layers", _against_fusing(config))
    for name in ("torch_compile_backend", "torch_compile_mode"):
        if config.given(name) and config.training.torch_compile is None:
            config = config.decide(f"--{name} is given", torch_compile=True)
        elif config.given(name) and not config.training.torch_compile:
            raise UsageError("nothing is compiled", where=f"--{name}", fix="leave out --torch_compile false")
    return _recompute(config)


def _packing(config: SftConfig, against: str | None) -> SftConfig:
    """--packing puts rows together that attention has to keep apart."""
    training = config.training
    if not training.packing:
        if config.given("packing_length"):
            raise UsageError("nothing is packed", where="--packing_length", fix="add --packing true")
        return config
    if not training.padding_free:
        why = against or "without --padding_free each row is padded by itself"
        raise UsageError(f"can't work here: {why}", where="--packing", fix="leave it out")
    if training.group_by_length:
        raise UsageError("packed rows are of one length", where="--group_by_length", fix="leave it out")
    if training.packing_length is None:
        config = config.decide("as --max_length", packing_length=config.chat.max_length)
    return config


def _part(config: SftConfig, name: str, against: str | None) -> SftConfig:
    if against is None:
        return config if config.value(name) is not None else config.decide(WHY[name], **{name: True})
    if config.given(name) and config.value(name):
        raise UsageError(f"can't work here: {against}", where=f"--{name}", fix="leave it out")
    return config if config.value(name) is False else config.decide(against, **{name: False})


def _against_joining(config: SftConfig) -> str | None:
    training = config.training
    if training.neftune_noise_alpha:
        return "the noise of --neftune_noise_alpha depends on the width of a batch"
    if config.model.attn_impl in ("eager", "flex_attention"):
        return f"--attn_impl {config.model.attn_impl} keeps rows apart by a mask"
    return _against_fusing(config)


def _against_fusing(config: SftConfig) -> str | None:
    training = config.training
    if config.head.task_type != "causal_lm":
        return f"--task_type {config.head.task_type} has a head of its own"
    if training.fsdp or training.deepspeed:
        return "with --fsdp and --deepspeed the weights are spread over processes"
    if training.use_liger_kernel:
        return "Liger's kernels are in these places"
    return None


def _recompute(config: SftConfig) -> SftConfig:
    """--recompute and --gradient_checkpointing say the same: whole layers, or not."""
    training = config.training
    level, checkpointing = training.recompute, training.gradient_checkpointing
    if config.given("recompute") and config.given("gradient_checkpointing") and (level == "full") != checkpointing:
        raise UsageError(
            f"--recompute {level} and --gradient_checkpointing {str(checkpointing).lower()} contradict each other",
            fix="leave out one of the two",
        )
    if level == "light" and not training.fused_layers:
        raise UsageError("needs the fused layers", where="--recompute light", fix="--recompute full or none")
    if level is not None:
        return config.decide(f"--recompute is {level}", gradient_checkpointing=level == "full")
    if checkpointing is not None:
        return config.decide("as --gradient_checkpointing says", recompute="full" if checkpointing else "none")
    return config.decide("the least memory", recompute="full", gradient_checkpointing=True)
