"""Benchmarks of checkpoints while and after a run trains: `swift eval` in a child process on what was saved.

A child, so that it sees exactly what was saved, and nothing of it can harm the training. On an accelerator it needs
room for a second copy of the model.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from swift import runs
from swift.config.commands import SftConfig
from swift.errors import TrainingError, UsageError
from swift.train.checkpoints import name_of

log = logging.getLogger("swift")

FOLDER = "benchmarks"  # below the run directory
# torchrun's, under which a child would wait for other processes
OF_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


def wanted(config: SftConfig) -> bool:
    return bool(config.evaluate.eval_dataset)


def check(config: SftConfig) -> None:
    """UsageError, before anything is trained, for what `swift eval` would refuse: names, options, questions that aren't
    there. The first process asks for all."""
    if not wanted(config) or os.environ.get("RANK", "0") != "0":
        return
    told = _swift_eval([*_options(config), "--model", str(config.model.model), "--dry_run", "true"], capture=True)
    if told.returncode:
        lines = told.stderr.strip().removeprefix("swift: ").split("\n  -> ")
        raise UsageError(lines[0], fix=lines[1] if len(lines) > 1 else None)


def evaluate(config: SftConfig, checkpoint: Path) -> dict[str, float]:
    """Ask the benchmarks of a checkpoint; name -> score. They go into the run's log as eval_NAME, too.

    TrainingError when `swift eval` fails: the checkpoint stays, and the message says how to ask again.
    """
    run_dir = checkpoint.parent
    kind = "--adapters" if (checkpoint / "adapter_config.json").is_file() else "--model"
    words = [*_options(config), kind, str(checkpoint), "--eval_output_dir", str(run_dir / FOLDER)]
    log.info("asking %s of %s", ", ".join(config.evaluate.eval_dataset), checkpoint.name)
    code = _swift_eval(words).returncode
    if code:
        raise TrainingError(
            f"swift eval ended with exit code {code} on a checkpoint that is saved and whole",
            where=str(checkpoint),
            fix=f"ask again: swift eval {' '.join(words)}",
        )
    path = max(
        (run_dir / FOLDER).glob(f"*{checkpoint.name}/v*/eval_result.json"), key=lambda found: found.stat().st_mtime
    )
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    scores = {str(result["benchmark"]): float(result["score"]) for result in results}
    step = int(checkpoint.name.rpartition("-")[2])
    runs.RunLog(run_dir / runs.LOG).write({**{f"eval_{name}": s for name, s in scores.items()}, "step": step})
    return scores


def _options(config: SftConfig) -> list[str]:
    """The words of the benchmarks' options, and of those that say where models and data are found."""
    words: list[str] = []
    for name, spec in config.specs().items():
        value = config.value(name)
        if spec.section != "evaluate" and not (name in ("use_hf", "hub_token", "model_dir") and config.given(name)):
            continue
        if value is None or value == ():
            continue
        words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [_word(value)])]
    return words


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _swift_eval(words: Sequence[str], capture: bool = False) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in OF_TORCHRUN}
    return subprocess.run([sys.executable, "-m", "swift", "eval", *words], env=env, text=True, capture_output=capture)


class Benchmarks(TrainerCallback):
    """Asks the benchmarks at every saved checkpoint whose step is a multiple of --eval_steps."""

    def __init__(self, config: SftConfig, every: int, run_dir: Path):
        self._config, self._every, self._run_dir = config, every, run_dir

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        step = state.global_step
        if not args.should_save or step % self._every or step >= state.max_steps:
            return  # the last one is asked at the end of the run
        try:
            evaluate(self._config, self._run_dir / name_of(step))
        except TrainingError as error:
            log.warning("%s", error)  # the training goes on: the checkpoint can be asked later


def callbacks(config: SftConfig, run_dir: Path) -> list[TrainerCallback]:
    """The callback that asks benchmarks between steps, where --eval_steps asks for that."""
    every = config.evaluation.eval_steps
    if not wanted(config) or not config.given("eval_steps") or not every:
        return []
    return [Benchmarks(config, int(every), run_dir)]
