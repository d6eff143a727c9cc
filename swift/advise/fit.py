"""Does this training fit this machine: its peak memory and time, before any weight is read.

Promises: `before_weights` refuses only what surely can't fit, beyond the estimate's own error; what may be tight is
said. Knows nothing of what other programs will take while the training runs.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swift.advise import memory, remedies, timing
from swift.advise.machines import Machine, cpu_machine, fitting_gpus, this_machine
from swift.advise.memory import Estimate, Training
from swift.advise.model_facts import ModelFacts, model_facts
from swift.advise.remedies import Remedy
from swift.advise.rows import RowFacts, row_facts
from swift.advise.setup import stored_bytes, training_of
from swift.advise.sight import sight_of
from swift.config.commands import Config, SftConfig
from swift.errors import ModelFileError, ResourceError
from swift.hub import LocalModel, human_bytes
from swift.train import compiling

# The estimate is within a tenth of measured peaks (benchmarks/plan_accuracy.py): what is this far over can't fit.
SURELY = 1.15
# Nothing is computed twice when the estimate stays below this share of what is free.
ROOMY = 0.7


@dataclass(frozen=True)
class TrainingPlan:
    """One training on one machine. `seconds`: of all its `steps`."""

    config: SftConfig
    machine: Machine
    data: RowFacts
    training: Training
    estimate: Estimate
    steps: int
    seconds: timing.Range
    remedy: Remedy | None

    @property
    def fits(self) -> bool:
        return remedies.fits(self.estimate.total, self.machine)


def plan_training(
    config: SftConfig, facts: ModelFacts, machine: Machine, data: RowFacts, held_out: float = 0.0
) -> TrainingPlan:
    """The plan of a decided config (see `decide_sft`); `data` bounds the rows' length when every row was looked at.
    `held_out`: the share of the rows that isn't trained on."""
    training = training_of(config, facts, machine, data)
    estimate = memory.estimate(facts.shape, training, stored_bytes=stored_bytes(facts, True, machine))
    steps, seconds = _time(config, facts, machine, data, training, held_out)
    remedy = None if remedies.fits(estimate.total, machine) else remedies.cheapest(facts, training, machine)
    return TrainingPlan(config, machine, data, training, estimate, steps, seconds, remedy)


def held_out_share(config: SftConfig) -> float:
    """Share of the rows of --dataset that is kept for validation."""
    return 0.0 if config.data.val_dataset else config.data.split_dataset_ratio


def local_rows(config: SftConfig, facts: ModelFacts, model_directory: Path) -> RowFacts:
    """The rows that --dataset names, in figures, from a sample."""
    tokenizer = model_directory / "tokenizer.json"
    return row_facts(
        config.data.dataset,
        dataset_dir=config.data.dataset_dir,
        use_hf=config.model.use_hf,
        columns=config.data.columns,
        tokenizer=tokenizer if tokenizer.is_file() else None,
        sight=sight_of(facts.config, model_directory, config.media.max_pixels),
    )


def before_weights(
    config: SftConfig, model: LocalModel, lengths: Sequence[int] | None, trained_share: float = 1.0
) -> tuple[SftConfig, list[str]]:
    """(the config with what is computed twice decided, what to show) of a training that is about to load its weights
    (`lengths`: tokens of its rows), or of a dry run (None: the rows are sampled).

    ResourceError, with the cheapest change that makes it fit, when this machine surely hasn't the memory and --force
    wasn't given; never in a dry run.
    """
    try:
        facts = model_facts(model)
    except ModelFileError as error:
        return config, [f"memory isn't estimated: {error.what}"]
    if lengths is None:
        data, held_out = local_rows(config, facts, model.directory), held_out_share(config)
    else:
        held_out = 0.0
        data = RowFacts(len(lengths), tuple(sorted(lengths)), trained_share, exact=True)
    machine = _machine(config)
    config = choose_recompute(config, facts, machine, data)
    plan = plan_training(config, facts, machine, data, held_out)
    config = compiling.decide(config, plan.seconds.low)
    plan = replace(plan, config=config)
    if lengths is None:
        return config, ["", *training_lines(plan)]
    needed, there = plan.estimate.total, plan.machine.memory
    line = f"memory: about {human_bytes(needed)} at the peak, {human_bytes(there)} free on {plan.machine.name}"
    if needed > SURELY * there and not config.training.force:
        raise ResourceError(
            f"this training needs about {human_bytes(needed)} and {human_bytes(there)} are free",
            where=plan.machine.name,
            fix=_way_out(plan) + "; --force true starts it anyway",
        )
    if not plan.fits:
        line += f". It may not fit: {_way_out(plan)}"
    line = f"{line}; time: {span(plan.seconds)} for {plan.steps} steps"
    lines = [line]
    for name in ("recompute", "torch_compile"):
        why = config.origins.get(name)
        if why and why.why:
            lines.append(f"{name}: {str(config.value(name)).lower()} ({why.why})")
    return config, lines


def choose_recompute(config: SftConfig, facts: ModelFacts, machine: Machine, data: RowFacts) -> SftConfig:
    """The level of recomputing that costs the least time and leaves room, unless one was asked for."""
    if config.given("recompute") or config.given("gradient_checkpointing"):
        return config
    fused = training_of(config, facts, machine, data).fuses
    for level in ("none", "light", "full"):
        if level == "light" and not fused:
            continue
        tried = config.decide("", recompute=level, gradient_checkpointing=level == "full")
        found = memory.estimate(
            facts.shape, training_of(tried, facts, machine, data), stored_bytes=stored_bytes(facts, True, machine)
        )
        if found.total <= ROOMY * machine.memory or level == "full":
            break
    why = f"about {human_bytes(found.total)} of {human_bytes(machine.memory)} at the peak"
    return config.decide(why, recompute=level, gradient_checkpointing=level == "full")


def _machine(config: SftConfig) -> Machine:
    """This process's share of the machine: the processes of one host share its main memory."""
    found = cpu_machine() if config.training.use_cpu else this_machine()
    found = replace(found, count=int(os.environ.get("WORLD_SIZE", "1")))
    if found.kind != "cpu":
        return found
    return replace(found, memory=found.memory // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _way_out(plan: TrainingPlan) -> str:
    if plan.remedy is None:
        return "no change of options makes it fit here"
    words = " ".join(f"--{name} {_values(value)}" for name, value in plan.remedy.options.items())
    return f"{words} needs {human_bytes(plan.remedy.estimate.total)} ({', '.join(plan.remedy.reasons)})"


def _time(
    config: SftConfig, facts: ModelFacts, machine: Machine, data: RowFacts, training: Training, held_out: float
) -> tuple[int, timing.Range]:
    """(optimizer steps, seconds of all of them)."""
    rows = max(1, round(data.rows * (1 - held_out)))
    per_step = training.batch * machine.count * training.accumulation
    steps = math.ceil(rows / per_step * config.training.num_train_epochs)
    if config.training.max_steps > 0:
        steps = config.training.max_steps
    most = config.chat.max_length or training.length
    width = data.mean_of_longest(training.batch, most)
    tokens = steps * per_step * width
    return steps, timing.training_seconds(facts.shape, training, machine, tokens, width)


# ---- what is shown ----


def training_lines(plan: TrainingPlan) -> list[str]:
    """Parts of the memory, time, and the command line that fits."""
    t, config = plan.training, plan.config
    how = "all parameters" if t.full else f"LoRA rank {t.rank} on {' '.join(t.targets)}"
    bits = f", {t.weight_bits}-bit weights" if t.weight_bits else ""
    checkpointing = "on" if t.checkpointing else "off"
    batches = f"batch {t.batch} x {t.accumulation} rows of up to {t.length} tokens, checkpointing {checkpointing}"
    lines = [f"training {how} ({count_of(plan.estimate.trainable)} parameters), {t.dtype}{bits}, {batches}"]
    lines += part_lines(plan.estimate, plan.machine)
    epochs = (
        ""
        if config.training.max_steps > 0
        else f" ({plan.data.rows} rows x {config.training.num_train_epochs:g} epochs)"
    )
    lines.append(f"  time   {plan.steps} steps{epochs}: {span(plan.seconds)}")
    if plan.data.note:
        lines.append(f"         {plan.data.note}")
    return lines + _remedy_lines(plan)


def part_lines(found: Estimate, machine: Machine) -> list[str]:
    lines = [f"  {name:<12} {human_bytes(size):>9}" for name, size in found.parts.items() if size]
    share = found.total / machine.memory if machine.memory else math.inf
    verdict = "fits" if remedies.fits(found.total, machine) else "DOES NOT FIT"
    return [
        *lines,
        f"  {'peak':<12} {human_bytes(found.total):>9}  of {human_bytes(machine.memory)} ({share:.0%}): {verdict}",
    ]


def _remedy_lines(plan: TrainingPlan) -> list[str]:
    processes = plan.machine.count
    if plan.fits:
        return ["", f"  {command_line(plan.config, processes=processes)}"]
    if plan.remedy is None:
        gpus = fitting_gpus(plan.estimate.total)
        bigger = f"the smallest GPU that would do: {gpus[0]}" if gpus else "no single GPU of the table would do"
        return ["", f"  no change of options makes it fit; {bigger}"]
    found = plan.remedy
    return [
        "",
        f"  the cheapest change that fits, {human_bytes(found.estimate.total)}: {', '.join(found.reasons)}",
        f"  {command_line(plan.config, found.options, processes)}",
    ]


def command_line(config: Config, changes: Mapping[str, Any] | None = None, processes: int = 1) -> str:
    """`swift sft` with what the user typed and these changes, ready for a shell."""
    typed = {name: config.value(name) for name in config.specs() if config.given(name)}
    typed = {name: value for name, value in typed.items() if config.specs()[name].section not in ("planning", "common")}
    typed |= changes or {}
    launched = str(typed.get("deepspeed") or "none").lower() != "none"  # which needs a launcher's environment
    words = [f"NPROC_PER_NODE={processes}"] if processes > 1 or launched else []
    words += ["swift", "sft"]
    for name, value in typed.items():
        words += [f"--{name}", _values(value)]
    return " ".join(words)


def _values(value: Any) -> str:
    return " ".join(_word(item) for item in (value if isinstance(value, (tuple, list)) else [value]))


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return shlex.quote(json.dumps(value, ensure_ascii=False))
    return shlex.quote(f"{value:g}" if isinstance(value, float) else str(value))


def count_of(number: float) -> str:
    """1.35e8 -> `135 M`."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(int(number))


def span(seconds: timing.Range) -> str:
    return f"about {timing.human_seconds(seconds.low)} to {timing.human_seconds(seconds.high)}"
