"""A few architectures of every kind through all steps; the runner holds its promises; the status file is sound."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swift.catalog import status
from tests.matrix import runner, steps
from tests.matrix.runner import architectures

ROOT = Path(__file__).resolve().parents[2]


def run_matrix(results: Path, kinds: str) -> dict[str, dict[str, str]]:
    """`python -m tests.matrix --only KINDS`: the failed steps of each."""
    command = [sys.executable, "-m", "tests.matrix", "--only", kinds, "--jobs", "1", "--results", str(results)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "SWIFT_LANG": "en"}
    subprocess.run(
        [*command, "--status", str(results / "status.toml")], cwd=ROOT, env=environment, check=True, timeout=900
    )
    return {kind: runner.read(results, kind)["failed"] for kind in kinds.split(",")}


@pytest.mark.parametrize(
    "kinds",
    [
        "deepseek_v3,mamba,qwen3_next,llava",  # latent attention with experts, recurrent, hybrid, sees
        pytest.param("qwen2_audio,mllama,paligemma,qwen3_vl,llama4,glm4v,lfm2_vl,gemma4", marks=pytest.mark.slow),
        pytest.param("llama,gemma2,qwen3_moe,gpt_oss,lfm2,bloom,falcon_h1,phi3", marks=pytest.mark.slow),
    ],
)
def test_architectures_of_every_kind_are_verified(tmp_path, kinds):
    assert run_matrix(tmp_path, kinds) == {kind: {} for kind in kinds.split(",")}


def test_a_child_that_hangs_or_dies_takes_nothing_with_it(tmp_path, monkeypatch):
    def hang(case):
        time.sleep(60)

    def spin(case):
        while True:
            pass

    def die(case):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setitem(steps.STEP_ORDER, "build", (lambda case: None, ()))
    monkeypatch.setattr(runner, "_load_libraries", lambda: None)
    monkeypatch.setitem(steps.STEP_ORDER, "lora", (hang, ("build",)))
    monkeypatch.setattr(runner, "PATIENCE", 1)
    (outcome,) = runner.run_all(["llama"], tmp_path, 2, 1.0)
    assert outcome["failed"] == {"lora": "not done in 1 seconds"}
    monkeypatch.setitem(steps.STEP_ORDER, "lora", (spin, ("build",)))
    monkeypatch.setattr(runner, "PATIENCE", 60)
    (outcome,) = runner.run_all(["llama"], tmp_path, 2, 1.0)
    assert outcome["failed"] == {"lora": "not done in 1 seconds of a processor"}
    monkeypatch.setitem(steps.STEP_ORDER, "lora", (die, ("build",)))
    (outcome,) = runner.run_all(["llama"], tmp_path, 2, 30.0)
    assert outcome["failed"] == {"lora": "the process died of SIGKILL"}
    assert runner.read(tmp_path, "llama") == outcome


def test_a_step_that_breaks_its_promise_is_named_with_the_reason(tmp_path):
    (tmp_path / "logging.jsonl").write_text(json.dumps({"loss": 2.0}) + "\n" + json.dumps({"loss": 2.1}) + "\n")
    with pytest.raises(steps.Failed, match="doesn't fall: 2.0000 .* 2.1000"):
        steps._check_falls(tmp_path, 2)


def test_the_status_file_is_of_this_transformers_and_survives_reading_and_writing():
    import transformers

    assert status.tested_with() == transformers.__version__
    known = {one.model_type: one for one in status.statuses()}
    assert set(known) <= set(architectures())
    outcomes = [{"type": k, "architecture": s.architecture, "failed": s.failed} for k, s in known.items()]
    assert status.status_text(outcomes, status.tested_with()) == status.FILE.read_text(encoding="utf-8")
