"""kill -9 at random instants, and at chosen file operations while a checkpoint is written: the end is bit-identical."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Each kill is a training process of its own: `make test-all` runs them.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def kill_and_resume(tmp_path, kind: str, seed: int, timed: int, writes: int) -> list[dict]:
    command = [sys.executable, "-m", "tests.train.kill_loop", str(tmp_path), kind, str(seed), str(timed), str(writes)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])["results"]


def check(results: list[dict]) -> None:
    assert all(r["same_weights"] and r["same_checkpoints"] and r["same_log"] for r in results), results
    assert sum(r["kills"] for r in results) >= len(results) // 2, "the kills must have hit"


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_few_kills(tmp_path, kind):
    check(kill_and_resume(tmp_path, kind, seed=1, timed=1, writes=3))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_twenty_kills_by_the_clock_and_forty_at_file_operations(tmp_path, kind):
    check(kill_and_resume(tmp_path, kind, seed=2, timed=20, writes=40))
