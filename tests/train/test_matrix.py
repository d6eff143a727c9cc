"""What composes: packing, accumulation, recomputing, tuners, quantized bases, evaluation and resuming, pair by pair.

Every step holds all rows, so that its loss doesn't depend on how they are put in batches; it is held against an
unmodified transformers Trainer over peft's own model.
"""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from swift.data.pack import OpenBins, PackedDataset
from swift.models.tuners import apply_tuner
from tests import tiny
from tests.train import support
from tests.train.test_reference import plain_losses

COUNT, STEPS = 12, 3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# kind -> (our options, peft's)
TUNERS = {
    "lora": ({}, {}),
    "rslora": ({"use_rslora": True}, {"use_rslora": True}),
    "dora": ({"use_dora": True}, {"use_dora": True}),
    "lora+": ({"lorap_lr_ratio": 4.0}, {}),
    "modules_to_save": ({"modules_to_save": ("lm_head",)}, {"modules_to_save": ["lm_head"]}),
    "full": ({"tuner_type": "full"}, None),
}
# tuner, bits of the base, rows' way into batches, recompute, evaluation, resuming
COMBINATIONS = [
    ("lora", 0, "packed", "light", True, True),
    ("rslora", 0, "accumulated", "full", False, True),
    ("dora", 0, "packed", "none", True, False),
    ("lora+", 0, "accumulated", "light", True, True),
    ("modules_to_save", 0, "packed", "full", False, True),
    ("full", 0, "accumulated", "none", True, True),
    ("full", 0, "packed", "full", False, False),
    ("lora", 8, "packed", "none", True, False),
    ("dora", 4, "accumulated", "full", True, False),
    ("lora", 4, "packed", "light", False, True),
]


class Rows(support.RowList):
    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row["input_ids"]) for row in self])


@functools.cache
def checkpoint(home: Path) -> Path:
    return tiny.checkpoint(home / "model", "llama")


def base_model(home: Path, bits: int) -> torch.nn.Module:
    if not bits:
        return tiny.model("llama")
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)
    return AutoModelForCausalLM.from_pretrained(
        checkpoint(home), quantization_config=settings, dtype=torch.float32, device_map="cpu"
    )


def with_peft(model: torch.nn.Module, settings: dict | None) -> torch.nn.Module:
    if settings is None:
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="CAUSAL_LM", **settings)
    return get_peft_model(model, config)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("matrix")


@functools.cache
def expected(home: Path, tuner: str, bits: int) -> list[float]:
    model = with_peft(base_model(home, bits), TUNERS[tuner][1])
    settings = dict(max_steps=STEPS, per_device_train_batch_size=COUNT, gradient_accumulation_steps=1)
    optimizer = None
    if tuner == "lora+":
        from peft.optimizers import create_loraplus_optimizer

        optimizer = create_loraplus_optimizer(
            model, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=4.0, loraplus_weight_decay=0.1, betas=(0.9, 0.95)
        )
    return plain_losses(model, Rows(support.encoded_rows(COUNT)), home / "plain", optimizer=optimizer, **settings)[0]


def ours(home: Path, run_dir: Path, tuner: str, bits: int, way: str, recompute: str, evaluates: bool, **more):
    rows = Rows(support.encoded_rows(COUNT))
    packed = PackedDataset(rows, 48) if way == "packed" else None
    batch, accumulation = (1, len(packed)) if packed is not None else (3, 4)
    values = dict(
        max_steps=STEPS,
        logging_steps=1,
        warmup_steps=1.0,
        save_steps=1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        recompute=recompute,
        gradient_checkpointing=recompute == "full",
        **(dict(tuner_type="lora", lora_rank=4, lora_alpha=8, target_modules=tuple(TARGETS)) | TUNERS[tuner][0] | more),
    )
    if evaluates:
        values |= dict(val_dataset=("x",), eval_steps=1)
    cfg = support.config(**values)
    base = base_model(home, bits)
    torch.manual_seed(0)
    model = apply_tuner(base, cfg.tuner)
    val = support.encoded_rows(5, seed=7) if evaluates else None
    trainer = support.trainer(run_dir, model, rows if packed is None else packed, val, cfg=cfg)
    if packed is not None:
        trainer.data_collator = OpenBins(support.collate)
    return trainer


def goes_on_bit_by_bit(run_dir: Path, again) -> None:
    """A run that was cut off after its first step ends with the weights of one that wasn't."""
    last = run_dir / f"checkpoint-{STEPS}"
    whole = copy.deepcopy(support.weights(last))
    again.train(resume_from_checkpoint=str(run_dir / "checkpoint-1"))
    found = support.weights(last)
    assert whole.keys() == found.keys() and all(torch.equal(whole[name], found[name]) for name in whole)


@pytest.mark.parametrize(("tuner", "bits", "way", "recompute", "evaluates", "resumes"), COMBINATIONS)
def test_losses_are_those_of_transformers_and_peft(home, tmp_path, tuner, bits, way, recompute, evaluates, resumes):
    line = (tuner, bits, way, recompute, evaluates)
    trainer = ours(home, tmp_path / "run", *line)
    trainer.train()
    assert trainer.fast_path.padding_free or trainer.fast_path.lean_head is False
    losses = support.step_losses(trainer)
    assert losses == pytest.approx(expected(home, tuner, bits), rel=1e-4)
    assert losses[-1] < losses[0]
    evaluated = [r["eval_loss"] for r in support.records(tmp_path / "run") if "eval_loss" in r]
    assert len(evaluated) == (STEPS if evaluates else 0)
    if resumes:
        goes_on_bit_by_bit(tmp_path / "run", ours(home, tmp_path / "run", *line))


def test_dropout_goes_on_with_the_same_masks(home, tmp_path):
    line = ("lora", 0, "packed", "light", True)
    trainer = ours(home, tmp_path / "run", *line, lora_dropout=0.3)
    trainer.train()
    still = ours(home, tmp_path / "still", *line)
    still.train()
    assert support.step_losses(trainer)[-1] != pytest.approx(support.step_losses(still)[-1], rel=1e-5)
    goes_on_bit_by_bit(tmp_path / "run", ours(home, tmp_path / "run", *line, lora_dropout=0.3))
