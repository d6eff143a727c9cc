"""`swift sft` on images, and what comes after it: the adapter answers about an image file."""

from __future__ import annotations

import json

import pytest

from swift.cli import main
from tests import tiny_vlm


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run directory, model, picture): a llava that has learned one caption."""
    home = tmp_path_factory.mktemp("vlm")
    model = tiny_vlm.checkpoint(home / "model")
    picture, broken = tiny_vlm.picture(home / "picture.png"), home / "broken.png"
    broken.write_bytes(b"no image")
    talk = [{"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A dog."}]
    rows = [{"messages": talk, "images": ["picture.png"]}] * 4 + [{"messages": talk, "images": ["broken.png"]}]
    rows.append({"messages": [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "Paris."}]})
    data = home / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["sft", "--model", model, "--dataset", data, "--output_dir", home / "out", "--add_version", "false"]
    arguments += ["--num_train_epochs", "12", "--per_device_train_batch_size", "2", "--learning_rate", "1e-2"]
    arguments += ["--torch_dtype", "float32", "--report_to", "none", "--save_strategy", "epoch"]
    arguments += ["--gradient_accumulation_steps", "1", "--max_drop_ratio", "0.5", "--save_total_limit", "1"]
    assert main([str(argument) for argument in arguments]) == 0
    return home / "out", model, picture


def test_it_learns_and_accounts_for_every_row(trained):
    run, _, _ = trained
    records = [json.loads(line) for line in (run / "logging.jsonl").read_text().splitlines()]
    losses = [record["loss"] for record in records if "loss" in record]
    assert losses[-1] < losses[0] - 0.4
    report = json.loads((run / "data_report.json").read_text())
    assert "broken.png" in json.dumps(report) and "rows.jsonl:5" in json.dumps(report)


def test_it_answers_about_an_image_file(trained, capsys):
    run, _, picture = trained
    checkpoint = next(run.glob("checkpoint-*"))
    arguments = ["infer", "--adapters", str(checkpoint), "--prompt", "What is this?", "--images", picture]
    assert main([*arguments, "--max_new_tokens", "8"]) == 0
    assert "A dog." in capsys.readouterr().out


def test_the_towers_train_at_a_rate_of_their_own_and_a_whole_model_keeps_its_processor(trained, tmp_path, capsys):
    run, model, picture = trained
    from safetensors.torch import load_file

    arguments = ["sft", "--model", model, "--dataset", run.parent / "rows.jsonl", "--max_drop_ratio", "0.5"]
    arguments += ["--torch_dtype", "float32", "--report_to", "none", "--max_steps", "2", "--learning_rate", "1e-3"]
    arguments += ["--warmup_ratio", "0", "--per_device_train_batch_size", "2", "--add_version", "false"]
    joining = "model.multi_modal_projector.linear_1.weight"
    before = load_file(model / "model.safetensors")
    more = ["--tuner_type", "full", "--freeze_vit", "false", "--freeze_llm", "true", "--vit_lr", "1e-2"]
    assert main([str(argument) for argument in [*arguments, *more, "--output_dir", tmp_path / "full"]]) == 0
    after = load_file(tmp_path / "full/checkpoint-2/model.safetensors")
    names = {name for name in before if not before[name].equal(after[name])}
    assert names and all("vision_tower" in name for name in names), names
    tower = next(name for name in names if "fc1.weight" in name)
    assert (after[tower] - before[tower]).abs().max() > 5e-3  # AdamW's first step is the rate
    assert all(joining not in name for name in names)
    answered = ["infer", "--model", tmp_path / "full/checkpoint-2", "--prompt", "What?", "--images", picture]
    assert main([str(argument) for argument in [*answered, "--max_new_tokens", "2"]]) == 0
    lora = [*arguments, "--vit_lr", "1e-2", "--output_dir", tmp_path / "lora"]
    assert main([str(argument) for argument in lora]) == 2
    assert "--freeze_vit false" in capsys.readouterr().err
