"""Child processes that never outlive us: their output goes to a file, and whole process groups are stopped.

Promises: when this process ends, however it ends (kill -9 too), the child and all that it started in its process group
are stopped: asked first, killed after a grace. Works through a small supervisor, this file run as a script, which
holds one end of a pipe whose other end only we have. Knows nothing of what the child does. POSIX only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

GRACE_SECONDS = 10.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h
TAIL_BYTES = 65536


class Child:
    """A running command. `pid` is the command's own, not the supervisor's; None until it has started."""

    def __init__(
        self, argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None, *, grace: float = GRACE_SECONDS
    ):
        """Start `argv` with `env` added to our environment; stdout and stderr are appended to `log`.

        `grace`: seconds between the request to stop and the kill.
        """
        self.argv, self.log = tuple(argv), log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._offset = log.stat().st_size if log.exists() else 0
        ours, theirs = os.pipe()
        told, tell = os.pipe()
        with open(log, "ab") as output:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(ours), str(tell), str(grace), *argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **(env or {})},
                pass_fds=(ours, tell),
                start_new_session=True,
            )
        os.close(ours)
        os.close(tell)
        self._lifeline: int | None = theirs
        with os.fdopen(told) as answer:
            word = answer.readline().strip()
        self.pid = int(word) if word else None

    def poll(self) -> int | None:
        """The command's exit code (negative: the signal that ended it), None while it runs."""
        code = self._supervisor.poll()
        return None if code is None else (128 - code if code > 128 else code)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code; subprocess.TimeoutExpired after `timeout` seconds."""
        self._supervisor.wait(timeout)
        code = self.poll()
        assert code is not None
        return code

    def stop(self) -> int:
        """Stop the whole group and return when it is gone."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
        return self.wait()

    def output(self) -> str:
        """The end of what it has written since it was started."""
        with open(self.log, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._offset, end - TAIL_BYTES))
            return file.read().decode(errors="replace")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()


def supervise(lifeline: int, tell: int, grace: float, argv: Sequence[str]) -> int:
    """Run `argv` until it ends or the other end of `lifeline` is closed; a signal's number + 128 when one ended it."""
    import select

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        child = subprocess.Popen(argv, start_new_session=True, preexec_fn=_die_with_supervisor)
    except OSError as error:
        print(f"can't start {argv[0]}: {error.strerror}", flush=True)
        return 127
    os.write(tell, f"{child.pid}\n".encode())
    os.close(tell)
    while child.poll() is None:
        if select.select([lifeline], [], [], 0.2)[0]:
            _end_group(child, grace)
            break
    code = child.wait()
    _signal_group(child.pid, signal.SIGKILL)  # what it started and left behind
    return 128 - code if code < 0 else code


def _die_with_supervisor() -> None:
    """In the child: default signals, and SIGKILL when the supervisor is killed."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_group(child: subprocess.Popen[bytes], grace: float) -> None:
    _signal_group(child.pid, signal.SIGTERM)
    end = time.monotonic() + grace
    while child.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    _signal_group(child.pid, signal.SIGKILL)


def _signal_group(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of it may have ended
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(supervise(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]))
