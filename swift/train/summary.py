"""The end of a run: curves, manifest, and what to type next."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swift import runs
from swift.train import manifest
from swift.train.checkpoints import PROGRESS, TRAINER_STATE
from swift.train.clock import clock
from swift.train.curves import save_images, series, terminal_curve

log = logging.getLogger("swift")


@dataclass(frozen=True)
class Outcome:
    """How far a run has come. `prefer_best`: the result is the best checkpoint, not the last. `speed`: the means of
    `Meter.sitting`, where this process trained.
    """

    step: int
    max_steps: int
    seconds: float
    last: Path | None
    best: Path | None
    best_metric: float | None
    metric: str
    tokens_seen: Mapping[str, int]
    prefer_best: bool
    interrupted: bool = False
    speed: Mapping[str, float] = field(default_factory=dict)

    @property
    def result(self) -> Path | None:
        return self.best if self.prefer_best and self.best else self.last or self.best


def outcome_of(checkpoint: Path, metric: str, prefer_best: bool) -> Outcome:
    """The outcome of a run whose last checkpoint this is, from its files."""
    state = json.loads((checkpoint / TRAINER_STATE).read_text(encoding="utf-8"))
    progress = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
    best = progress["best_checkpoint"]
    return Outcome(
        step=state["global_step"],
        max_steps=state["max_steps"],
        seconds=progress["elapsed_seconds"],
        last=checkpoint,
        best=checkpoint.parent / best if best else None,
        best_metric=state["best_metric"],
        metric=metric,
        tokens_seen=progress["tokens_seen"],
        prefer_best=prefer_best,
    )


def finish(run_dir: Path, outcome: Outcome) -> None:
    """Draw the curves, complete the manifest, print the summary."""
    records = runs.read_log(run_dir / runs.LOG)
    images = save_images(records, run_dir / "images")
    manifest.end(
        run_dir,
        state="interrupted" if outcome.interrupted else "finished",
        steps=outcome.step,
        last_checkpoint=outcome.last.name if outcome.last else None,
        best_checkpoint=outcome.best.name if outcome.best else None,
        best_metric=outcome.best_metric,
        result=outcome.result.name if outcome.result else None,
        seconds=round(outcome.seconds, 3),
        input_tokens=outcome.tokens_seen["inputs"],
        trained_tokens=outcome.tokens_seen["tokens"],
        **({"speed": dict(outcome.speed)} if outcome.speed else {}),
    )
    _, losses = series(records, "loss")
    if len(losses) > 1:
        log.info("\nloss\n%s", terminal_curve(losses))
    for line in summary_lines(run_dir, outcome, bool(images)):
        log.warning(line)


def summary_lines(run_dir: Path, outcome: Outcome, images: bool) -> list[str]:
    verb = "stopped" if outcome.interrupted else "finished"
    lines = [f"{verb} at step {outcome.step} of {outcome.max_steps} after {clock(outcome.seconds)}"]
    lines += speed_lines(outcome.speed)
    lines.append(f"run directory:   {shown(run_dir)}")
    if outcome.last:
        lines.append(f"last checkpoint: {shown(outcome.last)}")
    if outcome.best:
        lines.append(f"best checkpoint: {shown(outcome.best)} (eval_{outcome.metric} {outcome.best_metric:.4f})")
    if images:
        lines.append(f"curves:          {shown(run_dir / 'images')}")
    if outcome.interrupted:
        where = f"--resume_from_checkpoint {quoted(run_dir)}" if outcome.last else "(nothing was saved)"
        lines.append(f"go on with:      swift sft {where}")
    elif outcome.result is not None:
        option = "--adapters" if (outcome.result / "adapter_config.json").is_file() else "--model"
        lines.append(f"talk to it:      swift infer {option} {quoted(outcome.result)}")
    return lines


def speed_lines(speed: Mapping[str, float]) -> list[str]:
    """How fast the run was, against this machine's best, and where its time went."""
    if not speed:
        return []
    rate = f"{speed['tokens_per_second']:.0f} tokens/s, {human_flops(speed['flops_per_second'])}"
    if "mfu" in speed:
        rate += f", {speed['mfu']:.1%} of this machine's matrix products (MFU)"
    lines = [f"speed:           {rate}, {speed['padding_share']:.1%} padding"]
    shares = {name.removesuffix("_share"): value for name, value in speed.items() if name.endswith("_share")}
    del shares["padding"]
    if shares:
        rest = max(0.0, 1 - sum(shares.values()))
        parts = ", ".join(f"{name} {share:.1%}" for name, share in {**shares, "rest": rest}.items())
        lines.append(f"time went to:    {parts}")
    return [*lines, f"peak memory:     {speed['memory_gib']:.2f} GiB"]


def human_flops(rate: float) -> str:
    """`12.3 GFLOP/s`"""
    return f"{rate / 1e12:.3g} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.3g} GFLOP/s"


def shown(path: Path) -> str:
    """Relative to where we are when it is below, as a user would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def quoted(path: Path) -> str:
    return shlex.quote(shown(path))
