"""Several processes (gloo): the losses of one process with the same rows a step, one log, a stop that reaches all."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from swift.train import checkpoints
from tests import tiny
from tests.train import support

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 900  # seconds for one run: a machine may be busy with others


def torchrun(directory: Path, stop: int, processes: int = 2) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += ["-m", "tests.train.two_processes", str(directory), str(stop)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_compute_what_one_does_with_the_same_rows_a_step(tmp_path, processes):
    """21 rows: the last batches are uneven, one process has none of them."""
    torchrun(tmp_path / "several", -1, processes)
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
        support.encoded_rows(21),
        support.encoded_rows(5, seed=3),
        cfg,
    )
    one.train()
    for key in ("loss", "eval_loss", "token_acc", "eval_token_acc", "grad_norm"):
        logs = [
            [(r["step"], r[key]) for r in support.records(tmp_path / name) if key in r] for name in ("one", "several")
        ]
        assert len(logs[0]) == len(logs[1]) > 1
        for (step, mine), (other_step, theirs) in zip(*logs, strict=True):
            assert step == other_step and theirs == pytest.approx(mine, abs=1e-4), key
    seen = [json.loads((tmp_path / name / "checkpoint-6/progress.json").read_text()) for name in ("one", "several")]
    assert seen[0]["tokens_seen"] == seen[1]["tokens_seen"]


@pytest.mark.slow
def test_two_processes_stop_together_and_go_on_exactly(tmp_path):
    torchrun(tmp_path / "whole", 99)
    torchrun(tmp_path / "stopped", 1)
    assert [p.name for p in checkpoints.list_checkpoints(tmp_path / "stopped")] == ["checkpoint-2"]
    torchrun(tmp_path / "stopped", 99)
    assert support.same_weights(tmp_path / "whole/checkpoint-6", tmp_path / "stopped/checkpoint-6")


def rows_file(path: Path, count: int = 46) -> Path:
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(count):
            ask, answer = (" ".join(rng.choices("abcdefg", k=rng.randint(2, most))) for most in (30, 20))
            messages = [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def sft(tmp_path: Path, name: str, *more: str) -> list[str]:
    """The arguments of a small fp32 run into tmp_path/name, without randomness but the rows' order."""
    if not (tmp_path / "model").exists():
        tiny.checkpoint(tmp_path / "model")
        rows_file(tmp_path / "rows.jsonl")
    argv = ["swift.cli", "sft", "--model", str(tmp_path / "model"), "--dataset", str(tmp_path / "rows.jsonl")]
    argv += ["--torch_dtype", "float32", "--lora_dropout", "0", "--logging_steps", "1", "--report_to", "none"]
    argv += ["--use_cpu", "true", "--split_dataset_ratio", "0", "--output_dir", str(tmp_path / name), *more]
    return argv


def start(launcher: list[str], argv: list[str], **env: str) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **env}
    command = [sys.executable, *launcher, "-m", *argv]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output[-4000:]
    return output


def losses(run_root: Path) -> list[tuple[int, float]]:
    (run_dir,) = run_root.iterdir()
    return [(r["step"], r["loss"]) for r in support.records(run_dir) if "loss" in r]


@pytest.mark.slow
def test_torchrun_restarts_from_the_newest_checkpoint_when_a_process_is_killed(tmp_path):
    options = ("--max_steps", "40", "--save_steps", "4", "--per_device_train_batch_size", "2")
    torchrun_two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finish(start(torchrun_two, sft(tmp_path, "undisturbed", *options)))
    (tmp_path / "killed").mkdir()
    finish(
        start([], sft(tmp_path, "killed/v9-older", *options, "--add_version", "false"))
    )  # a finished run of another job
    process = start([*torchrun_two, "--max_restarts", "1"], sft(tmp_path, "killed", *options))
    while not list((tmp_path / "killed").glob("v10-*/checkpoint-4/manifest.json")):
        assert process.poll() is None, process.stdout.read()[-4000:]
        time.sleep(0.05)
    worker = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()[-1]
    os.kill(int(worker), signal.SIGKILL)
    assert "torchrun has started this job again (restart 1)" in finish(process)
    (run_dir,) = (tmp_path / "killed").glob("v10-*")
    sittings = json.loads((run_dir / "manifest.json").read_text())["sittings"]
    assert [s["from_step"] >= 4 for s in sittings] == [False, True]
    found = [(r["step"], r["loss"]) for r in support.records(run_dir) if "loss" in r]
    assert found == losses(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(tmp_path):
    options = ["--max_steps", "6", "--save_steps", "3", "--per_device_train_batch_size", "2"]
    options += ["--gradient_accumulation_steps", "2", "--dataset", f"{tmp_path / 'rows.jsonl'}#48"]
    whole = [*options, "--output_dir", str(tmp_path / "whole")]
    finish(start([], sft(tmp_path, "whole", *whole)))
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    (run_dir,) = (tmp_path / "other").iterdir()
    shutil.rmtree(run_dir / "checkpoint-6")
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    resume = ["--resume_from_checkpoint", "auto", "--output_dir", str(tmp_path / "other")]
    output = finish(start(two, ["swift.cli", "sft", *resume]))
    assert "a step's 4 rows are now 2 rows x 1 passes x 2 processes" in output
    assert losses(tmp_path / "other") == [(step, pytest.approx(v, abs=1e-5)) for step, v in losses(tmp_path / "whole")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "said"), [(signal.SIGSTOP, "no progress for"), (signal.SIGKILL, "another process is gone")]
)
def test_a_stuck_or_dead_process_ends_the_job_and_says_where_it_stood(tmp_path, sent, said):
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = start(two, sft(tmp_path, "run", "--max_steps", "4000", "--save_steps", "4", "--ddp_timeout", "6"))
    while not list((tmp_path / "run").glob("v0-*/checkpoint-4/manifest.json")):
        assert process.poll() is None, process.stdout.read()[-4000:]
        time.sleep(0.05)
    worker = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()[-1]
    os.kill(int(worker), sent)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert said in output and "rows.jsonl:" in output and "train_in_memory" in output
