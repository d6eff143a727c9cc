"""Runs one job and outlives whoever asked for it: a script, started in a session of its own, spoken to through files.

In the job's directory: `state.json` (our pid and its start, written first), `output.log`, `exit.json` (written last).
`stop` asks the command to end and kills what is left after the seconds that it holds; `kill` kills at once. All that
the command has started is gone when `exit.json` is there: on Linux also what left its process group.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE, EXIT, STOP, KILL, OUTPUT = "state.json", "exit.json", "stop", "kill", "output.log"
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
LOOK_SECONDS = 0.2


def main(folder: Path, argv: list[str]) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    _write(folder / STATE, {"pid": os.getpid(), "born": birth(os.getpid()), "started": time.time()})
    with open(folder / OUTPUT, "ab") as output:
        try:
            child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_in_child,
            )
        except OSError as error:
            output.write(f"can't start {argv[0]}: {error.strerror}\n".encode())
            code = 127
        else:
            code = _watch(folder, child)
    _write(folder / EXIT, {"code": code, "ended": time.time()})
    return 0


def _watch(folder: Path, child: subprocess.Popen[bytes]) -> int:
    """Wait for the command's end, ask or kill as the files say; its exit code, negative: the signal."""
    deadline = None
    while child.poll() is None:
        if (folder / KILL).exists() or (deadline is not None and time.monotonic() > deadline):
            break
        if deadline is None and (folder / STOP).exists() and not (folder / KILL).exists():
            deadline = time.monotonic() + _seconds(folder / STOP)
            _signal_group(child.pid, signal.SIGTERM)
        time.sleep(LOOK_SECONDS)
    _signal_group(child.pid, signal.SIGKILL)  # what it left behind in its group; the group's id is its still
    code = child.wait()
    for pid in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return code


def _seconds(file: Path) -> float:
    try:
        return float(file.read_text())
    except (OSError, ValueError):
        return 0.0


def _in_child() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _write(path: Path, value: object) -> None:
    aside = path.with_name(f".{path.name}")
    aside.write_text(json.dumps(value))
    os.replace(aside, path)


def birth(pid: int) -> str:
    """What tells a process from a later one with its number: its start in ticks; "" when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "" if Path("/proc/self").exists() else _birth_without_proc(pid)
    return "" if fields[0] == "Z" else fields[19]


def _birth_without_proc(pid: int) -> str:
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True)
    return done.stdout.strip()


def descendants(pid: int) -> list[int]:
    """All processes below `pid`, from /proc; none where there is no /proc."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents.setdefault(int(entry.read_text().rpartition(")")[2].split()[1]), []).append(int(entry.parent.name))
    found, queue = [], [pid]
    while queue:
        below = parents.get(queue.pop(), [])
        found += below
        queue += below
    return found


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
