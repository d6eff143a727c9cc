"""The cheapest change of options that makes a training fit.

Promises: tries all combinations of the changes below in the order of what they cost (time first, then quality, then
data) and returns the first that fits; so no cheaper combination of them does. Knows nothing of changes outside this
list.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from swift.advise.machines import Machine
from swift.advise.memory import ITEM as ITEM_BYTES
from swift.advise.memory import WIDE, Estimate, Training, adapted_names, estimate, weight_bytes
from swift.advise.model_facts import ModelFacts
from swift.advise.setup import stored_bytes
from swift.advise.spread import Spread
from swift.config.packages import bnb_switched_off
from swift.hub import human_bytes
from swift.train.sharding import ELEMENTWISE

SHORTEST = 256
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True)
class Change:
    """`options`: what to set on the command line; `cost`: larger is worse; `apply` gives the training with the
    change.
    """

    options: Mapping[str, Any]
    cost: float
    why: str
    apply: Callable[[Training], Training]


NOTHING = Change({}, 0.0, "", lambda training: training)


@dataclass(frozen=True)
class Remedy:
    """Changes that together make it fit, and the estimate with them."""

    options: Mapping[str, Any]
    reasons: tuple[str, ...]
    estimate: Estimate
    training: Training


def fits(total: int, machine: Machine) -> bool:
    """On a GPU a little is kept for other programs; on this machine's CPU the figure is what is free now."""
    return total <= machine.memory * (0.97 if machine.kind != "cpu" else 0.95)


def cheapest(facts: ModelFacts, training: Training, machine: Machine) -> Remedy | None:
    """The remedy, or None when even all changes together don't make it fit."""
    axes = _axes(facts, training, machine)
    stays_quantized = stored_bytes(facts, True, machine) is not None
    combinations = sorted(itertools.product(*axes), key=lambda changes: sum(change.cost for change in changes))
    for changes in combinations[1:]:
        changed = training
        for change in changes:
            changed = change.apply(changed)
        if not _goes_together(changed, stays_quantized):
            continue
        found = estimate(facts.shape, changed, stored_bytes=stored_bytes(facts, True, machine))
        if fits(found.total, machine):
            options = {name: value for change in changes for name, value in change.options.items()}
            return Remedy(options, tuple(c.why for c in changes if c.why), found, changed)
    return None


def _axes(facts: ModelFacts, training: Training, machine: Machine) -> list[list[Change]]:
    """One list of alternatives per option; each begins with no change."""
    on_gpu = machine.kind == "cuda"
    axes = [[NOTHING, *_checkpointing(training)], [NOTHING, *_batch(training)], [NOTHING, *_dtype(training, machine)]]
    if on_gpu and facts.quantization is None and not bnb_switched_off() and not training.weight_bits:
        axes.append([NOTHING, *_bits()])
    if on_gpu and training.full and training.optimizer.startswith("adamw_torch"):
        change = Change(
            {"optim": "adamw_8bit"}, 1.5, "optimizer state in 8 bits", lambda t: replace(t, optimizer="adamw_8bit")
        )
        axes.append([NOTHING, change])
    if training.full:
        axes.append(
            [NOTHING, Change({"tuner_type": "lora"}, 6.0, "train adapters only", lambda t: replace(t, full=False))]
        )
    if _reaches_experts(facts, training):
        change = Change(
            {"target_modules": ATTENTION}, 2.0, "adapters on attention only", lambda t: replace(t, targets=ATTENTION)
        )
        axes.append([NOTHING, change])
    axes.append([NOTHING, *_sharing(facts, training, machine)])
    axes.append([NOTHING, *_length(training)])
    return axes


def _goes_together(training: Training, stays_quantized: bool) -> bool:
    """Whether swift trains with this combination: see swift.train.sharding. `stays_quantized`: the checkpoint's own
    weights do."""
    quantized = training.weight_bits or stays_quantized
    if training.full and quantized:
        return False
    spread = training.spread
    cut = quantized or training.dora
    if spread.engine == "fsdp":
        return not cut and training.optimizer in ELEMENTWISE
    if spread.engine == "deepspeed":
        return not (spread.stage == 3 and cut) and training.optimizer in ELEMENTWISE
    return True


def _sharing(facts: ModelFacts, training: Training, machine: Machine) -> list[Change]:
    """Each process holds a part of the optimizer's state, of gradients and weights; or main memory does."""
    if training.spread.stage or machine.kind != "cuda":
        return []
    found = []
    if machine.count > 1:
        found = [
            _shared(0.4, "deepspeed", "zero2", "each process holds a part of the optimizer's state", stage=2),
            _shared(0.9, "fsdp", "fsdp2", "each process holds a part of the weights", stage=3),
        ]
    state = Spread(engine="deepspeed", stage=1).optimizer(estimate(facts.shape, training).trainable, 2, WIDE, 0)
    everything = state + weight_bytes(facts.shape, training.dtype)
    weights_too = {"stage": 3, "offload_weights": True}
    kept = [
        (1.9, "zero2_offload", state, "of optimizer state in main memory", {"stage": 2}),
        (5.0, "zero3_offload", everything, "of weights and state in main memory", weights_too),
    ]
    for cost, name, size, what, spread in kept:
        if machine.host is None or size < machine.host:
            why = f"{human_bytes(size)} {what}"
            found.append(_shared(cost, "deepspeed", name, why, offload_optimizer=True, **spread))
    return found


def _shared(cost: float, engine: str, name: str, why: str, **spread: Any) -> Change:
    def apply(training: Training) -> Training:
        # whose path is the plain one: see swift.train.lean.check
        shared = replace(training.spread, engine=engine, **spread)
        return replace(training, spread=shared, lean_head=False, fused=False, light=False)

    return Change({engine: name}, cost, why, apply)


def _checkpointing(training: Training) -> list[Change]:
    if training.checkpointing:
        return []
    on = Change(
        {"gradient_checkpointing": True},
        1.0,
        "recompute activations (a third slower)",
        lambda t: replace(t, checkpointing=True),
    )
    return [on]


def _batch(training: Training) -> list[Change]:
    """Smaller batches with as many rows per step: the same training."""
    changes, batch = [], training.batch
    while batch > 1:
        batch = (batch + 1) // 2
        steps = -(-training.batch * training.accumulation // batch)
        options = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        cost = 0.2 * (len(changes) + 1)
        changes.append(
            Change(options, cost, "smaller batches, as many rows per step", _with(batch=batch, accumulation=steps))
        )
    return changes


def _dtype(training: Training, machine: Machine) -> list[Change]:
    if ITEM_BYTES[training.dtype] < WIDE:
        return []
    half = "bfloat16" if machine.bf16 or machine.kind == "cpu" else "float16"
    cost = 0.5 if machine.dtype != "float32" else 2.5
    why = f"{half} weights" + ("" if cost < 1 else " (slow on this processor)")
    return [Change({"torch_dtype": half}, cost, why, _with(dtype=half, mixed=True))]


def _bits() -> list[Change]:
    return [
        Change({"load_in_8bit": True}, 2.2, "weights in 8 bits", _with(weight_bits=8)),
        Change({"load_in_4bit": True}, 2.6, "weights in 4 bits (QLoRA)", _with(weight_bits=4)),
    ]


def _length(training: Training) -> list[Change]:
    changes, length = [], training.length
    while length // 2 >= SHORTEST:
        length //= 2
        cost = 3.0 * (len(changes) + 1)
        changes.append(Change({"max_length": length}, cost, f"rows of at most {length} tokens", _with(length=length)))
    return changes


def _reaches_experts(facts: ModelFacts, training: Training) -> bool:
    names = adapted_names(facts.shape, training.targets)
    return not training.full and any(
        x.expert and x.name in names for layer in facts.shape.layers for x in layer.linears
    )


def _with(**values: Any) -> Callable[[Training], Training]:
    return lambda training: replace(training, **values)
