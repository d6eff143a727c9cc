"""`swift plan`: memory and time of training, inference and serving, and the cheapest change that makes it fit.

Promises: reads config.json and headers, never weights; imports no torch; answers in a second or two. Exit code 0
whether it fits or not: it is a question, not a run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from swift.advise import memory, remedies, timing
from swift.advise.fit import (
    TrainingPlan,
    command_line,
    count_of,
    held_out_share,
    local_rows,
    part_lines,
    plan_training,
    training_lines,
)
from swift.advise.machines import GIB, Machine, parse_gpu, this_machine
from swift.advise.memory import Estimate, Serving
from swift.advise.model_facts import ModelFacts, model_facts
from swift.advise.rows import RowFacts, assumed
from swift.advise.setup import dtype_of, stored_bytes, weight_bits
from swift.config.commands import PlanConfig
from swift.config.decide import decide_sft
from swift.config.record import explain
from swift.errors import UsageError
from swift.hub import human_bytes, resolve_options

DEFAULT_ROWS = 1000


@dataclass(frozen=True)
class Plan:
    """Everything that the report shows. `config` is decided."""

    config: PlanConfig
    facts: ModelFacts
    machine: Machine
    train: TrainingPlan
    inference: Estimate
    rows_at_once: int
    context: int
    speed: timing.Range
    serving: Serving


def main(config: PlanConfig) -> int:
    plan = make_plan(config)
    if plan.config.common.dry_run:
        print(explain(plan.config))
    elif plan.config.planning.json:
        print(json.dumps(as_dict(plan), ensure_ascii=False, indent=2))
    else:
        print(report(plan))
    return 0


def make_plan(config: PlanConfig) -> Plan:
    """The plan for a parsed command line; the errors of `swift sft` for what is wrong in it."""
    if config.model.model is None:
        raise UsageError("no model", fix="--model DIRECTORY_OR_NAME, see swift list-models")
    options = config.planning
    machine = parse_gpu(" ".join(options.gpu)) if options.gpu else this_machine()
    model = resolve_options(config.model, want_weights=False)
    facts = model_facts(model)
    config = decide_sft(
        config, Path(config.model.model.rstrip("/\\")).name or "model", facts.shape.context, machine.count
    )
    train = plan_training(config, facts, machine, _data(config, facts, model.directory), held_out_share(config))
    dtype, _ = dtype_of(config, facts, machine)
    kept = stored_bytes(facts, False, machine)
    bits = weight_bits(config)
    context = options.context or config.chat.max_length or 2048
    inference = memory.estimate_inference(
        facts.shape, dtype=dtype, weight_bits=bits, rows=1, length=context, device=machine.kind, stored_bytes=kept
    )
    together = memory.estimate_inference(
        facts.shape,
        dtype=dtype,
        weight_bits=bits,
        rows=options.max_batch_size,
        length=context,
        device=machine.kind,
        stored_bytes=kept,
    )
    return Plan(
        config=config,
        facts=facts,
        machine=machine,
        train=train,
        inference=together if remedies.fits(together.total, machine) else inference,
        rows_at_once=options.max_batch_size if remedies.fits(together.total, machine) else 1,
        context=context,
        speed=timing.tokens_per_second(facts.shape, machine, dtype, bits, kept),
        serving=memory.estimate_serving(
            facts.shape, machine.memory, dtype=dtype, length=context, weight_bits=bits, stored_bytes=kept
        ),
    )


def _data(config: PlanConfig, facts: ModelFacts, model_directory: Path) -> RowFacts:
    if config.data.dataset:
        return local_rows(config, facts, model_directory)
    options = config.planning
    tokens = options.row_tokens or config.chat.max_length or 2048
    rows = options.rows or DEFAULT_ROWS
    return assumed(rows, tokens, options.row_tokens is not None, f"no --dataset: {rows} rows of {tokens} tokens")


# ---- what is shown ----


def report(plan: Plan) -> str:
    """The plan as text, one screen."""
    lines = [*_about(plan), "", *training_lines(plan.train), "", *_inference_lines(plan)]
    return "\n".join(lines)


def _about(plan: Plan) -> list[str]:
    facts, shape = plan.facts, plan.facts.shape
    exact = "" if shape.exact or shape.stored else " (about: this architecture's details aren't known)"
    active = shape.active if any(x.experts for x in shape.layers) else 0
    count = f"{count_of(shape.parameters)} parameters{exact}" + (f", {count_of(active)} active" if active else "")
    stored = f"stored {facts.quantization}" if facts.quantization else f"stored {facts.dtype}"
    size = f"{len(shape.layers)} layers, context {shape.context or 'unknown'}"
    return [
        f"model    {facts.name}: {facts.family}, {count}, {size}, {stored}",
        f"machine  {plan.machine.title}: {plan.machine.memory / GIB:.3g} GiB"
        + (" each" if plan.machine.count > 1 else "")
        + (" free" if not plan.config.planning.gpu else ""),
    ]


def _inference_lines(plan: Plan) -> list[str]:
    rows = f"{plan.rows_at_once} requests at once" if plan.rows_at_once > 1 else "one request"
    lines = [f"inference {rows} of {plan.context} tokens", *part_lines(plan.inference, plan.machine)]
    low, high = plan.speed.low, plan.speed.high
    lines.append(f"  speed  {low:.3g} to {high:.3g} tokens per second for one request")
    serving = plan.serving
    if serving.requests:
        each = f", {human_bytes(serving.per_token)} a token" if serving.per_token else ""
        lines.append(
            f"serving  {serving.requests} requests of {plan.context} tokens at the same time (90 % of the memory, "
            f"{human_bytes(serving.weights)} of weights, room for {serving.tokens} tokens{each})"
        )
    else:
        lines.append(
            "serving  the weights leave no room for requests: quantize (swift export --quant_bits 4) or use more memory"
        )
    return lines


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values; sizes in bytes, times in seconds."""
    remedy = plan.train.remedy
    return {
        "model": {
            "name": plan.facts.name,
            "family": plan.facts.family,
            "model_type": plan.facts.shape.model_type,
            "parameters": plan.facts.shape.parameters,
            "active_parameters": plan.facts.shape.active,
            "exact": bool(plan.facts.shape.exact or plan.facts.shape.stored),
            "quantization": plan.facts.quantization,
        },
        "machine": asdict(plan.machine),
        "training": {
            "setup": asdict(plan.train.training),
            "trainable": plan.train.estimate.trainable,
            "parts": dict(plan.train.estimate.parts),
            "total": plan.train.estimate.total,
            "fits": plan.train.fits,
            "steps": plan.train.steps,
            "seconds": [plan.train.seconds.low, plan.train.seconds.high],
            "command": command_line(plan.config, remedy.options if remedy else None, plan.machine.count),
        },
        "remedy": None
        if remedy is None
        else {"options": dict(remedy.options), "reasons": list(remedy.reasons), "total": remedy.estimate.total},
        "data": {
            "rows": plan.train.data.rows,
            "longest": plan.train.data.longest,
            "answer_share": plan.train.data.answer_share,
            "note": plan.train.data.note,
        },
        "inference": {
            "rows": plan.rows_at_once,
            "context": plan.context,
            "parts": dict(plan.inference.parts),
            "total": plan.inference.total,
            "tokens_per_second": [plan.speed.low, plan.speed.high],
        },
        "serving": asdict(plan.serving),
    }
