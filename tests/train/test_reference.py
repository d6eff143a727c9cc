"""The trainer against plain transformers and peft: same rows, order, seed -> same losses, gradients and weights."""

from __future__ import annotations

import copy

import pytest
import torch

from tests import tiny
from tests.train import support


def plain_losses(model, rows, tmp_path, optimizer=None, **values) -> tuple[list[float], object]:
    """Step losses of an unmodified transformers.Trainer with its own model loss."""
    from transformers import Trainer, TrainingArguments

    settings = dict(
        output_dir=str(tmp_path / "plain"),
        learning_rate=1e-2,
        lr_scheduler_type="cosine",
        warmup_steps=1,
        weight_decay=0.1,
        adam_beta2=0.95,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=20,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=42,
        optim="adamw_torch_fused",
        remove_unused_columns=False,
        log_level="error",
    )

    def collate(batch):
        return {k: v for k, v in support.collate(batch).items() if k != "row_ids"}

    trainer = Trainer(
        model=model,
        args=TrainingArguments(**settings | values),
        train_dataset=rows,
        data_collator=collate,
        optimizers=(optimizer, None),
    )
    trainer.train()
    return [r["loss"] for r in trainer.state.log_history if "loss" in r], trainer


def test_twenty_lora_steps_equal_plain_transformers_and_peft(tmp_path):
    rows = support.encoded_rows(30)
    base = tiny.model("llama")
    expected, plain = plain_losses(support.lora(copy.deepcopy(base)), rows, tmp_path)
    model = support.lora(copy.deepcopy(base))
    ours = support.trainer(
        tmp_path / "run", model, rows, cfg=support.config(max_steps=20, logging_steps=1, warmup_steps=1.0)
    )
    ours.train()
    assert support.step_losses(ours) == pytest.approx(expected, abs=1e-5)
    assert expected[-1] < expected[0] - 0.05, "the reference itself must learn for this to mean anything"
    for (name, a), b in zip(model.named_parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", ["qwen3", "gemma3_text", "qwen3_moe"])
def test_full_training_equals_plain_transformers(tmp_path, family):
    rows = support.encoded_rows(12)
    base = tiny.model(family)
    expected, _ = plain_losses(copy.deepcopy(base), rows, tmp_path, max_steps=4)
    ours = support.trainer(
        tmp_path / "run", copy.deepcopy(base), rows, cfg=support.config(max_steps=4, logging_steps=1, warmup_steps=1.0)
    )
    ours.train()
    assert support.step_losses(ours) == pytest.approx(expected, abs=1e-5)


def test_accumulation_is_the_same_as_a_larger_batch(tmp_path):
    rows = support.encoded_rows(24)
    base = tiny.model("llama")
    losses = []
    for batch, accumulation in ((1, 8), (8, 1), (2, 4)):
        cfg = support.config(
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            logging_steps=1,
            num_train_epochs=2.0,
        )
        ours = support.trainer(tmp_path / f"run{batch}", support.lora(copy.deepcopy(base)), rows, cfg=cfg)
        ours.train()
        losses.append(support.step_losses(ours))
    assert len(losses[0]) == 6
    assert losses[1] == pytest.approx(losses[0], abs=2e-5)
    assert losses[2] == pytest.approx(losses[0], abs=2e-5)


def test_router_loss_is_added_as_the_model_adds_it(tmp_path):
    rows = support.encoded_rows(6)
    base = tiny.model("qwen3_moe", output_router_logits=True, router_aux_loss_coef=0.5)
    batch = {k: v for k, v in support.collate(rows).items() if k != "row_ids"}
    expected = base(**batch).loss.item()
    cfg = support.config(
        per_device_train_batch_size=6,
        gradient_accumulation_steps=1,
        max_steps=1,
        logging_steps=1,
        train_dataloader_shuffle=False,
    )
    ours = support.trainer(tmp_path / "run", copy.deepcopy(base), rows, cfg=cfg)
    ours.train()
    assert support.step_losses(ours)[0] == pytest.approx(expected, abs=1e-5)


def test_label_smoothing_is_that_of_transformers(tmp_path):
    rows = support.encoded_rows(8)
    base = tiny.model("llama")
    expected, _ = plain_losses(copy.deepcopy(base), rows, tmp_path, max_steps=3, label_smoothing_factor=0.2)
    cfg = support.config(max_steps=3, logging_steps=1, warmup_steps=1.0, label_smoothing_factor=0.2)
    ours = support.trainer(tmp_path / "run", copy.deepcopy(base), rows, cfg=cfg)
    ours.train()
    assert support.step_losses(ours) == pytest.approx(expected, abs=1e-5)
    unsmoothed, _ = plain_losses(copy.deepcopy(base), rows, tmp_path, max_steps=1)
    assert abs(expected[0] - unsmoothed[0]) > 1e-4


@torch.no_grad()
def test_evaluation_is_the_mean_over_all_label_tokens(tmp_path):
    rows, val = support.encoded_rows(8), support.encoded_rows(7, seed=3)
    model = tiny.model("llama")
    cfg = support.config(val_dataset=("x",), per_device_eval_batch_size=3, eval_accumulation_steps=1)
    trainer = support.trainer(tmp_path / "run", model, rows, val, cfg=cfg)
    values = trainer.evaluate()
    total = count = right = 0
    for row in val:  # one row at a time, no padding: nothing in common with a batch
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
        logprobs = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        for position, label in enumerate(labels.tolist()):
            if label != -100:
                total -= logprobs[position, label].item()
                right += int(logprobs[position].argmax() == label)
                count += 1
    assert values["eval_loss"] == pytest.approx(total / count, abs=1e-5)
    assert values["eval_token_acc"] == right / count
    assert model.training is False, "evaluation leaves the mode as it was"


def test_token_and_sequence_accuracy(tmp_path):
    """A model that has learned two rows by heart has them all right, and fewer of those that it can't know."""
    rows = support.encoded_rows(2)
    model = tiny.model("llama")
    cfg = support.config(
        max_steps=60,
        num_train_epochs=60.0,
        logging_steps=60,
        gradient_accumulation_steps=1,
        learning_rate=1e-2,
        val_dataset=("x",),
        acc_strategy="seq",
        eval_strategy="no",
    )
    trainer = support.trainer(tmp_path / "run", model, rows, rows, cfg=cfg)
    trainer.train()
    assert trainer.evaluate()["eval_seq_acc"] == 1.0
    trainer.eval_dataset = rows + support.encoded_rows(2, seed=9)
    assert trainer.evaluate()["eval_seq_acc"] == 0.5
    trainer.acc_strategy = "token"
    assert 0.3 < trainer.evaluate()["eval_token_acc"] < 1.0


def test_weighted_tokens_multiply_their_losses():
    from swift.train.losses import causal_loss

    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, -100, 3], [-100, 5, 6]])
    weights = torch.tensor([[2.0, 9.0, 1.0], [9.0, 0.5, 1.0]])
    nll = -logits.log_softmax(-1)
    expected = 2 * nll[0, 0, 1] + nll[0, 2, 3] + 0.5 * nll[1, 1, 5] + nll[1, 2, 6]
    parts = causal_loss(logits, labels, weights=weights)
    assert parts.total.item() == pytest.approx(expected.item(), abs=1e-5)
    assert (parts.tokens.item(), parts.rows.item()) == (4, 2)


def test_rows_come_in_the_order_of_a_plain_trainer():
    from accelerate.data_loader import SeedableRandomSampler

    from swift.train.shares import EpochOrder

    theirs, ours = SeedableRandomSampler(range(50), data_seed=42), EpochOrder(50, 42, shuffle=True)
    for epoch in range(3):
        theirs.set_epoch(epoch)
        ours.epoch = epoch
        assert list(ours) == list(theirs)


def test_grouping_by_length_needs_less_padding_and_loses_no_row():
    from swift.train.shares import EpochOrder

    lengths = [(7 * i) % 97 + 1 for i in range(400)]

    def padded(order: list[int]) -> int:
        return sum(8 * max(lengths[i] for i in order[start : start + 8]) for start in range(0, len(order), 8))

    grouped, random = (list(EpochOrder(400, 1, True, lengths if group else None, 8)) for group in (True, False))
    assert sorted(grouped) == sorted(random) == list(range(400))
    assert padded(grouped) < 0.75 * padded(random)
