"""torchrun's restarts: processes that come after a death go on from the newest checkpoint of their own job.

Promises: only a run that this job began is continued, never an older one that happens to lie in the same place.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from swift.train import manifest
from swift.train.checkpoints import newest_complete, step_of
from swift.train.resume import ResumePoint, runs_in


def restarts() -> int:
    """How often torchrun has started this job's processes anew after one of them died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def job_id() -> str | None:
    """The same in all attempts of one torchrun job, different for another job; None outside torchrun.

    It is the rendezvous id where the user chose one or torchrun made one up; else the agent process that started this
    one: its host, number and start.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if name is None or name != "none":
        return name
    stat = Path(f"/proc/{os.getppid()}/stat")
    began = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[19] if stat.is_file() else ""
    return f"{socket.gethostname()}:{os.getppid()}:{began}"


def find_own(output_dir: Path) -> tuple[ResumePoint | None, list[str]]:
    """The newest complete checkpoint of the run in `output_dir` that this job began, and what to say; None where the
    job had not come so far."""
    for run_dir in runs_in(output_dir.resolve()):
        sittings = manifest.read(run_dir).get("sittings") or [{}]
        if sittings[-1].get("job") == job_id():
            checkpoint, passed_over = newest_complete(run_dir)
            if checkpoint is not None:
                return ResumePoint(checkpoint, run_dir, step_of(checkpoint) or 0), passed_over
            return None, [*passed_over, f"{run_dir} had no checkpoint yet: starting from the beginning"]
    return None, ["the attempt before this one had not begun to train: starting from the beginning"]
