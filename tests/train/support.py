"""Hand-made encoded rows, a collator and a trainer around a tiny model: no chat template, no data files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch

from swift.config.commands import SftConfig
from tests import tiny

# What a log's record says of speed, time and memory: other numbers in every run.
SPEED = (
    "tokens_per_second",
    "padding_share",
    "flops_per_second",
    "mfu",
    "data_share",
    "forward_share",
    "backward_share",
    "optimizer_share",
    "memory_gib",
)
CLOCK = ("elapsed_seconds", "eta_seconds")


class RowList(list):
    """Encoded rows with their numbers."""


def encoded_rows(count: int = 24, seed: int = 0, vocab: int = 512, low: int = 6, high: int = 20) -> RowList:
    """Random token rows of different lengths whose first half isn't learned."""
    generator = torch.Generator().manual_seed(seed)
    rows = RowList()
    for number in range(count):
        length = int(torch.randint(low, high, (1,), generator=generator))
        ids = torch.randint(5, vocab, (length,), generator=generator).tolist()
        cut = int(torch.randint(1, length - 1, (1,), generator=generator))
        rows.append({"input_ids": ids, "labels": [-100] * cut + ids[cut:], "row_id": number})
    return rows


def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in batch)

    def padded(name: str, fill: int) -> torch.Tensor:
        return torch.tensor([row[name] + [fill] * (width - len(row[name])) for row in batch])

    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch]
    return {
        "input_ids": padded("input_ids", 0),
        "attention_mask": torch.tensor(mask),
        "labels": padded("labels", -100),
        "row_ids": [row["row_id"] for row in batch],
    }


def config(**values) -> SftConfig:
    """An SftConfig whose named options count as typed; the rest decided as for a model of 512 tokens' context."""
    from swift.config.decide import decide_sft

    defaults = dict(
        learning_rate=1e-2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        output_dir="unused",
        lora_dropout=0.0,
        gradient_checkpointing=False,
        report_to=("none",),
        num_train_epochs=1.0,
        dataloader_pin_memory=False,
    )
    return decide_sft(SftConfig().replace(defaults | values, "command line"), "tiny", 512)


def lora(model, rank: int = 4, dropout: float = 0.0):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = LoraConfig(
        r=rank, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    return get_peft_model(model, settings)


def trainer(run_dir: Path, model, rows, val_rows=None, cfg: SftConfig | None = None, callbacks=(), **changes):
    from swift.train.arguments import steps_in_run, training_arguments
    from swift.train.build import build_trainer

    run_dir.mkdir(parents=True, exist_ok=True)
    cfg = cfg or config()
    args = training_arguments(cfg, steps_in_run(cfg, len(rows), int(os.environ.get("WORLD_SIZE", "1"))))
    args.output_dir = str(run_dir)
    return build_trainer(
        cfg,
        args,
        model,
        tiny.tokenizer(),
        rows,
        val_rows,
        collate,
        sources=lambda row: f"rows.jsonl:{row + 1}",
        callbacks=callbacks,
        **changes,
    )


def step_losses(trainer) -> list[float]:
    return [record["loss"] for record in trainer.state.log_history if "loss" in record]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    name = "adapter_model.safetensors" if (checkpoint / "adapter_model.safetensors").is_file() else "model.safetensors"
    return load_file(checkpoint / name)


def same_weights(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def records(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "logging.jsonl").read_text().splitlines()]


def replaced(cfg: SftConfig, **values) -> SftConfig:
    return cfg.replace(values, "command line")


__all__ = [name for name in dir() if not name.startswith("_") and name not in ("annotations", "dataclasses")]
