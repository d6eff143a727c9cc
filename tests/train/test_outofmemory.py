"""Memory that runs out in a step, on a model that can hold so many rows and no more."""

from __future__ import annotations

import json

import pytest
import torch

from swift.models import load
from tests.train import support
from tests.train.test_sft import QUICK, model, only_run, sft  # noqa: F401  (fixtures)


@pytest.fixture
def room(monkeypatch):
    """Sets how many rows of a batch fit from a call of the model on; gives what batches came through."""
    real, seen = load.load_model, []

    def limit(rows: int, from_call: int = 0):
        def loaded(*args, **kwargs):
            found = real(*args, **kwargs)

            def check(module, args, kwargs):
                seen.append(kwargs["input_ids"].shape[0])
                if len(seen) > from_call and seen[-1] > rows:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

            found.register_forward_pre_hook(check, with_kwargs=True)
            return found

        monkeypatch.setattr(load, "load_model", loaded)
        return seen

    return limit


# The limit counts rows: without padding a batch is one long row.
FOUR_ROWS = QUICK + "--fused_layers false --padding_free false "
FOUR_ROWS += "--per_device_train_batch_size 4 --gradient_accumulation_steps 1 --torch_dtype float32 "


def losses(run_dir):
    return [(r["step"], pytest.approx(r["loss"], abs=1e-5)) for r in support.records(run_dir) if "loss" in r]


@pytest.mark.parametrize("from_call", [0, 2])
def test_smaller_passes_go_on_from_the_step_that_failed(sft, room, tmp_path, from_call):  # noqa: F811
    code, said = sft(FOUR_ROWS + "--output_dir whole --lora_dropout 0")
    assert code == 0, said
    room(2, from_call)
    code, said = sft(FOUR_ROWS + "--output_dir tight --lora_dropout 0 --auto_find_batch_size true --save_steps 50")
    assert code == 0, said
    assert "out of memory in step" in said and "going on with 2 rows x 2 passes" in said
    run_dir = only_run(tmp_path / "tight")
    assert losses(run_dir) == losses(only_run(tmp_path / "whole"))
    options = json.loads((run_dir / "args.json").read_text())["options"]
    assert options["per_device_train_batch_size"] == 2 and options["gradient_accumulation_steps"] == 2


def test_the_error_names_the_batch_and_the_ways_out_and_keeps_the_steps_done(sft, room, tmp_path):  # noqa: F811
    code, said = sft(FOUR_ROWS + "--output_dir whole")
    assert code == 0, said
    room(3, from_call=1)
    line = FOUR_ROWS + "--output_dir tight --save_steps 50 "
    code, said = sft(line)
    assert code == 7
    assert "rows.jsonl:" in said and "out of memory in step 2, in a batch of 4 x" in said
    assert "--per_device_train_batch_size 2 --gradient_accumulation_steps 2" in said
    assert said.index("--per_device_train_batch_size 2") < said.index("--load_in_4bit") < said.index("--max_length")
    assert (only_run(tmp_path / "tight") / "checkpoint-1").is_dir() and "--resume_from_checkpoint auto" in said
    # What the error says to type goes on in the same run.
    code, said = sft(
        line + "--per_device_train_batch_size 2 --gradient_accumulation_steps 2 --resume_from_checkpoint auto"
    )
    assert code == 0, said
    assert [step for step, _ in losses(only_run(tmp_path / "tight"))] == [1, 2, 3]


def test_a_probe_finds_out_before_the_first_step_and_changes_nothing(sft, room, tmp_path):  # noqa: F811
    code, said = sft(FOUR_ROWS + "--output_dir plain")
    assert code == 0, said
    code, said = sft(FOUR_ROWS + "--output_dir probed --probe true")
    assert code == 0 and "probe: the largest batch (4 x" in said
    assert support.same_weights(
        only_run(tmp_path / "plain") / "checkpoint-3", only_run(tmp_path / "probed") / "checkpoint-3"
    )
    room(3)
    code, said = sft(FOUR_ROWS + "--output_dir tight --probe true")
    assert code == 7 and "out of memory in step 1" in said
