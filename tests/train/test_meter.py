"""What a run says of its own speed: operations against torch's own count, padding, shares of time, the peak."""

from __future__ import annotations

import copy
import json
import time

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from swift.train import peak
from swift.train.flops import Needed
from swift.train.steptimes import StepTimes
from swift.train.summary import speed_lines
from tests import tiny, tiny_vlm
from tests.train import support


def products(model, batch) -> int:
    """Operations of all matrix products of one step, by torch; attention's are in kernels that count as none."""
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(value for op, value in counts.items() if "attention" not in str(op))


def batch_of(length: int) -> dict[str, torch.Tensor]:
    ids = torch.arange(5, 5 + length)[None]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
@pytest.mark.parametrize("tuned", [False, True])
def test_operations_are_those_that_torch_counts(family, tuned):
    model = tiny.model(family)
    if tuned:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    needed = Needed(model)
    needed.kinds = []
    batch = batch_of(20)
    ours = float(needed.of(batch["attention_mask"], batch["labels"])) + needed.per_label  # torch's has a last logit
    # With LoRA the first layer's k and v need no gradient of their input, which the count by order doesn't know.
    assert ours == pytest.approx(products(model, batch), rel=0.06 if tuned else 1e-6)


def test_a_token_goes_through_its_experts_only():
    dense, sparse = Needed(tiny.model("qwen3_moe", num_experts_per_tok=1)), Needed(tiny.model("qwen3_moe"))
    assert dense.per_token < sparse.per_token
    experts = sum(p.numel() for n, p in tiny.model("qwen3_moe").named_parameters() if ".experts." in n)
    config = tiny.config("qwen3_moe")
    share = (config.num_experts_per_tok - 1) / config.num_experts
    assert sparse.per_token - dense.per_token == pytest.approx(6 * experts * share)


def test_attention_counts_what_a_token_sees():
    needed = Needed(tiny.model("llama"))
    needed.per_token = needed.per_label = 0.0
    config = tiny.config("llama")
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])  # 6 pairs and 1
    pair = 2 * 3 * 2 * config.hidden_size * config.num_hidden_layers
    assert float(needed.of(mask, None)) == 7 * pair
    needed.kinds = [(2, 1.0)]
    assert float(needed.of(mask, None)) == 5 + 1


def test_towers_count_the_tokens_that_they_see():
    cls, config, processor = tiny_vlm.llava()
    torch.manual_seed(0)
    model = cls(config)
    batch = batch_of(12)
    batch["input_ids"][0, :4] = config.image_token_index
    batch["labels"] = batch["input_ids"]
    batch["pixel_values"] = torch.rand(1, 3, 28, 28)
    needed = Needed(model)
    needed.kinds = []
    with needed.counting():
        model(**batch)
    ours = float(needed.of(batch["attention_mask"], batch["labels"]))
    assert ours == pytest.approx(products(model, batch), rel=0.15)  # torch counts the convolution of patches too
    text = float(needed.of(batch["attention_mask"], batch["labels"]))
    assert text < 0.95 * ours, "no tower was called since"


def test_the_record_says_how_much_was_padding(tmp_path):
    rows, base = support.encoded_rows(8), tiny.model("llama")
    shares = {}
    for free in (True, False):
        cfg = support.config(padding_free=free, num_train_epochs=1.0, per_device_train_batch_size=8)
        trainer = support.trainer(tmp_path / str(free), support.lora(copy.deepcopy(base)), rows, cfg=cfg)
        trainer.train()
        shares[free] = [r["padding_share"] for r in support.records(tmp_path / str(free)) if "loss" in r]
    lengths = [len(row["input_ids"]) for row in rows]
    assert shares[True] == [0.0]
    assert shares[False] == [pytest.approx(1 - sum(lengths) / (8 * max(lengths)))]
    (line, times, memory) = speed_lines(trainer.meter.sitting())
    assert "tokens/s" in line and "MFU" in line and "% padding" in line
    assert all(f"{name} " in times for name in ("data", "forward", "backward", "optimizer", "rest"))
    assert "GiB" in memory


def test_waiting_for_data_is_waiting_for_data(tmp_path):
    class Slow(support.RowList):
        def __getitem__(self, i):
            time.sleep(0.05)
            return super().__getitem__(i)

    cfg = support.config(max_steps=2, logging_steps=1)
    trainer = support.trainer(tmp_path / "run", tiny.model("llama"), Slow(support.encoded_rows(8)), cfg=cfg)
    trainer.train()
    assert trainer.meter.sitting()["data_share"] > 0.2


def test_parts_of_a_step_add_up():
    times = StepTimes(torch.device("cpu"))
    with times.span("step"):
        with times.span("forward"):
            time.sleep(0.02)
        time.sleep(0.01)
    found = times.take()
    assert found["forward"] >= 0.02 and found["backward"] >= 0.01 and found["data"] == found["optimizer"] == 0.0
    assert sum(times.take().values()) == 0.0
    assert StepTimes(torch.device("meta")).take() == {}


def test_the_peak_is_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))
    measured = peak.matmul_peak.__wrapped__(torch.device("cpu"), torch.float32)
    assert 1e8 < measured < 1e14
    monkeypatch.setattr(peak, "_measure", lambda *_: pytest.fail("measured again"))
    assert peak.matmul_peak.__wrapped__(torch.device("cpu"), torch.float32) == measured
    (key,) = json.loads((tmp_path / "cache/matmul_peak.json").read_text())
    assert "1 thread" in key or "threads" in key
    assert peak.matmul_peak(torch.device("meta"), torch.float32) is None
