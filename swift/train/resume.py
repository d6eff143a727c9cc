"""Which checkpoint a run continues from, and with which options.

Promises: options that weren't typed are those of the run; a typed one that would make the state meaningless is refused,
one that only changes the course from here on is said. Reads files only; no torch.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from swift import runs
from swift.config.commands import Config
from swift.errors import CheckpointError
from swift.train.checkpoints import TRAINER_STATE, list_checkpoints, newest_complete, processes_of, step_of
from swift.train.portions import Portions, resumed

C = TypeVar("C", bound=Config)

# Options of this sitting, not of the run.
OF_THE_SITTING = {
    "resume_from_checkpoint",
    "resume_only_model",
    "ignore_data_skip",
    "output_dir",
    "add_version",
    "dry_run",
    "force",
    "probe",
    "hub_token",
}
# Sections whose options are part of what the saved state means.
BINDING_SECTIONS = ("quantization", "tuner", "training")
# Options in them that may change: they don't touch the weights' path, or (the last three) change it from here on only.
FREE = {
    "torch_empty_cache_steps",
    "auto_find_batch_size",
    "dataloader_num_workers",
    "dataloader_pin_memory",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "ddp_timeout",
    "ddp_backend",
    "ddp_find_unused_parameters",
    "ddp_broadcast_buffers",
    "deepspeed",  # whose state is looked at in swift.train.sharding
    "fsdp",
    "fsdp_config",
    "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "recompute",
}
# How the rows of a step are portioned may change; their product may not.
PORTIONS = {"per_device_train_batch_size", "gradient_accumulation_steps"}
FROM_HERE_ON = {"num_train_epochs", "max_steps"}


class ResumePoint(NamedTuple):
    """A verified checkpoint and its run; `notes` say what was passed over and why."""

    checkpoint: Path
    run_dir: Path
    step: int
    notes: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        """True when the run had reached its last step."""
        state = self.checkpoint / TRAINER_STATE
        if not state.is_file():
            return False
        record = json.loads(state.read_text(encoding="utf-8"))
        return record["global_step"] >= record["max_steps"]


def find(value: str, output_dir: Path | None) -> tuple[ResumePoint | None, list[str]]:
    """The point that `--resume_from_checkpoint value` means, and what to say about it.

    `value` is a checkpoint, a run directory, or `auto`: the newest run in `output_dir` that has a complete checkpoint;
    None when there is nothing to continue. CheckpointError when a named place has no complete checkpoint.
    """
    if value == "auto":
        return _find_newest(Path(output_dir or "."))
    path = Path(value).expanduser()
    if not path.is_dir():
        raise CheckpointError(
            "no such directory", where=f"--resume_from_checkpoint {value}", fix="name a checkpoint-N, a run, or auto"
        )
    path = path.resolve()
    step = step_of(path)
    run_dir = path if step is None else path.parent
    checkpoint, passed_over = newest_complete(run_dir, up_to=step)
    if checkpoint is None:
        raise CheckpointError(
            passed_over[0] if passed_over else "holds no checkpoint of swift",
            where=str(path),
            fix="--adapters DIR or --model DIR starts a new run from weights that another tool saved",
        )
    return ResumePoint(checkpoint, run_dir, step_of(checkpoint) or 0), _fallback_notes(passed_over, checkpoint)


def _fallback_notes(passed_over: list[str], checkpoint: Path) -> list[str]:
    return [*passed_over, f"the one before is used: {checkpoint}"] if passed_over else []


def _find_newest(output_dir: Path) -> tuple[ResumePoint | None, list[str]]:
    notes = []
    for run_dir in runs_in(output_dir.resolve()):
        checkpoint, passed_over = newest_complete(run_dir)
        if checkpoint is None:
            notes += [*passed_over, f"{run_dir} has no complete checkpoint: looking at the run before"]
            continue
        point = ResumePoint(checkpoint, run_dir, step_of(checkpoint) or 0)
        if point.finished and notes:
            # The later attempt was a new run of its own, so the finished one isn't what should go on.
            return None, [*notes, f"{run_dir} is finished: starting from the beginning"]
        return point, [*notes, *_fallback_notes(passed_over, checkpoint)]
    return None, [*notes, f"no checkpoint in {output_dir}: starting from the beginning"]


def runs_in(output_dir: Path) -> list[Path]:
    """Run directories, newest first: the versions by number, and `output_dir` itself when it holds checkpoints."""
    if not output_dir.is_dir():
        return []
    versions = [(int(m[1]), p) for p in output_dir.iterdir() if p.is_dir() and (m := re.match(r"v(\d+)-", p.name))]
    found = [path for _, path in sorted(versions, reverse=True)]
    return ([output_dir] if list_checkpoints(output_dir) else []) + found


def take_over(config: C, point: ResumePoint, processes: int = 1) -> tuple[C, list[str]]:
    """The run's options where the user typed none, and what to say about those that were typed differently.

    `processes`: how many train now; the rows of a step stay the same.

    CheckpointError names every typed option that doesn't fit the saved state.
    """
    record = runs.read_args(point.checkpoint)
    if record is None or "options" not in record:
        raise CheckpointError("args.json is missing", where=str(point.checkpoint), fix="resume from another checkpoint")
    saved = record["options"]
    specs = config.specs()
    inherited, refused, notes = {}, [], []
    for name, spec in specs.items():
        if name in OF_THE_SITTING or name not in saved:
            continue
        if name in PORTIONS and not config.value("resume_only_model"):
            continue
        old = tuple(saved[name]) if spec.is_list and saved[name] is not None else saved[name]
        if not config.given(name):
            inherited[name] = old
        elif config.value(name) != old:
            if name in FROM_HERE_ON:
                notes.append(
                    f"--{name} is {config.value(name)} from here on (the run had {old}); the schedule follows it"
                )
            elif spec.section in BINDING_SECTIONS and name not in FREE or name in ("model", "torch_dtype"):
                refused.append(f"--{name} {config.value(name)} (the run has {old})")
    if refused and not config.value("resume_only_model"):
        raise CheckpointError(
            f"the run can't continue with other options: {', '.join(refused)}",
            where=str(point.checkpoint),
            fix="leave them out, or start anew from these weights with --resume_only_model true",
        )
    config = config.replace(inherited, "args.json", str(point.run_dir))
    if config.value("resume_only_model") or not saved.keys() >= PORTIONS:
        return config, notes
    return _portioned(config, saved, point, processes, notes)


def _portioned(
    config: C, saved: dict[str, Any], point: ResumePoint, processes: int, notes: list[str]
) -> tuple[C, list[str]]:
    """The step's rows in portions for the processes there are now."""
    batch, accumulation = "per_device_train_batch_size", "gradient_accumulation_steps"
    old = Portions(saved[batch], saved[accumulation] or 1, processes_of(point.checkpoint))
    typed = {name: config.value(name) if config.given(name) else None for name in (batch, accumulation)}
    new = resumed(old, processes, typed[batch], typed[accumulation], bool(config.value("dataloader_drop_last")))
    if new != old:
        notes.append(f"a step's {old.rows} rows are now {new} (they were {old}): the same to rounding, not to the bit")
    return config.replace({batch: new.batch, accumulation: new.accumulation}, "args.json", str(point.run_dir)), notes
