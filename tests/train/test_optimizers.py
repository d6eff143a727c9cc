"""Optimizers by name: those that are there train and go on, the others say what they need."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch

from swift.errors import MissingPackage, UsageError
from swift.train.arguments import training_arguments
from swift.train.optimizers import LIBRARIES, check_name, check_optimizer
from tests import tiny
from tests.train import support

NAMES = {
    "muon": None,
    "adafactor": None,
    "sgd": None,
    "adamw_8bit": "bitsandbytes",
    "paged_lion_32bit": "bitsandbytes",
    "galore_adamw": "galore_torch",
    "apollo_adamw": "apollo_torch",
    "schedule_free_adamw": "schedulefree",
    "stable_adamw": "optimi",
}


@pytest.mark.parametrize("name", NAMES)
def test_it_trains(tmp_path, name):
    if NAMES[name] is not None:
        pytest.importorskip(NAMES[name])
    cfg = support.config(optim=name, tuner_type="full", max_steps=12, learning_rate=1e-2, warmup_steps=0.0)
    cfg = support.replaced(cfg, logging_steps=1, weight_decay=0.0, save_strategy="no")
    check_name(cfg)
    check_optimizer(training_arguments(cfg, 12))
    rows = support.encoded_rows(4)
    trainer = support.trainer(tmp_path / "run", tiny.model("llama"), rows, cfg=cfg)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    losses = support.step_losses(trainer)
    assert losses[-1] < losses[0]
    assert any(not torch.equal(before[key], value) for key, value in trainer.model.state_dict().items())


def test_muon_is_torch_s_for_matrices_and_adamw_for_the_rest(tmp_path):
    """The first step beside both optimizers of torch, stepped by hand; a run that goes on ends bit by bit as one that
    ran through."""
    from transformers import AutoModelForCausalLM

    rows = support.encoded_rows(4)
    values = dict(optim="muon", optim_args="momentum=0.9", tuner_type="full", max_steps=2, learning_rate=1e-2)
    cfg = support.config(**values, warmup_steps=0.0, lr_scheduler_type="constant", weight_decay=0.1, save_steps=1)
    cfg = support.replaced(cfg, max_grad_norm=0.0, per_device_train_batch_size=4, gradient_accumulation_steps=1)
    check_name(cfg)
    trainer = support.trainer(tmp_path / "run", tiny.model("llama"), rows, cfg=cfg)
    trainer.train()

    model = tiny.model("llama").train()
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    rest = [p for p in model.parameters() if all(p is not other for other in inner)]
    matrices = [p for p in rest if p.ndim == 2]
    others = [p for p in rest if p.ndim != 2]
    muon = torch.optim.Muon(inner, lr=1e-2, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    decays = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(decays, lr=1e-2, betas=(cfg.training.adam_beta1, cfg.training.adam_beta2))
    batch = {name: value for name, value in support.collate(rows).items() if name != "row_ids"}
    before = copy.deepcopy(model.state_dict())
    model(**batch).loss.backward()
    muon.step(), adamw.step()
    first = support.weights(tmp_path / "run/checkpoint-1")
    for name, theirs in model.named_parameters():
        moved = theirs.detach() - before[name]  # Newton and Schulz's steps are in bfloat16
        assert (first[name] - theirs).norm() < (0.1 if theirs.ndim == 2 else 1e-3) * moved.norm(), name
    last = support.weights(tmp_path / "run/checkpoint-2")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "run/checkpoint-1")
    again = support.trainer(tmp_path / "run", saved, rows, cfg=cfg)
    again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-1"))
    found = support.weights(tmp_path / "run/checkpoint-2")
    assert all(torch.equal(last[name], found[name]) for name in last)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [("beta=3", "doesn't read beta"), ("momentum=fast", "can't be 'fast'"), ("adjust_lr_fn=x", "x is not supported")],
)
def test_muon_s_arguments_are_read_before_anything_is_loaded(arguments, words):
    with pytest.raises(UsageError, match=words):
        check_name(support.config(optim="muon", optim_args=arguments))


def test_a_schedule_free_checkpoint_holds_the_weights_that_were_evaluated(tmp_path):
    pytest.importorskip("schedulefree")
    rows, val = support.encoded_rows(16), support.encoded_rows(4, seed=3)
    cfg = support.config(
        optim="schedule_free_adamw", save_steps=2, val_dataset=("x",), eval_steps=2, num_train_epochs=1.0
    )
    trainer = support.trainer(tmp_path / "run", support.lora(tiny.model("llama")), rows, val, cfg=cfg)
    trainer.train()
    logged = [r["eval_loss"] for r in support.records(tmp_path / "run") if "eval_loss" in r][-1]
    from peft import PeftModel

    saved = PeftModel.from_pretrained(tiny.model("llama"), str(tmp_path / "run/checkpoint-4"))
    again = support.trainer(tmp_path / "again", saved, rows, val, cfg=cfg)
    assert again.evaluate()["eval_loss"] == pytest.approx(logged, abs=1e-6)
    resumed = support.trainer(tmp_path / "run", support.lora(tiny.model("llama")), rows, val, cfg=cfg)
    last = support.weights(tmp_path / "run/checkpoint-4")
    resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))
    assert all(torch.equal(last[name], value) for name, value in support.weights(tmp_path / "run/checkpoint-4").items())


@pytest.mark.parametrize(
    ("typed", "what", "fix"),
    [
        (dict(optim="adamw_torch_fusd"), "no such value", "adamw_torch_fused"),
        (dict(optim="galore_adamw"), "projects whole matrices", "--tuner_type full"),
        (dict(optim="galore_adamw_layerwise", tuner_type="full"), "can't be accumulated", "steps 1"),
        (dict(optim="galore_adamw_8bit", tuner_type="full", use_cpu=True), "needs a GPU", "galore_adamw"),
        (dict(optim_target_modules=("q_proj",)), "projects nothing", "leave it out"),
    ],
)
def test_what_can_t_work_is_refused_before_anything_is_loaded(typed, what, fix):
    with pytest.raises(UsageError) as caught:
        check_name(support.config(**typed))
    assert what in caught.value.what and fix in caught.value.fix


@pytest.mark.parametrize(
    "name", ["galore_adamw", "lomo", "grokadamw", "schedule_free_sgd", "adamw_torch_4bit", "lion_8bit"]
)
def test_a_missing_library_is_named_with_its_install_line(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(MissingPackage) as caught:
        check_name(support.config(optim=name, tuner_type="full"))
    packages = [package for _, package in LIBRARIES.values()] + ["bitsandbytes"]
    assert any(f"pip install {package}" in caught.value.fix for package in packages)


@pytest.mark.parametrize(
    ("optim", "arguments", "words"),
    [
        ("adamw_torch_fused", "foo=1", "doesn't read foo"),
        ("rmsprop", "alpha=0.9,beta=3", "doesn't read beta"),
        ("rmsprop", "alpha", "has no value"),
        ("rmsprop", "alpha=fast", "fast"),
        ("rmsprop", "alpha=0.9", None),
        ("rmsprop", "momentum=0", None),  # its default is read too
    ],
)
def test_arguments_that_an_optimizer_doesn_t_read_are_refused(optim, arguments, words):
    args = training_arguments(support.config(optim=optim, optim_args=arguments), 4)
    if words is None:
        check_optimizer(args)
        return
    with pytest.raises(UsageError, match=words):
        check_optimizer(args)


def test_a_torch_without_muon_is_told_so(monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(UsageError, match="no Muon"):
        check_name(support.config(optim="muon"))
