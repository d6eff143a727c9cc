"""Stopping and going on: the end is bit for bit that of a run that was never stopped."""

from __future__ import annotations

import copy
import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from swift import runs
from swift.errors import CheckpointError, ResourceError
from swift.train import checkpoints
from tests import tiny
from tests.train import support


class Killed(BaseException):
    """Not an Exception, so nothing on the way may handle it: as near to SIGKILL as one process gets."""


class KillAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


LORA = dict(lora_dropout=0.1, save_steps=3, num_train_epochs=2.0, logging_steps=2, neftune_noise_alpha=5.0)
CASES = {
    "lora, dropout, neftune, validation": dict(LORA, val_dataset=("x",), eval_steps=3),
    "evaluation by epoch, saving by step": dict(LORA, val_dataset=("x",), eval_strategy="epoch", save_steps=5),
    "grouped by length": dict(LORA, group_by_length=True),
    "lora+": dict(LORA, lorap_lr_ratio=16.0),
    "whole model": dict(tuner_type="full", save_steps=3, num_train_epochs=2.0, logging_steps=2),
    "workers": dict(LORA, dataloader_num_workers=1),
}


def scramble():
    """A new process has other random numbers than the one that was killed."""
    seed = random.SystemRandom().randrange(2**31)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def make(tmp_path, name, cfg, base, rows, callbacks=()):
    dropout = cfg.tuner.lora_dropout
    model = (
        copy.deepcopy(base) if cfg.tuner.tuner_type == "full" else support.lora(copy.deepcopy(base), dropout=dropout)
    )
    scramble()
    val = support.encoded_rows(5, seed=8) if cfg.evaluation.eval_strategy != "no" else None
    lengths = [len(row["input_ids"]) for row in rows]
    return support.trainer(tmp_path / name, model, rows, val, cfg, callbacks, lengths=lengths)


def resumed(tmp_path, name, cfg, base, rows, callbacks=()):
    checkpoint, _ = checkpoints.newest_complete(tmp_path / name)
    if cfg.tuner.tuner_type == "full":
        base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    trainer = make(tmp_path, name, cfg, base, rows, callbacks)
    runs.RunLog(tmp_path / name / runs.LOG).truncate_after(checkpoints.step_of(checkpoint))
    return trainer, checkpoint


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_like_an_undisturbed_one(tmp_path, case):
    cfg = support.config(**CASES[case])
    rows, base = support.encoded_rows(20), tiny.model("llama")
    whole = make(tmp_path, "whole", cfg, base, rows)
    whole.train()
    last = checkpoints.name_of(whole.state.max_steps)
    with pytest.raises(Killed):
        make(tmp_path, "killed", cfg, base, rows, [KillAt(int(cfg.saving.save_steps) + 1)]).train()
    with pytest.raises(Killed):  # killed again after the first resumption
        trainer, checkpoint = resumed(tmp_path, "killed", cfg, base, rows, [KillAt(9)])
        trainer.train(resume_from_checkpoint=str(checkpoint))
    trainer, checkpoint = resumed(tmp_path, "killed", cfg, base, rows)
    trainer.train(resume_from_checkpoint=str(checkpoint))

    assert support.same_weights(tmp_path / "whole" / last, tmp_path / "killed" / last)
    assert not support.same_weights(
        tmp_path / "whole" / last, tmp_path / "whole" / checkpoints.name_of(cfg.saving.save_steps)
    )
    timeless = (*support.SPEED, *support.CLOCK, "eval_seconds")
    logs = [
        [{k: v for k, v in record.items() if k not in timeless} for record in support.records(tmp_path / name)]
        for name in ("whole", "killed")
    ]
    assert logs[0] == logs[1]
    states = [json.loads((tmp_path / name / last / "trainer_state.json").read_text()) for name in ("whole", "killed")]
    assert [s["best_metric"] for s in states][0] == [s["best_metric"] for s in states][1]


def test_moe_weights_come_back_though_they_are_stored_in_another_shape(tmp_path):
    cfg = support.config(tuner_type="full", save_steps=2, max_steps=4)
    rows, base = support.encoded_rows(16), tiny.model("qwen3_moe")
    make(tmp_path, "whole", cfg, base, rows).train()
    with pytest.raises(Killed):
        make(tmp_path, "killed", cfg, base, rows, [KillAt(3)]).train()
    trainer, checkpoint = resumed(tmp_path, "killed", cfg, base, rows)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert support.same_weights(tmp_path / "whole/checkpoint-4", tmp_path / "killed/checkpoint-4")


def test_early_stopping_counts_on_after_a_resumption(tmp_path):
    """No evaluation is better than the first: the run stops after `patience` more, killed or not."""
    cfg = support.config(
        val_dataset=("x",),
        eval_steps=1,
        save_steps=1,
        learning_rate=0.0,
        early_stop_interval=3,
        num_train_epochs=4.0,
        save_total_limit=2,
    )
    rows, base = support.encoded_rows(12), tiny.model("llama")
    whole = make(tmp_path, "whole", cfg, base, rows)
    whole.train()
    assert whole.state.global_step == 4
    with pytest.raises(Killed):
        make(tmp_path, "killed", cfg, base, rows, [KillAt(2)]).train()
    trainer, checkpoint = resumed(tmp_path, "killed", cfg, base, rows)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    assert trainer.state.global_step == 4
    kept = [p.name for p in checkpoints.list_checkpoints(tmp_path / "killed")]
    assert kept == ["checkpoint-1", "checkpoint-4"], "the best (the first) and the last are kept"


def test_weights_alone_continue_at_the_same_step_with_a_fresh_optimizer(tmp_path):
    cfg = support.config(save_steps=3, save_only_model=True, num_train_epochs=1.0, logging_steps=1)
    rows, base = support.encoded_rows(24), tiny.model("llama")
    with pytest.raises(Killed):
        make(tmp_path, "run", cfg, base, rows, [KillAt(4)]).train()
    checkpoint, _ = checkpoints.newest_complete(tmp_path / "run")
    with pytest.raises(CheckpointError, match="optimizer.pt"):
        checkpoints.require_state(checkpoint)
    trainer, checkpoint = resumed(tmp_path, "run", support.replaced(cfg, resume_only_model=True), base, rows)
    trainer.train(resume_from_checkpoint=str(checkpoint))
    steps = [(r["step"], r["learning_rate"]) for r in support.records(tmp_path / "run") if "loss" in r]
    assert [step for step, _ in steps] == [1, 2, 3, 4, 5, 6]
    assert len({rate for _, rate in steps}) == 6, "the schedule went on where it was"


def test_a_truncated_checkpoint_is_passed_over_with_its_reason(tmp_path):
    cfg = support.config(save_steps=2, num_train_epochs=1.0)
    rows, base = support.encoded_rows(24), tiny.model("llama")
    make(tmp_path, "run", cfg, base, rows).train()
    newest = tmp_path / "run/checkpoint-6"
    assert checkpoints.newest_complete(tmp_path / "run") == (newest, [])
    optimizer = newest / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-100])
    used, notes = checkpoints.newest_complete(tmp_path / "run")
    assert used.name == "checkpoint-4"
    assert len(notes) == 1 and "checkpoint-6" in notes[0] and "optimizer.pt" in notes[0]
    (tmp_path / "run/checkpoint-4/manifest.json").unlink()
    content = bytearray((tmp_path / "run/checkpoint-2/adapter_model.safetensors").read_bytes())
    content[-1] ^= 1  # same size, other content
    (tmp_path / "run/checkpoint-2/adapter_model.safetensors").write_bytes(content)
    used, notes = checkpoints.newest_complete(tmp_path / "run")
    assert used is None and len(notes) == 3


def test_a_failing_write_leaves_the_earlier_checkpoints_and_nothing_half_written(tmp_path):
    rows, base = support.encoded_rows(24), tiny.model("llama")
    cfg = support.config(save_steps=2, num_train_epochs=1.0)
    trainer = make(tmp_path, "run", cfg, base, rows)
    save = trainer.saving.save_model_files

    def full_disk_at_step_4(directory, state=None):
        if directory.name.endswith("-4"):
            raise OSError(28, "No space left on device")
        save(directory, state)

    trainer.saving = dataclasses.replace(trainer.saving, save_model_files=full_disk_at_step_4)
    with pytest.raises(ResourceError, match="No space left"):
        trainer.train()
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["checkpoint-2", "logging.jsonl"]
    assert runs.verify_dir(tmp_path / "run/checkpoint-2") == []
