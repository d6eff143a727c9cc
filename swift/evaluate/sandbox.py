"""Generated Python in a process of its own: no network, writes only in a directory that is thrown away, bounded CPU
time, memory, file size and wall time, and every process it starts ends with it.

Linux only: network, processes and mounts are cut off by namespaces (or, where those are forbidden, sockets by a
seccomp filter), writing by Landlock. Where the network can't be cut off nothing is run: that is an error. It holds
against accidents of a model's code, not against an attack on the kernel.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from swift.errors import ResourceError

CPU_SECONDS = 10
WALL_SECONDS = 20.0
MEMORY_BYTES = 2 << 30
FILE_BYTES = 16 << 20
NO_ISOLATION = 77
LAST_WORD_SECONDS = 2.0
CELL = Path(__file__).with_name("cell.py")


@dataclass(frozen=True)
class Outcome:
    """`passed`: the program ran to its end. `reason`: "passed", "timed out", or the last line of its error."""

    passed: bool
    reason: str


def run_python(program: str, wall_seconds: float = WALL_SECONDS) -> Outcome:
    """Run a program to its end; ResourceError where it can't be isolated here."""
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="swift-eval-", ignore_cleanup_errors=True) as folder:
        limits = [str(CPU_SECONDS), str(MEMORY_BYTES), str(FILE_BYTES)]
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(CELL), token, *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        try:
            out, err = process.communicate(program.encode("utf-8", "replace"), timeout=wall_seconds)
        except subprocess.TimeoutExpired:
            _end(process)
            return Outcome(False, "timed out")
        finally:
            _end(process)
    if process.returncode == NO_ISOLATION:
        raise ResourceError(
            f"generated code can't be cut off from the network here: {err.decode('utf-8', 'replace').strip()}",
            where="--allow_code_execution",
            fix="run on Linux, in a container that allows user namespaces or seccomp",
        )
    if process.returncode == 0 and out.decode("utf-8", "replace").rstrip().endswith(token):
        return Outcome(True, "passed")
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL, 128 + signal.SIGXCPU, 128 + signal.SIGKILL):
        return Outcome(False, "timed out")
    lines = err.decode("utf-8", "replace").strip().splitlines()
    return Outcome(False, lines[-1][:300] if lines else f"ended early with exit code {process.returncode}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End all its processes. The first one kills its namespace and ends when that is empty; where there is none, or it
    doesn't, the whole group is killed."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LAST_WORD_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
