"""The runs that the page shows: jobs, and the run directories that they and `swift` in a terminal have written.

A run is named by an id of ours; what a page sends is looked up in the list, so no text of a page's ever becomes a
path. Everything is read from files anew, bounded in size; what is broken in a run directory is left out.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift import runs
from swift.errors import UsageError
from swift.web.files import read_end, read_json
from swift.web.jobs import Job, Jobs

DEPTH = 4
MOST_RUNS, MOST_FOLDERS = 500, 20_000
LOG_BYTES, RECORD_BYTES = 8 << 20, 1 << 14
POINTS = 600
QUIET_SECONDS = 120.0  # a run without a job of ours whose log is older than this has been interrupted
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
CURVES = (
    "loss",
    "eval_loss",
    "learning_rate",
    "tokens_per_second",
    "mfu",
    "token_acc",
    "eval_token_acc",
    "grad_norm",
    "memory_gib",
)


@dataclass(frozen=True)
class Run:
    """One line of the list: a run directory with the jobs that worked on it (newest first), or a job without one."""

    id: str
    path: Path | None
    jobs: tuple[Job, ...]

    @property
    def job(self) -> Job | None:
        return self.jobs[0] if self.jobs else None

    @property
    def created(self) -> float:
        if self.jobs:
            return self.jobs[0].created
        try:
            return (self.path or Path()).stat().st_mtime
        except OSError:
            return 0.0

    @property
    def name(self) -> str:
        if self.path is None:
            return self.job.id if self.job else ""
        return f"{self.path.parent.name}/{self.path.name}"


class RunList:
    """The runs below `roots` and those of `jobs`."""

    def __init__(self, roots: Sequence[Path], jobs: Jobs):
        self.roots, self.jobs = tuple(roots), jobs
        self._run_dirs: dict[str, Path] = {}  # by job, once known: it doesn't change

    def list(self) -> list[Run]:
        """The newest first."""
        by_path: dict[Path, list[Job]] = {}
        alone: list[Job] = []
        for job in self.jobs.list():
            path = self._run_dirs.get(job.id) or _run_dir_of(job)
            if path is not None:
                self._run_dirs[job.id] = path
            if path is None:
                alone.append(job)
            else:
                by_path.setdefault(path, []).append(job)
        for path in self._directories():
            by_path.setdefault(path, [])
        found = [Run(_id_of(path), path, tuple(jobs)) for path, jobs in by_path.items()]
        found += [Run(job.id, None, (job,)) for job in alone]
        return sorted(found, key=lambda run: run.created, reverse=True)[:MOST_RUNS]

    def find(self, id: str) -> Run:
        """The run of this id, or that the job of this id works on. UsageError when there is none."""
        for run in self.list():
            if run.id == id or any(job.id == id for job in run.jobs):
                return run
        raise UsageError("there is no such run; it may have been removed")

    def _directories(self) -> Iterator[Path]:
        seen = 0
        for root in self.roots:
            for folder, inner, files in os.walk(root):
                seen += 1
                if seen > MOST_FOLDERS:
                    return
                depth = len(Path(folder).relative_to(root).parts)
                is_run = runs.ARGS in files and runs.MANIFEST in files and not CHECKPOINT.fullmatch(Path(folder).name)
                inner[:] = [] if is_run or depth >= DEPTH else [n for n in inner if not n.startswith(".")]
                if is_run:
                    yield Path(folder).resolve()


def _run_dir_of(job: Job) -> Path | None:
    """The run directory that a job says it writes, if it looks like one."""
    told = job.told().get("run")
    if told is None:
        return None
    try:
        path = Path(told).resolve()
        return path if path.is_dir() else None
    except (OSError, ValueError):
        return None


def _id_of(path: Path) -> str:
    return f"run-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"


# ---- what is in a run ----


def state_of(run: Run) -> str:
    """The job's state, else what the manifest says: finished, interrupted, running (in a terminal), broken."""
    if run.job is not None and (run.job.alive or run.path is None):
        return run.job.state
    manifest = read_json(run.path / runs.MANIFEST) if run.path else {}
    said = manifest.get("state")
    if said == "finished":
        return "finished"
    if run.job is not None and run.job.state != "finished":
        return run.job.state
    if said == "interrupted":
        return "stopped"
    if said == "training":
        return "running" if _age(run.path) < QUIET_SECONDS else "lost"
    return run.job.state if run.job else "unknown"


def _age(path: Path | None) -> float:
    try:
        return time.time() - (path / runs.LOG).stat().st_mtime if path else math.inf
    except OSError:
        return math.inf


def records(path: Path, size: int = LOG_BYTES) -> list[dict[str, Any]]:
    """The records in the last `size` bytes of a run's log; lines that aren't records of steps are left out."""
    found = []
    for line in read_end(path / runs.LOG, size)[0].split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and _number(record.get("step")) is not None:
            found.append(record)
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def curves(path: Path) -> dict[str, list[list[float]]]:
    """name -> [[step, value], ...] of what was logged, thinned to POINTS each."""
    found: dict[str, list[list[float]]] = {}
    for record in records(path):
        step = _number(record["step"])
        for name in CURVES:
            value = _number(record.get(name))
            if value is not None and step is not None:
                found.setdefault(name, []).append([step, value])
    return {name: _thinned(points) for name, points in found.items()}


def _thinned(points: list[list[float]]) -> list[list[float]]:
    if len(points) <= POINTS:
        return points
    every = math.ceil(len(points) / POINTS)
    kept = points[::every]
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]


def last_record(path: Path) -> dict[str, float]:
    """The newest figure of each kind, as numbers."""
    newest: dict[str, float] = {}
    for record in records(path, RECORD_BYTES):
        newest |= {k: v for k, raw in record.items() if (v := _number(raw)) is not None}
    return newest


def checkpoints(path: Path) -> list[Path]:
    """Complete checkpoints, the oldest first."""
    found = []
    try:
        for entry in path.iterdir():
            match = CHECKPOINT.fullmatch(entry.name)
            if match and (entry / runs.MANIFEST).is_file():
                found.append((int(match[1]), entry))
    except OSError:
        return []
    return [entry for _, entry in sorted(found)]


def model_options(checkpoint: Path) -> dict[str, str]:
    """The fields that name a checkpoint to other commands: an adapter or a whole model."""
    name = "adapters" if (checkpoint / "adapter_config.json").is_file() else "model"
    return {name: str(checkpoint)}
