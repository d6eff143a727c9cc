"""Jobs are told by their files alone: they outlive who started them, and stop with all that they have started."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swift.errors import UsageError
from swift.web import supervise
from swift.web.jobs import Jobs

ROOT = str(Path(__file__).resolve().parents[2])
# Starts a grandchild in a session of its own, says its pid, and ends when asked (or not).
PARENT = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
if sys.argv[1:] == ["stubborn"]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(child.pid, flush=True)
time.sleep(60)
"""


def wait_for(condition, seconds=15.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.03)
    return found


def begin(folder: Path, *argv: str) -> subprocess.Popen:
    folder.mkdir(parents=True, exist_ok=True)
    record = {"argv": ["sft"], "cwd": str(folder), "created": time.time()}
    (folder / "job.json").write_text(json.dumps(record))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", supervise.__file__, str(folder), *argv], start_new_session=True
    )


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ROOT)
    return Jobs(tmp_path / "jobs")


def test_a_job_is_a_swift_command_with_output_and_exit_code(jobs, tmp_path):
    job = jobs.start(["sft", "--modle", "x"], tmp_path)
    assert job.alive and job.id in [j.id for j in jobs.list()]
    ended = wait_for(lambda: jobs.get(job.id) if not jobs.get(job.id).alive else None)
    assert (ended.state, ended.code) == ("failed", 2)
    assert "did you mean --model" in ended.log.read_text()
    assert jobs.directory.stat().st_mode & 0o777 == ended.path.stat().st_mode & 0o777 == 0o700
    fine = jobs.start(["--version"], tmp_path)
    assert wait_for(lambda: jobs.get(fine.id).state == "finished")


@pytest.mark.skipif(sys.platform != "linux", reason="sub-reapers are Linux's")
@pytest.mark.parametrize("how", ["stop", "stubborn", "kill"])
def test_stopping_takes_all_that_it_started_and_never_reads_finished(jobs, how):
    folder = jobs.directory / "20260101-000000-sft-0"
    script = [sys.executable, "-c", PARENT, *(["stubborn"] if how == "stubborn" else [])]
    supervisor = begin(folder, *script)
    grandchild = int(wait_for(lambda: (folder / "output.log").exists() and (folder / "output.log").read_text().strip()))
    job = jobs.get(folder.name)
    assert job.state == "running" and grandchild in supervise.descendants(job.pid)
    if how == "kill":
        jobs.kill(job.id)
    else:
        jobs.stop(job.id, seconds=0.5 if how == "stubborn" else 30)
    supervisor.wait(15)
    ended = jobs.get(job.id)
    assert ended.state == "stopped" and ended.code == (-signal.SIGTERM if how == "stop" else -signal.SIGKILL)
    assert supervise.birth(grandchild) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="parent-death signals are Linux's")
def test_a_killed_supervisor_takes_the_command_along_and_is_seen(jobs):
    folder = jobs.directory / "20260101-000000-sft-0"
    supervisor = begin(folder, sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    pid = int(wait_for(lambda: (folder / "output.log").exists() and (folder / "output.log").read_text().strip()))
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: supervise.birth(pid) == "")
    assert jobs.get(folder.name).state == "lost"


def test_a_later_process_with_the_number_of_a_job_is_not_the_job(jobs):
    folder = jobs.directory / "20260101-000000-sft-0"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"argv": ["sft"], "cwd": ".", "created": 1.0}))
    (folder / "state.json").write_text(json.dumps({"pid": os.getpid(), "born": "12345"}))
    assert jobs.get(folder.name).state == "lost"


@pytest.mark.parametrize("name", ["../x", "..", "", "/etc", "20260101-000000-sft-0/../..", "a\0b"])
def test_names_that_are_paths_are_no_jobs(jobs, name):
    with pytest.raises(UsageError):
        jobs.get(name)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"argv": 3}', '{"argv": [], "created": 1}', "[" * 100000, "\x00\xff"]
)
def test_broken_records_are_left_out(jobs, content):
    folder = jobs.directory / "20260101-000000-sft-0"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(content)
    assert jobs.list() == []


def test_command_lines_are_shown_without_secrets(jobs):
    folder = jobs.directory / "20260101-000000-deploy-0"
    folder.mkdir(parents=True)
    argv = ["deploy", "--api_key", "s3cret", "--hub_token=t0ken", "--model", "m"]
    (folder / "job.json").write_text(json.dumps({"argv": argv, "cwd": ".", "created": 1.0}))
    line = jobs.get(folder.name).line
    assert "s3cret" not in line and "t0ken" not in line and "--model m" in line
