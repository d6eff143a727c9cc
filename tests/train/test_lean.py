"""The fast path of training against plain torch, transformers and peft: losses, gradients, and its way out."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch.nn import functional as F

from swift.train.lean import check
from swift.train.lean.check import CheckFirst
from swift.train.lean.head import Head, head_loss
from swift.train.lean.path import FastPath
from tests import tiny
from tests.train import support


@pytest.mark.parametrize(
    ("bias", "scale", "softcap", "smoothing", "weighted", "trained"),
    [
        (False, 1.0, None, 0.0, False, False),
        (False, 1.0, None, 0.0, False, True),
        (True, 0.5, None, 0.1, False, True),
        (False, 2.0, 3.0, 0.0, True, True),
        (True, 1.0, 5.0, 0.2, True, False),
    ],
)
@pytest.mark.parametrize("plain", [True, False])
def test_the_head_in_chunks_is_cross_entropy_of_all_logits(bias, scale, softcap, smoothing, weighted, trained, plain):
    torch.manual_seed(0)
    linear = torch.nn.Linear(16, 90, bias=bias).requires_grad_(trained)
    module = linear if plain else torch.nn.Sequential(linear)
    hidden = torch.randn(23, 16, requires_grad=True)
    targets = torch.randint(0, 90, (23,))
    weights = torch.rand(23) if weighted else None
    inputs = [hidden, *linear.parameters()] if trained else [hidden]

    logits = linear(hidden) * scale
    logits = torch.tanh(logits / softcap) * softcap if softcap else logits
    each = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    expected = (each * weights).sum() if weighted else each.sum()
    wanted = torch.autograd.grad(expected * 0.3, inputs)

    loss, hits = head_loss(Head(module, scale, softcap), hidden, targets, weights, smoothing, chunk_bytes=90 * 4 * 5)
    torch.testing.assert_close(loss, expected)
    assert torch.equal(hits, logits.argmax(-1) == targets)
    for ours, theirs in zip(torch.autograd.grad(loss * 0.3, inputs), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(
            head_loss(Head(module, scale, softcap), hidden, targets, weights, smoothing)[0], loss
        )


def test_no_more_logits_than_a_chunk_exist_at_once():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return out

    linear = torch.nn.Linear(8, 4000, bias=False).requires_grad_(False)
    hidden = torch.randn(500, 8, requires_grad=True)
    with Largest() as seen:
        loss, _ = head_loss(Head(linear), hidden, torch.zeros(500, dtype=torch.int64), chunk_bytes=4000 * 4 * 10)
        loss.backward()
    assert seen.elements <= 4000 * 10


FAMILIES = {
    "llama": {},
    "qwen3": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 7},
    "gemma2": {"sliding_window": 6, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 5},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "qwen3_moe": {"output_router_logits": True, "router_aux_loss_coef": 0.5},
    "glm4": {"pad_token_id": 0},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tuner", ["lora", "full"])
def test_loss_and_gradients_are_those_of_transformers(family, tuner):
    torch.manual_seed(0)
    plain = tiny.model(family, **FAMILIES[family])
    plain.set_attn_implementation("eager")
    plain = support.lora(plain) if tuner == "lora" else plain
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ours = copy.deepcopy(plain)
    batch = support.collate(support.encoded_rows(5, low=4, high=24))
    rows = batch.pop("row_ids")
    expected = plain(**batch).loss
    expected.backward()
    path = FastPath(ours, padding_free=True, lean_head=True)
    path.engage()
    tokens = path.label_count(batch)
    assert tokens == (batch["labels"][:, 1:] != -100).sum() and path.lean_head and len(rows) == 5
    loss, parts = path.loss(ours, batch, tokens, 0.0, 0.5)
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=2e-6)
    assert parts.tokens == tokens and parts.rows == 5
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, atol=2e-6, rtol=2e-4, msg=name)


def test_left_padding_and_first_tokens_with_labels():
    model = tiny.model("llama")
    rows = [torch.randint(5, 500, (n,)) for n in (9, 4)]
    expected = sum(F.cross_entropy(model(r[None]).logits[0, :-1], r[1:], reduction="sum") for r in rows) / 11
    padded = torch.zeros(2, 9, dtype=torch.int64)
    mask = torch.zeros_like(padded)
    for i, row in enumerate(rows):
        padded[i, 9 - len(row) :], mask[i, 9 - len(row) :] = row, 1
    batch = {"input_ids": padded, "attention_mask": mask, "labels": padded.masked_fill(mask == 0, -100)}
    path = FastPath(model, padding_free=True, lean_head=True)
    path.engage()
    assert path.label_count(batch) == 11
    assert path.loss(model, batch, path.label_count(batch), 0.0)[0].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_engaged_model_is_as_before_for_others_and_released_as_it_was(family):
    model = tiny.model(family, sliding_window=5)
    before_all = model.config._attn_implementation
    batch = support.collate(support.encoded_rows(3))
    batch.pop("row_ids")
    before = model(**batch).logits
    path = FastPath(model, padding_free=True, lean_head=True)
    path.engage()
    torch.testing.assert_close(model(**batch).logits, before)
    path.release()
    assert model.config._attn_implementation == before_all and "forward" not in vars(model)


def test_what_differs_is_left_out_aloud_and_training_is_right(tmp_path, caplog, monkeypatch):
    from swift.train.lean import model as shapes

    rows = support.encoded_rows(8)
    base = tiny.model("llama", logit_scale=3.0)  # a name that llama's own forward doesn't know
    cfg = support.config(max_steps=2, logging_steps=1)
    slow = support.trainer(
        tmp_path / "a",
        support.lora(copy.deepcopy(base)),
        rows,
        cfg=support.replaced(cfg, padding_free=False, lean_head=False),
    )
    slow.train()
    with caplog.at_level(logging.WARNING, "swift"):
        fast = support.trainer(tmp_path / "b", support.lora(copy.deepcopy(base)), rows, cfg=cfg)
        fast.train()
    assert "--lean_head is off: the loss of a batch is" in caplog.text
    assert fast.fast_path.padding_free and not fast.fast_path.lean_head
    assert support.step_losses(fast) == pytest.approx(support.step_losses(slow), abs=1e-5)
    monkeypatch.setattr(shapes, "ROW_KINDS", {"sliding_attention"})
    with caplog.at_level(logging.INFO, "swift"):
        FastPath(tiny.model("qwen3"), padding_free=True, lean_head=True)
    assert "it has layers of full_attention" in caplog.text


def test_the_check_leaves_weights_and_random_numbers_alone(tmp_path):
    rows = support.encoded_rows(8)
    model = support.lora(tiny.model("llama"), dropout=0.1)
    trainer = support.trainer(tmp_path / "a", model, rows)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    CheckFirst(trainer, trainer.train_dataset).on_train_begin(trainer.args, trainer.state, trainer.control)
    assert trainer.fast_path.lean_head and torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())


def test_the_check_takes_one_row_with_media_whole():
    def row(length: int, learned: int, media: bool) -> dict:
        labels = [-100] * (length - learned) + list(range(learned))
        return {"input_ids": list(range(length)), "labels": labels} | ({"media": {}} if media else {})

    rows = [row(90, 30, True), row(80, 3, True), row(70, 3, True), row(60, 50, False)]
    pieces = check._pieces(rows, (20, 20, 20, 20))
    assert [len(piece["labels"]) for piece in pieces] == [20, 70, 20]  # 3 learned tokens are too few
    assert ["media" in piece for piece in pieces] == [False, True, False]
    assert pieces[0]["labels"] == list(range(20))


@pytest.mark.parametrize("text", [True, False])
def test_the_check_does_without_media_where_there_is_no_memory(caplog, text):
    path = FastPath(tiny.model("llama"), padding_free=True, lean_head=True)
    rows = [{"input_ids": [5, 6, 7, 8, 9], "labels": [-100, 6, 7, 8, 9]} for _ in range(1 + text)]
    rows[0]["media"] = {}
    tried = []

    def loss(batch):
        tried.append(["media" in row for row in batch])
        if "media" in batch[0]:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return sum(p.sum() for p in path.model.parameters())

    check.verify(path, rows, list, loss, loss)
    assert tried == [[True] + [False] * text] + [[False]] * (2 * text)
    assert "no memory to hold a row with media" in caplog.text and path.lean_head
