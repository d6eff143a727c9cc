"""Files only: which checkpoint is found, which are deleted, what a run may change when it goes on."""

from __future__ import annotations

import json

import pytest

from swift import runs
from swift.config.commands import SftConfig
from swift.config.record import save_args
from swift.errors import CheckpointError
from swift.train import checkpoints, resume


def make_checkpoint(run_dir, step, max_steps=100, whole=True):
    run_dir.mkdir(parents=True, exist_ok=True)

    def write(staging):
        (staging / "adapter_model.safetensors").write_bytes(b"x" * step)
        state = {"global_step": step, "max_steps": max_steps}
        (staging / checkpoints.TRAINER_STATE).write_text(json.dumps(state))

    path = checkpoints.write_checkpoint(run_dir, step, write)
    if not whole:
        (path / "adapter_model.safetensors").write_bytes(b"")
    return path


def names(run_dir):
    return [p.name for p in checkpoints.list_checkpoints(run_dir)]


def test_rotation_keeps_the_newest_and_the_best(tmp_path):
    made = [make_checkpoint(tmp_path, step) for step in (10, 20, 30, 40)]
    assert checkpoints.rotate(tmp_path, None, made[-1], []) == []
    checkpoints.rotate(tmp_path, 2, made[-1], [made[0]])
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-40"]
    checkpoints.rotate(tmp_path, 1, made[-1], [made[0]])
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-40"], "the best is never the price of a limit"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_rotation_spares_the_one_just_written_though_later_steps_exist(tmp_path):
    """A run that went back to step 20 writes 30 again while 40 and 50 of its earlier course are there."""
    for step in (40, 50):
        make_checkpoint(tmp_path, step)
    new = make_checkpoint(tmp_path, 30)
    checkpoints.rotate(tmp_path, 1, new, [])
    assert names(tmp_path) == ["checkpoint-30"]


def test_checkpoints_are_ordered_by_number_not_by_name(tmp_path):
    for step in (9, 100, 20):
        make_checkpoint(tmp_path, step)
    assert checkpoints.newest_complete(tmp_path)[0].name == "checkpoint-100"
    assert checkpoints.newest_complete(tmp_path, up_to=99)[0].name == "checkpoint-20"


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    make_checkpoint(tmp_path, 1)
    (tmp_path / ".writing-checkpoint-2").mkdir()
    (tmp_path / ".writing-checkpoint-2" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".deleting-checkpoint-0").mkdir()
    (tmp_path / ".writing-logging.jsonl.77").write_text("x")
    checkpoints.clean_leftovers(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-1"]


def test_links_move_in_one_step(tmp_path):
    for step in (1, 2):
        checkpoints.link(tmp_path, "last", make_checkpoint(tmp_path, step))
        assert (tmp_path / "last").resolve().name == f"checkpoint-{step}"
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_auto_takes_the_newest_run_with_a_complete_checkpoint(tmp_path):
    make_checkpoint(tmp_path / "v1-20260101-000000", 10)
    make_checkpoint(tmp_path / "v9-20260101-000000", 30)
    make_checkpoint(tmp_path / "v10-20260101-000000", 20)
    point, notes = resume.find("auto", tmp_path)
    assert (point.run_dir.name, point.step, notes) == ("v10-20260101-000000", 20, [])
    make_checkpoint(tmp_path / "v11-20260101-000000", 5, whole=False)
    point, notes = resume.find("auto", tmp_path)
    assert point.step == 20
    assert "checkpoint-5 is broken" in notes[0] and "adapter_model.safetensors" in notes[0]


def test_auto_starts_anew_where_there_is_nothing_to_continue(tmp_path):
    point, notes = resume.find("auto", tmp_path / "nowhere")
    assert point is None and "starting from the beginning" in notes[0]
    make_checkpoint(tmp_path / "v0-20260101-000000", 100)  # finished
    (tmp_path / "v1-20260101-000000").mkdir()  # killed before its first checkpoint
    point, notes = resume.find("auto", tmp_path)
    assert point is None and "v0-20260101-000000 is finished" in notes[-1]


def test_a_broken_checkpoint_that_was_named_gives_the_one_before(tmp_path):
    run_dir = tmp_path / "v0-20260101-000000"
    make_checkpoint(run_dir, 10)
    broken = make_checkpoint(run_dir, 20, whole=False)
    make_checkpoint(run_dir, 30)
    point, notes = resume.find(str(broken), None)
    assert point.step == 10 and "checkpoint-20 is broken" in notes[0] and "checkpoint-10" in notes[1]
    point, notes = resume.find(str(run_dir), None)
    assert (point.step, notes) == (30, [])


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: make_checkpoint(p, 1, whole=False)])
def test_a_place_without_a_complete_checkpoint_is_an_error(tmp_path, make):
    make(tmp_path / "run")
    with pytest.raises(CheckpointError) as caught:
        resume.find(str(tmp_path / "run"), None)
    assert caught.value.fix


def run_with_args(tmp_path, processes=1, **options):
    run_dir = tmp_path / "v0-20260101-000000"
    path = make_checkpoint(run_dir, 10)
    save_args(run_dir, "sft", SftConfig().replace(options, "command line"))
    runs.write_text(path / runs.ARGS, (run_dir / runs.ARGS).read_text())
    runs.write_json(path / checkpoints.PROGRESS, {"world_size": processes})
    return resume.ResumePoint(path, run_dir, 10)


def test_what_was_not_typed_comes_from_the_run(tmp_path):
    point = run_with_args(tmp_path, learning_rate=3e-3, dataset=("a", "b#5"), lora_rank=4, model="m", output_dir="old")
    cfg, notes = resume.take_over(
        SftConfig().replace({"learning_rate": 3e-3, "logging_steps": 1.0}, "command line"), point
    )
    assert (cfg.training.learning_rate, cfg.tuner.lora_rank, cfg.data.dataset) == (3e-3, 4, ("a", "b#5"))
    assert cfg.logging.logging_steps == 1.0 and cfg.saving.output_dir is None and notes == []


@pytest.mark.parametrize(
    "typed",
    [
        dict(learning_rate=1e-3),
        dict(lora_rank=16),
        dict(seed=1),
        dict(model="other"),
    ],
)
def test_options_that_would_break_the_state_are_refused_by_name(tmp_path, typed):
    point = run_with_args(tmp_path, learning_rate=3e-3, model="m")
    with pytest.raises(CheckpointError, match=f"--{next(iter(typed))}"):
        resume.take_over(SftConfig().replace(typed, "command line"), point)
    typed |= dict(resume_only_model=True, resume_from_checkpoint="auto")
    cfg, _ = resume.take_over(SftConfig().replace(typed, "command line"), point)
    assert cfg.value(next(iter(typed))) == typed[next(iter(typed))]


@pytest.mark.parametrize(
    ("old", "now", "typed", "expected"),
    [
        ((4, 2, 1), 1, {}, (4, 2)),
        ((4, 2, 1), 2, {}, (4, 1)),
        ((4, 2, 1), 4, {}, (2, 1)),
        ((2, 3, 2), 1, {}, (2, 6)),
        ((4, 2, 1), 1, {"per_device_train_batch_size": 2}, (2, 4)),
        ((4, 2, 1), 1, {"gradient_accumulation_steps": 8}, (1, 8)),
        ((4, 2, 1), 3, {}, None),
        ((4, 2, 1), 1, {"per_device_train_batch_size": 3}, None),
        ((4, 2, 1), 1, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}, None),
    ],
)
def test_a_step_keeps_its_rows_in_other_portions(tmp_path, old, now, typed, expected):
    options = dict(per_device_train_batch_size=old[0], gradient_accumulation_steps=old[1])
    point = run_with_args(tmp_path, processes=old[2], **options)
    config = SftConfig().replace(typed, "command line")
    if expected is None:
        with pytest.raises(CheckpointError, match="a step of the run has"):
            resume.take_over(config, point, now)
        return
    found, notes = resume.take_over(config, point, now)
    training = found.training
    assert (training.per_device_train_batch_size, training.gradient_accumulation_steps) == expected
    assert len(notes) == ((*expected, now) != old)


def test_a_longer_run_is_allowed_and_said(tmp_path):
    point = run_with_args(tmp_path, num_train_epochs=1.0)
    cfg, notes = resume.take_over(
        SftConfig().replace({"num_train_epochs": 2.0, "save_steps": 7.0}, "command line"), point
    )
    assert cfg.training.num_train_epochs == 2.0 and cfg.saving.save_steps == 7.0
    assert len(notes) == 1 and "num_train_epochs" in notes[0]
