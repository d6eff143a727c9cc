"""Run directories and the files in them: versioned names, atomic writes, manifests, the metrics log.

Promises: a file written here is either whole or not there; a directory with a manifest that verifies is complete.
Knows nothing of models or training.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swift.errors import ResourceError

MANIFEST = "manifest.json"
ARGS = "args.json"
LOG = "logging.jsonl"
STAGING_PREFIX = ".writing-"
JOB_VARIABLE = "SWIFT_JOB_DIR"  # set by whoever starts a command and wants to know what comes of it
JOB_TOLD = "told.json"


def fsync_dir(path: Path) -> None:
    """Make a rename or a new name in `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a text file so that readers, and a crash, see the old content or the new one, never a part."""
    aside = path.with_name(f"{STAGING_PREFIX}{path.name}.{os.getpid()}")
    try:
        with open(aside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise disk_error(error, path) from error
    fsync_dir(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def disk_error(error: OSError, path: Path) -> ResourceError:
    """The user's view of a failed write."""
    reason = error.strerror or str(error)
    if error.errno in (17, 20):
        reason = "a file is in the way of the directory"
    fixes = {
        17: "choose another --output_dir",
        20: "choose another --output_dir",
        2: "choose an --output_dir that can be made",
        28: f"free some space on {path.parent} or choose another --output_dir",
        13: "choose an --output_dir that you may write to",
        30: "the file system is read-only: choose another --output_dir",
    }
    return ResourceError(f"can't write: {reason}", where=str(path), fix=fixes.get(error.errno or 0))


def ensure_writable_dir(path: Path) -> Path:
    """Create `path` if need be and prove that files can be written there; ResourceError otherwise."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f"{STAGING_PREFIX}probe.{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise disk_error(error, path) from error
    return path


def file_digest(path: Path) -> str:
    """sha256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _content_files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*") if p.is_file() and p.name != MANIFEST)


def write_manifest(directory: Path, **facts: Any) -> None:
    """Fsync every file of `directory` and list them with size and sha256 in manifest.json, written last.

    `facts` go into the manifest beside the file list (step, kind ...).
    """
    files = {}
    for path in _content_files(directory):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(directory).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
    write_json(directory / MANIFEST, {**facts, "files": files})


def verify_dir(directory: Path, hashes: bool = True) -> list[str]:
    """What is wrong with a directory that has (or should have) a manifest: one line per finding, [] when complete."""
    manifest = directory / MANIFEST
    if not manifest.is_file():
        return [f"{MANIFEST} is missing (the write was interrupted)"]
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    except (ValueError, KeyError) as error:
        return [f"{MANIFEST} can't be read: {error}"]
    problems = []
    for name, facts in files.items():
        path = directory / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif path.stat().st_size != facts["bytes"]:
            problems.append(f"{name} has {path.stat().st_size} bytes, expected {facts['bytes']}")
        elif hashes and file_digest(path) != facts["sha256"]:
            problems.append(f"{name} has changed since it was written (sha256 differs)")
    return problems


def commit_dir(staging: Path, final: Path, **facts: Any) -> None:
    """Turn a finished staging directory into `final`: manifest, fsync, rename. The rename is the commit.

    An existing `final` (an incomplete one from a killed run, say) is replaced.
    """
    write_manifest(staging, **facts)
    for folder in [staging, *(p for p in staging.rglob("*") if p.is_dir())]:
        fsync_dir(folder)
    if final.exists():
        shutil.rmtree(final)
    os.replace(staging, final)
    fsync_dir(final.parent)


@contextmanager
def one_at_a_time(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock `path.lock` while others wait; a kill lets go of it. `waiting()` is called before a wait.

    On a file system without locks nobody waits: what is done inside must be right without them too.
    """
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield


def create_run_dir(output_dir: Path, add_version: bool = True, now: float | None = None) -> Path:
    """`output_dir/vN-YYYYMMDD-HHMMSS`, N one above the highest there (from 0); `output_dir` itself without version."""
    ensure_writable_dir(output_dir)
    if not add_version:
        return output_dir
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    taken = [int(m[1]) for p in output_dir.iterdir() if (m := re.match(r"v(\d+)-", p.name))]
    number = max(taken, default=-1) + 1
    while True:
        run_dir = output_dir / f"v{number}-{stamp}"
        try:
            run_dir.mkdir()
            return run_dir
        except FileExistsError:
            number += 1


def announce(**made: Path | str) -> None:
    """Tell whoever started this command as a job what it makes: `run`, `model`, `report` (paths), `address`.

    It stands in the job's directory as JSON, so that nobody has to read it out of a log, whose words have a language.
    """
    job = Path(os.environ.get(JOB_VARIABLE, ""))
    if not job.is_absolute() or not job.is_dir():
        return
    told = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in made.items()}
    write_json(job / JOB_TOLD, {**announced(job), **told})


def announced(job: Path) -> dict[str, str]:
    """What the command of a job's directory has told; {} where it has told nothing."""
    try:
        told = json.loads((job / JOB_TOLD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: value for name, value in told.items() if isinstance(value, str)} if isinstance(told, dict) else {}


def read_args(path: Path) -> dict[str, Any] | None:
    """The resolved config saved with a run: args.json in `path` (a checkpoint or a run) or in its parent, else None."""
    for folder in (path, path.parent):
        file = folder / ARGS
        if file.is_file():
            return json.loads(file.read_text(encoding="utf-8"))
    return None


class RunLog:
    """Append-only `logging.jsonl`: one JSON object a line, numbers as numbers, flushed line by line."""

    def __init__(self, path: Path):
        self.path = path

    def write(self, record: Mapping[str, Any]) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop the records beyond `step`: a resumed run writes them again."""
        kept = [r for r in read_log(self.path) if r.get("step", 0) <= step]
        write_text(self.path, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics log; a last line that a kill cut short is left out."""
    if not path.is_file():
        return []
    lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    records = []
    for line in lines:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
