"""Two processes (gloo): the losses of one process with twice the batch, one log, and a stop that reaches both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from swift.train import checkpoints
from tests import tiny
from tests.train import support

ROOT = Path(__file__).resolve().parents[2]


def torchrun(directory: Path, stop: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "tests.train.two_processes", str(directory), str(stop)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_two_processes_compute_what_one_does_with_twice_the_batch(tmp_path):
    torchrun(tmp_path / "two", -1)
    cfg = support.config(
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        num_train_epochs=2.0,
        logging_steps=1,
        save_steps=3,
        val_dataset=("x",),
        eval_steps=3,
    )
    one = support.trainer(
        tmp_path / "one",
        support.lora(tiny.model("llama")),
        support.encoded_rows(24),
        support.encoded_rows(5, seed=3),
        cfg,
    )
    one.train()
    for key in ("loss", "eval_loss", "token_acc", "eval_token_acc", "grad_norm"):
        logs = [[(r["step"], r[key]) for r in support.records(tmp_path / name) if key in r] for name in ("one", "two")]
        assert len(logs[0]) == len(logs[1])
        for (step, mine), (other_step, theirs) in zip(*logs, strict=True):
            assert step == other_step and theirs == pytest.approx(mine, abs=1e-4), key


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_exactly(tmp_path):
    torchrun(tmp_path / "whole", 99)
    torchrun(tmp_path / "stopped", 1)
    assert [p.name for p in checkpoints.list_checkpoints(tmp_path / "stopped")] == ["checkpoint-2"]
    torchrun(tmp_path / "stopped", 99)
    assert support.same_weights(tmp_path / "whole/checkpoint-6", tmp_path / "stopped/checkpoint-6")
