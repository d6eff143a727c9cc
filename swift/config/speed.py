"""Which parts of the fast path are on, as far as options tell; the model has its say when it is loaded.

Promises: pure functions from a config to a config; a value the user gave is kept, or refused when it can't work.
"""

from __future__ import annotations

from swift.config.commands import SftConfig
from swift.errors import UsageError


def decide_speed(config: SftConfig) -> SftConfig:
    """`padding_free` and `lean_head`, with reasons."""
    against = _against_joining(config)
    if against is not None:
        if config.training.padding_free:
            raise UsageError(f"--padding_free can't work: {against}", fix="leave out one of the two")
        config = config.decide(against, padding_free=False)
    elif config.training.padding_free is None:
        config = config.decide("no work on padding; attention keeps rows apart", padding_free=True)
    if config.training.lean_head is None:
        joined = bool(config.training.padding_free)
        why = "the logits of a batch never exist whole" if joined else "it works on batches without padding"
        return config.decide(why, lean_head=joined)
    if config.training.lean_head and not config.training.padding_free:
        raise UsageError("--lean_head works on batches without padding", fix="leave out --padding_free false")
    return config


def _against_joining(config: SftConfig) -> str | None:
    training = config.training
    if config.head.task_type != "causal_lm":
        return f"--task_type {config.head.task_type} has a head of its own"
    if training.fsdp:
        return "with --fsdp the weights are spread over processes"
    if training.use_liger_kernel:
        return "Liger's kernels have a loss of their own"
    if training.neftune_noise_alpha:
        return "the noise of --neftune_noise_alpha depends on the width of a batch"
    if training.torch_compile:
        return "--torch_compile wants batches of one shape"
    if config.model.attn_impl in ("eager", "flex_attention"):
        return f"--attn_impl {config.model.attn_impl} keeps rows apart by a mask"
    return None
