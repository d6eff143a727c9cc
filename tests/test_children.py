"""Children end with us, whatever ends us, and take what they started along."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from swift.children import Child

# Starts a grandchild in its own group, prints both pids, and ignores being asked to stop.
STUBBORN = """
import signal, subprocess, sys, os, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(60)
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_output_and_exit_code(tmp_path):
    log = tmp_path / "logs" / "child.log"
    script = "import os; print(os.environ['ASKED']); raise SystemExit(3)"
    child = Child([sys.executable, "-c", script], log, {"ASKED": "yes"})
    assert child.wait(10) == 3
    assert child.output() == "yes\n"
    again = Child([sys.executable, "-c", "print('second')"], log)
    assert (again.wait(10), again.output()) == (0, "second\n")  # the log is kept, its own part told apart
    assert log.read_text() == "yes\nsecond\n"


def test_a_program_that_is_not_there(tmp_path):
    child = Child(["/nowhere/python"], tmp_path / "log")
    assert child.wait(10) == 127 and child.pid is None
    assert "No such file" in child.output()


def test_a_killed_child_is_noticed(tmp_path):
    with Child([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log") as child:
        assert child.poll() is None
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize("end", ["stop", "kill us", "kill the supervisor"])
def test_nothing_is_left_behind(tmp_path, end):
    log = tmp_path / "log"
    script = textwrap.dedent(
        f"""
        import sys, time
        from pathlib import Path
        from swift.children import Child
        child = Child([sys.executable, "-c", {STUBBORN!r}], Path({str(log)!r}), grace=0.2)
        print(child._supervisor.pid, flush=True)
        sys.stdin.readline()
        child.stop()
        """
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as us:
        supervisor = int(us.stdout.readline())
        wait_until(lambda: log.read_text().count(" ") == 1)
        pids = [int(word) for word in log.read_text().split()]
        assert all(map(alive, pids))
        if end == "stop":
            us.stdin.write(b"\n")
            us.stdin.flush()
        else:
            os.kill(us.pid if end == "kill us" else supervisor, signal.SIGKILL)
        watched = pids[:1] if end == "kill the supervisor" else pids
        wait_until(lambda: not any(map(alive, [*watched, supervisor])), 20)
        us.kill()
        if end == "kill the supervisor":
            os.kill(pids[1], signal.SIGKILL)
