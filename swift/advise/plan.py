"""`swift plan`: memory and time of training, inference and serving, and the cheapest change that makes it fit.

Promises: reads config.json and headers, never weights; imports no torch; answers in a second or two. Exit code 0
whether it fits or not: it is a question, not a run.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from swift.advise import memory, remedies, timing
from swift.advise.machines import GIB, Machine, fitting_gpus, parse_gpu, this_machine
from swift.advise.memory import Estimate, Serving, Training
from swift.advise.model_facts import ModelFacts, model_facts
from swift.advise.remedies import Remedy
from swift.advise.rows import RowFacts, assumed, row_facts
from swift.advise.setup import dtype_of, stored_bytes, training_of, weight_bits
from swift.config.commands import PlanConfig
from swift.config.decide import decide_sft
from swift.config.record import explain
from swift.errors import UsageError
from swift.hub import human_bytes, resolve_model

DEFAULT_ROWS = 1000


@dataclass(frozen=True)
class Plan:
    """Everything that the report shows. `config` is decided; `seconds`: of the whole training."""

    config: PlanConfig
    facts: ModelFacts
    machine: Machine
    data: RowFacts
    training: Training
    train: Estimate
    steps: int
    seconds: timing.Range
    remedy: Remedy | None
    inference: Estimate
    rows_at_once: int
    context: int
    speed: timing.Range
    serving: Serving

    @property
    def fits(self) -> bool:
        return remedies.fits(self.train.total, self.machine)


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
    machine = parse_gpu(options.gpu) if options.gpu else this_machine()
    model = resolve_model(
        config.model.model,
        revision=config.model.model_revision,
        use_hf=config.model.use_hf,
        hub_token=config.model.hub_token,
        model_dir=config.model.model_dir,
        want_weights=False,
    )
    facts = model_facts(model)
    config = decide_sft(
        config, Path(config.model.model.rstrip("/\\")).name or "model", facts.shape.context, machine.count
    )
    data = _data(config, model.directory)
    training = training_of(config, facts, machine, data if config.data.dataset else None)
    if not config.data.dataset and options.row_tokens:
        training = replace(training, length=min(training.length, options.row_tokens))
    train = memory.estimate(facts.shape, training, stored_bytes=stored_bytes(facts, True, machine))
    steps, seconds = _training_time(config, facts, machine, data, training)
    fitting = remedies.fits(train.total, machine)
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
        data=data,
        training=training,
        train=train,
        steps=steps,
        seconds=seconds,
        remedy=None if fitting else remedies.cheapest(facts, training, machine),
        inference=together if remedies.fits(together.total, machine) else inference,
        rows_at_once=options.max_batch_size if remedies.fits(together.total, machine) else 1,
        context=context,
        speed=timing.tokens_per_second(facts.shape, machine, dtype, bits, kept),
        serving=memory.estimate_serving(
            facts.shape, machine.memory, dtype=dtype, length=context, weight_bits=bits, stored_bytes=kept
        ),
    )


def _data(config: PlanConfig, model_directory: Path) -> RowFacts:
    if config.data.dataset:
        tokenizer = model_directory / "tokenizer.json"
        return row_facts(
            config.data.dataset,
            dataset_dir=config.data.dataset_dir,
            use_hf=config.model.use_hf,
            columns=config.data.columns,
            tokenizer=tokenizer if tokenizer.is_file() else None,
        )
    options = config.planning
    tokens = options.row_tokens or config.chat.max_length or 2048
    return assumed(
        options.rows or DEFAULT_ROWS, tokens, f"no --dataset: {options.rows or DEFAULT_ROWS} rows of {tokens} tokens"
    )


def _training_time(
    config: PlanConfig, facts: ModelFacts, machine: Machine, data: RowFacts, training: Training
) -> tuple[int, timing.Range]:
    """(optimizer steps, seconds of all of them)."""
    held_out = 0 if config.data.val_dataset else config.data.split_dataset_ratio
    rows = max(1, round(data.rows * (1 - held_out)))
    per_step = training.batch * machine.count * training.accumulation
    steps = math.ceil(rows / per_step * config.training.num_train_epochs)
    if config.training.max_steps > 0:
        steps = config.training.max_steps
    most = config.chat.max_length or training.length
    width = data.mean_of_longest(training.batch, most)
    tokens = steps * per_step * width
    return steps, timing.training_seconds(facts.shape, training, machine, tokens, width)


def command_line(config: PlanConfig, changes: Mapping[str, Any] | None = None, processes: int = 1) -> str:
    """`swift sft` with what the user typed and these changes, ready for a shell."""
    typed = {name: config.value(name) for name in config.specs() if config.given(name)}
    typed = {name: value for name, value in typed.items() if config.specs()[name].section not in ("planning", "common")}
    for name, value in (changes or {}).items():
        typed.pop("optim" if name == "optim" else name, None)
        typed[name] = value
    words = [f"NPROC_PER_NODE={processes}"] if processes > 1 else []
    words += ["swift", "sft"]
    for name, value in typed.items():
        words.append(f"--{name}")
        words += [_word(item) for item in (value if isinstance(value, (tuple, list)) else [value])]
    return " ".join(words)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return shlex.quote(json.dumps(value, ensure_ascii=False))
    return shlex.quote(f"{value:g}" if isinstance(value, float) else str(value))


# ---- what is shown ----


def report(plan: Plan) -> str:
    """The plan as text, one screen."""
    lines = [*_about(plan), "", *_training_lines(plan), "", *_inference_lines(plan)]
    return "\n".join(lines)


def _about(plan: Plan) -> list[str]:
    facts, shape = plan.facts, plan.facts.shape
    exact = "" if shape.exact or shape.stored else " (about: this architecture's details aren't known)"
    active = shape.active if any(x.experts for x in shape.layers) else 0
    count = f"{_count(shape.parameters)} parameters{exact}" + (f", {_count(active)} active" if active else "")
    stored = f"stored {facts.quantization}" if facts.quantization else f"stored {facts.dtype}"
    size = f"{len(shape.layers)} layers, context {shape.context or 'unknown'}"
    return [
        f"model    {facts.name}: {facts.family}, {count}, {size}, {stored}",
        f"machine  {plan.machine.title}: {plan.machine.memory / GIB:.3g} GiB"
        + (" each" if plan.machine.count > 1 else "")
        + (" free" if not plan.config.planning.gpu else ""),
    ]


def _training_lines(plan: Plan) -> list[str]:
    t, config = plan.training, plan.config
    how = "all parameters" if t.full else f"LoRA rank {t.rank} on {' '.join(t.targets)}"
    bits = f", {t.weight_bits}-bit weights" if t.weight_bits else ""
    checkpointing = "on" if t.checkpointing else "off"
    batches = f"batch {t.batch} x {t.accumulation} rows of up to {t.length} tokens, checkpointing {checkpointing}"
    lines = [f"training {how} ({_count(plan.train.trainable)} parameters), {t.dtype}{bits}, {batches}"]
    lines += _part_lines(plan.train, plan.machine)
    epochs = (
        ""
        if config.training.max_steps > 0
        else f" ({plan.data.rows} rows x {config.training.num_train_epochs:g} epochs)"
    )
    lines.append(f"  time   {plan.steps} steps{epochs}: {_span(plan.seconds)}")
    if plan.data.note:
        lines.append(f"         {plan.data.note}")
    return lines + _remedy_lines(plan)


def _part_lines(found: Estimate, machine: Machine) -> list[str]:
    lines = [f"  {name:<12} {human_bytes(size):>9}" for name, size in found.parts.items() if size]
    share = found.total / machine.memory if machine.memory else math.inf
    verdict = "fits" if remedies.fits(found.total, machine) else "DOES NOT FIT"
    return [
        *lines,
        f"  {'peak':<12} {human_bytes(found.total):>9}  of {human_bytes(machine.memory)} ({share:.0%}): {verdict}",
    ]


def _remedy_lines(plan: Plan) -> list[str]:
    processes = plan.machine.count
    if plan.fits:
        return ["", f"  {command_line(plan.config, processes=processes)}"]
    if plan.remedy is None:
        gpus = fitting_gpus(plan.train.total)
        bigger = f"the smallest GPU that would do: {gpus[0]}" if gpus else "no single GPU of the table would do"
        return ["", f"  no change of options makes it fit; {bigger}"]
    found = plan.remedy
    return [
        "",
        f"  the cheapest change that fits, {human_bytes(found.estimate.total)}: {', '.join(found.reasons)}",
        f"  {command_line(plan.config, found.options, processes)}",
    ]


def _inference_lines(plan: Plan) -> list[str]:
    rows = f"{plan.rows_at_once} requests at once" if plan.rows_at_once > 1 else "one request"
    lines = [f"inference {rows} of {plan.context} tokens", *_part_lines(plan.inference, plan.machine)]
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


def _count(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(int(number))


def _span(seconds: timing.Range) -> str:
    return f"about {timing.human_seconds(seconds.low)} to {timing.human_seconds(seconds.high)}"


def as_dict(plan: Plan) -> dict[str, Any]:
    """The plan as JSON values; sizes in bytes, times in seconds."""
    remedy = plan.remedy
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
            "setup": asdict(plan.training),
            "trainable": plan.train.trainable,
            "parts": dict(plan.train.parts),
            "total": plan.train.total,
            "fits": plan.fits,
            "steps": plan.steps,
            "seconds": [plan.seconds.low, plan.seconds.high],
            "command": command_line(plan.config, remedy.options if remedy else None, plan.machine.count),
        },
        "remedy": None
        if remedy is None
        else {"options": dict(remedy.options), "reasons": list(remedy.reasons), "total": remedy.estimate.total},
        "data": {
            "rows": plan.data.rows,
            "longest": plan.data.longest,
            "answer_share": plan.data.answer_share,
            "note": plan.data.note,
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
