"""Generated code can't reach the network, write outside its directory, or outlive its limits."""

import os
import socket
import sys
import tempfile

import pytest

from swift.evaluate import cell
from swift.evaluate.sandbox import run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="isolation is built on Linux")


def test_a_program_passes_only_when_it_runs_to_its_end():
    assert run_python("from typing import List\nimport math\nassert math.sqrt(4) == 2").passed
    assert run_python("assert 1 == 2, 'unequal'").reason == "AssertionError: unequal"
    for leaving in ("import sys; sys.exit(0)", "import os; os._exit(0)"):
        assert not run_python(leaving).passed


def test_no_network():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        outcome = run_python(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), timeout=2)")
        assert not outcome.passed and ("unreachable" in outcome.reason or "Permission" in outcome.reason)


def test_writing_only_in_its_own_directory(tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("x")
    assert run_python("open('own', 'w').write('y'); assert open('own').read() == 'y'").passed
    if cell.libc().syscall(cell.LANDLOCK_CREATE, None, 0, 1) < 1:
        pytest.skip("this kernel has no Landlock")
    assert not run_python(f"import os; os.remove({str(kept)!r})").passed
    assert not run_python(f"open({str(tmp_path / 'new')!r}, 'w')").passed
    assert kept.read_text() == "x" and not (tmp_path / "new").exists()


def test_time_memory_and_processes_are_bounded(tmp_path, monkeypatch):
    # Programs of tests that run at the same time have other directories: only this test's count.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run_python("while True: pass", wall_seconds=0.5).reason == "timed out"
    assert not run_python("x = bytearray(1 << 34)").passed
    assert not run_python("import os, time\nos.fork()\ntime.sleep(60)", wall_seconds=0.5).passed
    alive = [p for p in os.listdir("/proc") if p.isdigit() and _directory(p).startswith(f"{tmp_path}/swift-eval-")]
    assert not alive


def _directory(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return ""


def test_sockets_are_forbidden_where_there_are_no_namespaces():
    child = os.fork()
    if not child:
        try:
            cell.forbid_sockets()
            socket.socket()
        except PermissionError:
            os._exit(42)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42
