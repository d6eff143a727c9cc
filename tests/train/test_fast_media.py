"""Batches with images beside text: without padding and packed they train as padded ones do, or fall back aloud."""

from __future__ import annotations

import json

import pytest

from swift.cli import main
from tests import tiny_vlm
from tests.train import support

PLAIN = "--padding_free false --lean_head false --fused_layers false"
PACKED = "--packing true --packing_length 400 --max_length 400"


def rows(home) -> list[dict]:
    pictures = [tiny_vlm.picture(home / f"{i}.png", seed=i, size=(60 + 20 * i, 40 + 12 * i)) for i in range(3)]

    def row(question: str, answer: str, *images: str) -> dict:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": turns, **({"images": list(images)} if images else {})}

    return [
        row("<image>What is this?", "A dog.", pictures[0]),
        row("Who are you?", "Paris is my name, and it is long."),
        row("<image>Look: <image> what are these?", "Two cats on a mat.", *pictures[1:]),
        row("Tell me <image> more", "No.", pictures[2]),
    ]


@pytest.mark.parametrize(("family", "joins"), [("llava", True), ("qwen2_5_vl", True), ("gemma3", False)])
def test_losses_are_those_of_padded_batches(tmp_path, capfd, family, joins):
    model = tiny_vlm.checkpoint(tmp_path / "model", family)
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(tmp_path)))
    line = f"sft --model {model} --dataset {data} --add_version false --max_steps 3 --per_device_train_batch_size 8"
    line += " --gradient_accumulation_steps 1 --learning_rate 1e-2 --warmup_ratio 0 --torch_dtype float32"
    line += " --report_to none"
    line += " --save_strategy no --logging_steps 1 --train_dataloader_shuffle false --lora_dropout 0 --recompute none"
    losses, padding = {}, {}
    for way in (PLAIN, PACKED):
        capfd.readouterr()
        assert main([*line.split(), "--output_dir", str(tmp_path / way[2:9]), *way.split()]) == 0
        records = [record for record in support.records(tmp_path / way[2:9]) if "loss" in record]
        losses[way] = [record["loss"] for record in records]
        padding[way] = max(record["padding_share"] for record in records)
    said = "".join(capfd.readouterr())
    assert losses[PACKED] == pytest.approx(losses[PLAIN], abs=1e-5)
    assert losses[PLAIN][-1] < losses[PLAIN][0] and padding[PLAIN] > 0
    assert (padding[PACKED] == 0) == joins
    assert ("goes both ways" in said) == (not joins)
