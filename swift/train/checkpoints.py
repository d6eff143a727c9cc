"""Checkpoints as transactions: written aside, fsynced, listed with hashes, renamed; removed the same way.

Promises: a directory named checkpoint-N either verifies against its manifest or was damaged later, and
`newest_complete` says which; a kill at any instant leaves the earlier ones as they were. Knows files only, neither
models nor tensors.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from swift import runs
from swift.errors import CheckpointError, ResourceError

DELETING_PREFIX = ".deleting-"
PROGRESS = "progress.json"
TRAINER_STATE = "trainer_state.json"

# What torch and safetensors say when the operating system refuses a write: they raise their own errors, without errno.
_WRITE_FAILED = re.compile(
    r"os error|No space left|file write failed|PytorchStreamWriter|unexpected pos|I/O error", re.I
)


def name_of(step: int) -> str:
    return f"checkpoint-{step}"


def step_of(path: Path) -> int | None:
    """The step in a checkpoint's name, None for any other name."""
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(match[1]) if match else None


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The run's checkpoint directories, complete or not, by step."""
    found = [p for p in run_dir.iterdir() if p.is_dir() and not p.is_symlink() and step_of(p) is not None]
    return sorted(found, key=lambda p: step_of(p) or 0)


def newest_complete(run_dir: Path, up_to: int | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files all verify (up to a step, if given), and why newer ones were passed over."""
    passed_over = []
    for path in reversed(list_checkpoints(run_dir)):
        if up_to is not None and (step_of(path) or 0) > up_to:
            continue
        problems = runs.verify_dir(path)
        if not problems:
            return path, passed_over
        passed_over.append(f"{path} is broken and not used: {problems[0]}")
    return None, passed_over


def clean_leftovers(run_dir: Path) -> None:
    """Remove what a killed process left half-written or half-deleted."""
    for path in run_dir.iterdir():
        if path.name.startswith((runs.STAGING_PREFIX, DELETING_PREFIX)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def staging_dir(run_dir: Path, step: int) -> Path:
    """An empty directory beside the final place, in which the checkpoint is put together."""
    path = run_dir / f"{runs.STAGING_PREFIX}{name_of(step)}"
    if path.exists():
        shutil.rmtree(path)
    path.mkdir()
    return path


def commit(staging: Path, run_dir: Path, step: int) -> Path:
    """Turn a finished staging directory into checkpoint-`step`; one of that name is set aside, then removed."""
    final = run_dir / name_of(step)
    old = _set_aside(final) if final.exists() else None
    runs.commit_dir(staging, final, kind="checkpoint", step=step)
    if old is not None:
        shutil.rmtree(old)
    return final


def remove(path: Path) -> None:
    """Delete a checkpoint so that no reader ever sees a part of it."""
    shutil.rmtree(_set_aside(path))


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"{DELETING_PREFIX}{path.name}")
    if aside.exists():
        shutil.rmtree(aside)
    os.replace(path, aside)
    runs.fsync_dir(path.parent)
    return aside


def rotate(run_dir: Path, limit: int | None, newest: Path, keep: Iterable[Path]) -> list[Path]:
    """Delete the oldest checkpoints beyond `limit`, never `newest` (just written, so complete) nor those in `keep`."""
    if limit is None:
        return []
    protected = {newest, *keep}
    present = list_checkpoints(run_dir)
    excess = len(present) - max(limit, len(protected & set(present)))
    deleted = []
    for path in present:
        if len(deleted) < excess and path not in protected:
            remove(path)
            deleted.append(path)
    return deleted


def link(run_dir: Path, name: str, target: Path) -> None:
    """Point the symlink `run_dir/name` at a checkpoint, in one step."""
    aside = run_dir / f"{runs.STAGING_PREFIX}{name}"
    aside.unlink(missing_ok=True)
    aside.symlink_to(target.name, target_is_directory=True)
    os.replace(aside, run_dir / name)


def processes_of(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint; CheckpointError when it doesn't say."""
    path = checkpoint / PROGRESS
    if not path.is_file():
        raise CheckpointError(f"{PROGRESS} is missing", where=str(checkpoint), fix="resume from another checkpoint")
    return json.loads(path.read_text(encoding="utf-8"))["world_size"]


def deepspeed_state(checkpoint: Path) -> Path | None:
    """The directory in which DeepSpeed keeps its state of a checkpoint, None where it wrote none."""
    return next(checkpoint.glob("global_step*"), None)


def zero_stages(checkpoint: Path) -> tuple[int, ...]:
    """ZeRO's stages that read the state which DeepSpeed wrote: 1 and 2 cut it alike; () without one."""
    state = deepspeed_state(checkpoint)
    if state is None:
        return ()
    if next(state.glob("*zero_pp_rank_*_model_states.pt"), None) is not None:
        return (3,)
    return (1, 2) if next(state.glob("*_optim_states.pt"), None) is not None else (0,)


def other_parts(checkpoint: Path, processes: int) -> bool:
    """Whether DeepSpeed cut the optimizer's state for another number of processes; stage 0 doesn't cut it."""
    return zero_stages(checkpoint) not in ((), (0,)) and processes_of(checkpoint) != processes


def require_state(checkpoint: Path) -> None:
    """CheckpointError unless the optimizer, the schedule, the random states and the position in the data are there."""
    count = processes_of(checkpoint) if (checkpoint / PROGRESS).is_file() else 1
    ranks = [f"rng_state_{rank}.pth" for rank in range(count)] if count > 1 else ["rng_state.pth"]
    optimizer = "optimizer.pt" if deepspeed_state(checkpoint) is None else "latest"
    needed = [optimizer, "scheduler.pt", TRAINER_STATE, PROGRESS, *ranks]
    missing = [name for name in needed if not (checkpoint / name).is_file()]
    if missing:
        raise CheckpointError(
            f"can't continue exactly: {', '.join(missing)} missing",
            where=str(checkpoint),
            fix="--resume_only_model true continues from the weights alone, with a fresh optimizer",
        )


@contextmanager
def writing(place: Path, remove_on_failure: Path | None = None) -> Iterator[None]:
    """Around writes: a full disk or a lost permission becomes a ResourceError, and the part written is removed."""
    try:
        yield
    except BaseException as error:
        if remove_on_failure is not None:
            shutil.rmtree(remove_on_failure, ignore_errors=True)
        if isinstance(error, OSError):
            raise runs.disk_error(error, place) from error
        if isinstance(error, Exception) and _WRITE_FAILED.search(str(error)):
            raise ResourceError(
                f"can't write: {str(error).splitlines()[0]}",
                where=str(place),
                fix=f"free some space on {place.parent}; earlier checkpoints are intact: --resume_from_checkpoint auto",
            ) from error
        raise


def write_checkpoint(run_dir: Path, step: int, write: Callable[[Path], None]) -> Path:
    """Write one checkpoint from a single process: `write(staging)` puts the files there; then it is committed."""
    final = run_dir / name_of(step)
    with writing(final):
        staging = staging_dir(run_dir, step)
    with writing(final, remove_on_failure=staging):
        write(staging)
        return commit(staging, run_dir, step)
