"""Jobs: `swift ...` child processes that outlive the page and its server, and the directories that tell of them.

A job is a directory of --jobs_dir: job.json (what was started, written by us) and the files of supervise.py. The
list is read from there anew each time, so a server that is started again knows what the one before it began. Broken
directories are left out. The directory is the user's alone (0700): command lines may hold keys.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.errors import UsageError
from swift.i18n import language
from swift.runs import JOB_VARIABLE, announced, disk_error, write_json
from swift.web import supervise
from swift.web.files import read_json
from swift.web.forms import SECRETS

RECORD = "job.json"
STOP_SECONDS = 60.0
NAME = re.compile(r"\d{8}-\d{6}-[a-z0-9-]+-\d+")
LOST_SECONDS = 10.0  # a job whose supervisor has not said a word after this long was never started


@dataclass(frozen=True)
class Job:
    """`state`: starting, running, stopping, stopped, finished, failed, lost (its supervisor was killed)."""

    id: str
    path: Path
    argv: tuple[str, ...]
    cwd: Path
    created: float
    state: str
    code: int | None
    ended: float | None
    pid: int | None

    @property
    def command(self) -> str:
        return self.argv[0] if self.argv else ""

    @property
    def alive(self) -> bool:
        return self.state in ("starting", "running", "stopping")

    @property
    def line(self) -> str:
        """The command line without its secrets."""
        return shlex.join(["swift", *_without_secrets(self.argv)])

    @property
    def log(self) -> Path:
        return self.path / supervise.OUTPUT

    def told(self) -> dict[str, str]:
        """What the command has told of what it makes: see `swift.runs.announce`."""
        return announced(self.path)


def _without_secrets(argv: Sequence[str]) -> list[str]:
    shown, secret = [], False
    for word in argv:
        name, equals, _ = word.removeprefix("--").partition("=")
        flag = word.startswith("--")
        shown.append("***" if secret else f"--{name}=***" if flag and equals and name in SECRETS else word)
        secret = flag and not equals and name in SECRETS
    return shown


class Jobs:
    """The jobs of one directory. `start`, `stop` and `kill` answer at once."""

    def __init__(self, directory: Path):
        self.directory = directory
        self._lock = threading.Lock()
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, argv: Sequence[str], cwd: Path | None = None) -> Job:
        """Start `swift ARGV` in a session of its own. ResourceError when its directory can't be made."""
        with self._lock:
            folder = self._make(argv[0])
        record = {"argv": list(argv), "cwd": str(cwd or Path.cwd()), "created": time.time()}
        write_json(folder / RECORD, record)
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", supervise.__file__, str(folder), sys.executable, "-m", "swift", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=record["cwd"],
            env={**os.environ, "SWIFT_LANG": language(), JOB_VARIABLE: str(folder.resolve())},
            start_new_session=True,
        )
        with self._lock:
            self._children = [c for c in self._children if c.poll() is None] + [child]
        return self.get(folder.name)

    def _make(self, command: str) -> Path:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            self.directory.chmod(0o700)
            stamp = time.strftime("%Y%m%d-%H%M%S")
            word = re.sub(r"[^a-z0-9-]", "-", command.lower())
            for number in range(1000):
                folder = self.directory / f"{stamp}-{word}-{number}"
                if not folder.exists():
                    folder.mkdir(mode=0o700)
                    return folder
        except OSError as error:
            raise disk_error(error, self.directory) from error
        raise UsageError("too many jobs in one second", where=str(self.directory))

    def stop(self, id: str, seconds: float = STOP_SECONDS) -> None:
        """Ask the command to end, as Ctrl-C would; what is left after `seconds` is killed."""
        job = self.get(id)
        if job.alive:
            (job.path / supervise.STOP).write_text(str(seconds))

    def kill(self, id: str) -> None:
        job = self.get(id)
        if job.alive:
            (job.path / supervise.KILL).touch()
            (job.path / supervise.STOP).touch()

    def get(self, id: str) -> Job:
        """UsageError for a name that is none of ours, whatever path it may spell."""
        job = self._read(self.directory / id) if NAME.fullmatch(id) else None
        if job is None:
            raise UsageError(f"there is no job {id!r}")
        return job

    def list(self) -> list[Job]:
        """All jobs, the newest first."""
        with self._lock:
            self._children = [c for c in self._children if c.poll() is None]  # no zombies
        try:
            names = sorted((p.name for p in self.directory.iterdir() if NAME.fullmatch(p.name)), reverse=True)
        except OSError:
            return []
        found = (self._read(self.directory / name) for name in names)
        return sorted((job for job in found if job is not None), key=lambda job: job.created, reverse=True)

    def _read(self, path: Path) -> Job | None:
        record = read_json(path / RECORD)
        argv, created = record.get("argv"), record.get("created")
        if not isinstance(argv, list) or not argv or not isinstance(created, int | float):
            return None
        end, begun = read_json(path / supervise.EXIT), read_json(path / supervise.STATE)
        code, ended = end.get("code"), end.get("ended")
        return Job(
            id=path.name,
            path=path,
            argv=tuple(map(str, argv)),
            cwd=Path(str(record.get("cwd") or ".")),
            created=float(created),
            state=_state(path, begun, code, float(created)),
            code=code if isinstance(code, int) else None,
            ended=ended if isinstance(ended, int | float) else None,
            pid=begun["pid"] if isinstance(begun.get("pid"), int) else None,
        )


def _state(path: Path, begun: dict[str, Any], code: Any, created: float) -> str:
    asked = (path / supervise.STOP).exists()
    if isinstance(code, int):
        return "stopped" if asked else "finished" if code == 0 else "failed"
    if not begun:
        return "starting" if time.time() - created < LOST_SECONDS else "lost"
    pid, born = begun.get("pid"), begun.get("born")
    if not isinstance(pid, int) or supervise.birth(pid) != born:
        return "lost"
    return "stopping" if asked else "running"


def memory_of(job: Job) -> int:
    """Bytes of main memory that the job's processes hold; 0 where that can't be known."""
    if job.pid is None or not job.alive:
        return 0
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
    for pid in supervise.descendants(job.pid):
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * page
        except (OSError, ValueError, IndexError):
            continue
    return total
