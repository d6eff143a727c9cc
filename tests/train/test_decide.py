"""Defaults that follow from other values, with reasons; combinations that mean nothing are refused."""

from __future__ import annotations

import pytest

from swift.config.commands import SftConfig
from swift.config.decide import decide_sft
from swift.errors import UsageError


def decided(world_size: int = 1, context: int | None = 8192, **typed):
    return decide_sft(SftConfig().replace(typed, "command line"), "Qwen3-4B", context, world_size)


def test_what_nobody_typed():
    cfg = decided()
    assert cfg.saving.output_dir == "./output/Qwen3-4B"
    assert cfg.training.learning_rate == 1e-4
    assert decided(tuner_type="full").training.learning_rate == 1e-5
    assert cfg.training.warmup_ratio == 0.05
    assert cfg.chat.max_length == 2048 and decided(context=512).chat.max_length == 512
    assert (cfg.evaluation.eval_strategy, cfg.saving.save_strategy) == ("no", "steps")
    assert all(cfg.origins[name].why for name in ("learning_rate", "max_length", "warmup_ratio", "eval_strategy"))


@pytest.mark.parametrize(
    ("batch", "processes", "expected"), [(1, 1, 16), (2, 1, 8), (3, 1, 6), (16, 1, 1), (64, 1, 1), (1, 4, 4), (2, 8, 1)]
)
def test_a_step_sees_about_sixteen_rows(batch, processes, expected):
    assert decided(processes, per_device_train_batch_size=batch).training.gradient_accumulation_steps == expected


def test_typed_values_stay():
    cfg = decided(
        learning_rate=3e-5,
        gradient_accumulation_steps=1,
        warmup_steps=10.0,
        max_length=100,
        output_dir="x",
        eval_strategy="epoch",
        val_dataset=("v",),
        eval_steps=7.0,
        metric_for_best_model="eval_token_acc",
    )
    assert cfg.training.learning_rate == 3e-5 and cfg.training.warmup_ratio is None
    assert (cfg.chat.max_length, cfg.saving.output_dir) == (100, "x")
    assert (cfg.evaluation.eval_strategy, cfg.evaluation.eval_steps) == ("epoch", 7.0)
    assert cfg.evaluation.greater_is_better is True


def test_validation_data_is_evaluated_when_checkpoints_are_saved():
    cfg = decided(val_dataset=("v",), save_steps=50.0)
    assert (cfg.evaluation.eval_strategy, cfg.evaluation.eval_steps) == ("steps", 50.0)
    assert (cfg.evaluation.metric_for_best_model, cfg.evaluation.greater_is_better) == ("loss", False)
    assert decided(split_dataset_ratio=0.1, save_strategy="epoch").evaluation.eval_strategy == "epoch"
    assert decided(val_dataset=("v",), save_strategy="best").evaluation.eval_strategy == "steps"


def test_asking_for_an_evaluation_without_validation_rows_sets_some_apart():
    cfg = decided(save_steps=100.0, eval_steps=100.0, save_total_limit=3)  # as the guide types it
    assert cfg.data.split_dataset_ratio == 0.01 and cfg.evaluation.eval_strategy == "steps"
    assert "eval_steps" in cfg.origins["split_dataset_ratio"].why
    assert decided(eval_steps=100.0, eval_strategy="no").data.split_dataset_ratio == 0.0


@pytest.mark.parametrize(
    "typed",
    [
        dict(warmup_ratio=0.1, warmup_steps=5.0),
        dict(bf16=True, fp16=True),
        dict(dataloader_prefetch_factor=2),
        dict(dataloader_persistent_workers=True),
        dict(group_by_length=True, train_dataloader_shuffle=False),
        dict(resume_only_model=True),
        dict(num_train_epochs=0.0),
        dict(metric_for_best_model="rouge", val_dataset=("v",)),
        dict(early_stop_interval=2, eval_strategy="no"),
        dict(load_best_model_at_end=True, eval_strategy="epoch", save_strategy="steps", val_dataset=("v",)),
        dict(load_best_model_at_end=True, eval_steps=30.0, save_steps=100.0, val_dataset=("v",)),
    ],
)
def test_combinations_that_mean_nothing(typed):
    with pytest.raises(UsageError) as caught:
        decided(**typed)
    assert caught.value.fix


def test_decisions_depend_on_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, swift.config.decide, swift.train.resume; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
