"""The end of a run: curves, manifest, and what to type next."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from swift import runs
from swift.train import manifest
from swift.train.callbacks import clock
from swift.train.curves import save_images, series, terminal_curve

if TYPE_CHECKING:
    from swift.train.interrupt import Interrupt
    from swift.train.trainer import SftTrainer

log = logging.getLogger("swift")


def finish(trainer: SftTrainer, run_dir: Path, interrupt: Interrupt) -> None:
    """Draw the curves, complete the manifest, print the summary."""
    records = runs.read_log(run_dir / runs.LOG)
    images = save_images(records, run_dir / "images")
    state = trainer.state
    stopped = interrupt.signal is not None and state.global_step < state.max_steps
    last = trainer.last_saved
    best = trainer.best_saved
    wanted = best if trainer.schedule.evaluation.load_best_model_at_end and best else last or best
    manifest.end(
        run_dir,
        state="interrupted" if stopped else "finished",
        steps=state.global_step,
        last_checkpoint=last.name if last else None,
        best_checkpoint=best.name if best else None,
        best_metric=state.best_metric,
        result=wanted.name if wanted else None,
        seconds=round(trainer.watch.elapsed(), 3),
        input_tokens=trainer.tokens_seen["inputs"],
        trained_tokens=trainer.tokens_seen["tokens"],
    )
    _, losses = series(records, "loss")
    if len(losses) > 1:
        log.info("\nloss\n%s", terminal_curve(losses))
    for line in summary_lines(trainer, run_dir, wanted, stopped, bool(images)):
        log.warning(line)


def summary_lines(trainer: SftTrainer, run_dir: Path, wanted: Path | None, stopped: bool, images: bool) -> list[str]:
    state = trainer.state
    verb = "stopped" if stopped else "finished"
    lines = [f"{verb} at step {state.global_step} of {state.max_steps} after {clock(trainer.watch.elapsed())}"]
    lines.append(f"run directory:   {shown(run_dir)}")
    if trainer.last_saved:
        lines.append(f"last checkpoint: {shown(trainer.last_saved)}")
    if trainer.best_saved:
        metric = (trainer.args.metric_for_best_model or "loss").removeprefix("eval_")
        lines.append(f"best checkpoint: {shown(trainer.best_saved)} (eval_{metric} {state.best_metric:.4f})")
    if images:
        lines.append(f"curves:          {shown(run_dir / 'images')}")
    if stopped:
        where = f"--resume_from_checkpoint {quoted(run_dir)}" if trainer.last_saved else "(nothing was saved)"
        lines.append(f"go on with:      swift sft {where}")
    elif wanted is not None:
        option = "--adapters" if (wanted / "adapter_config.json").is_file() else "--model"
        lines.append(f"talk to it:      swift infer {option} {quoted(wanted)}")
    return lines


def shown(path: Path) -> str:
    """Relative to where we are when it is below, as a user would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def quoted(path: Path) -> str:
    return shlex.quote(shown(path))
