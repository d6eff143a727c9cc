"""What the trainer does between steps: logging, stopping, refusing what isn't finite, and that options have effect."""

from __future__ import annotations

import copy
import os
import signal

import pytest
import torch
from transformers import TrainerCallback

from swift import runs
from swift.errors import TrainingError, UsageError
from swift.train import checkpoints
from swift.train.interrupt import Interrupt
from tests import tiny
from tests.train import support

NUMBERS = (
    "loss",
    "grad_norm",
    "learning_rate",
    "token_acc",
    *support.SPEED,
    "epoch",
    "step",
    "max_steps",
    *support.CLOCK,
)


@pytest.fixture(scope="module")
def base():
    return tiny.model("llama")


def run(tmp_path, base, rows=None, val=None, callbacks=(), interrupt=None, **options):
    cfg = support.config(**options)
    model = copy.deepcopy(base) if cfg.tuner.tuner_type == "full" else support.lora(copy.deepcopy(base))
    trainer = support.trainer(
        tmp_path / "run", model, rows or support.encoded_rows(16), val, cfg, callbacks, interrupt=interrupt
    )
    trainer.train()
    return trainer


def test_the_log_holds_plain_numbers(tmp_path, base):
    run(tmp_path, base, val=support.encoded_rows(4, seed=1), logging_steps=2, val_dataset=("x",), eval_steps=4)
    records = support.records(tmp_path / "run")
    trained = [r for r in records if "loss" in r]
    assert [r["step"] for r in trained] == [1, 2, 4]
    assert all(set(NUMBERS) == set(r) for r in trained)
    assert all(isinstance(value, (int, float)) for r in records for value in r.values())
    for record in trained:
        shares = [record[f"{part}_share"] for part in ("data", "forward", "backward", "optimizer")]
        assert min(shares) > 0 and sum(shares) <= 1.001
    (evaluated,) = [r for r in records if "eval_loss" in r]
    assert evaluated["step"] == 4 and 0 <= evaluated["eval_token_acc"] <= 1
    assert trained[-1]["epoch"] == 1.0 and trained[-1]["eta_seconds"] == 0.0


def test_tokens_are_counted_without_padding(tmp_path, base):
    rows = support.encoded_rows(16)
    trainer = run(tmp_path, base, rows, num_train_epochs=2.0)
    assert trainer.meter.tokens_seen["inputs"] == 2 * sum(len(row["input_ids"]) for row in rows)
    assert trainer.meter.tokens_seen["tokens"] == 2 * sum(sum(x != -100 for x in row["labels"][1:]) for row in rows)


def test_a_loss_that_is_not_a_number_names_the_batch_and_spares_the_weights(tmp_path, base):
    """Rows 5 and 6 hold a token whose embedding is infinite."""
    rows, poisoned = support.encoded_rows(8), 7
    for row in rows:
        row["input_ids"] = [9 if x == poisoned else x for x in row["input_ids"]]
        row["labels"] = [9 if x == poisoned else x for x in row["labels"]]
    rows[5]["input_ids"][1] = poisoned
    broken = copy.deepcopy(base)
    broken.get_input_embeddings().weight.data[poisoned] = float("inf")
    cfg = support.config(
        train_dataloader_shuffle=False,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        save_steps=1,
        tuner_type="full",
        freeze_parameters=("model.embed_tokens",),
    )
    trainer = support.trainer(tmp_path / "run", broken, rows, None, cfg)
    with pytest.raises(TrainingError) as caught:
        trainer.train()
    assert caught.value.where == "rows.jsonl:6" and "step 2" in caught.value.what
    assert all(torch.isfinite(p).all() for n, p in broken.named_parameters() if "embed" not in n)
    assert runs.verify_dir(tmp_path / "run/checkpoint-1") == []


def test_a_gradient_that_is_not_finite_stops_too(tmp_path, base):
    model = support.lora(copy.deepcopy(base))
    next(p for p in model.parameters() if p.requires_grad).register_hook(lambda grad: grad * float("nan"))
    trainer = support.trainer(tmp_path / "run", model, support.encoded_rows(8), None, support.config())
    with pytest.raises(TrainingError, match="gradient"):
        trainer.train()


class SignalAt(TrainerCallback):
    def __init__(self, step: int, number: int, times: int = 1):
        self.step, self.number, self.times = step, number, times

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_stops(tmp_path, base, number, code):
    before = signal.getsignal(signal.SIGINT)  # a job in a shell's background ignores it
    with Interrupt() as interrupt:
        trainer = run(
            tmp_path,
            base,
            callbacks=[SignalAt(1, number)],
            interrupt=interrupt,
            val_dataset=("x",),
            val=support.encoded_rows(3, seed=2),
            save_steps=100,
            eval_strategy="epoch",
        )
    assert trainer.state.global_step == 2 and interrupt.exit_code == code
    assert [p.name for p in checkpoints.list_checkpoints(tmp_path / "run")] == ["checkpoint-2"]
    checkpoints.require_state(tmp_path / "run/checkpoint-2")
    assert not any("eval_loss" in r for r in support.records(tmp_path / "run"))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not(tmp_path, base):
    with pytest.raises(KeyboardInterrupt), Interrupt() as interrupt:
        run(tmp_path, base, callbacks=[SignalAt(1, signal.SIGINT, times=2)], interrupt=interrupt)
    assert checkpoints.list_checkpoints(tmp_path / "run") == []
    with Interrupt() as interrupt:
        run(tmp_path, base, callbacks=[SignalAt(1, signal.SIGTERM, times=2)], interrupt=interrupt)
    assert [p.name for p in checkpoints.list_checkpoints(tmp_path / "run")] == ["checkpoint-2"]


def saved(tmp_path) -> list[int]:
    return [checkpoints.step_of(p) for p in checkpoints.list_checkpoints(tmp_path / "run")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(save_steps=3), [3, 6, 8]),
        (dict(save_steps=0.25), [2, 4, 6, 8]),
        (dict(save_strategy="epoch"), [4, 8]),
        (dict(save_strategy="no"), []),
        (dict(save_steps=2, save_total_limit=1), [8]),
        (dict(max_steps=5, save_steps=2), [2, 4, 5]),
        (dict(max_steps=5, save_strategy="epoch"), [4, 5]),
    ],
)
def test_when_checkpoints_are_saved(tmp_path, base, options, expected):
    run(tmp_path, base, **{"num_train_epochs": 2.0} | options)
    assert saved(tmp_path) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (dict(eval_steps=3), [3, 6, 8]),
        (dict(eval_steps=0.5), [4, 8]),
        (dict(eval_strategy="epoch"), [4, 8]),
        (dict(eval_steps=2, eval_delay=5), [6, 8]),
        (dict(eval_strategy="epoch", eval_delay=2), [8]),
        (dict(eval_steps=8, eval_on_start=True), [0, 8]),
    ],
)
def test_when_it_evaluates(tmp_path, base, options, expected):
    run(tmp_path, base, val=support.encoded_rows(3, seed=4), num_train_epochs=2.0, val_dataset=("x",), **options)
    assert [r["step"] for r in support.records(tmp_path / "run") if "eval_loss" in r] == expected


def test_only_the_best_are_saved(tmp_path, base):
    """Trained on the validation rows every evaluation is better; with no learning rate only the first counts."""
    rows = support.encoded_rows(8)
    options = dict(save_strategy="best", eval_steps=2, val_dataset=("x",), num_train_epochs=4.0)
    learning = run(tmp_path / "a", base, rows, rows, **options)
    assert saved(tmp_path / "a") == [2, 4, 6, 8] and learning.best_saved.name == "checkpoint-8"
    run(tmp_path / "b", base, rows, rows, **options | dict(learning_rate=0.0))
    assert saved(tmp_path / "b") == [2]


def test_links_name_the_last_and_the_best(tmp_path, base):
    rows = support.encoded_rows(8)
    run(
        tmp_path,
        base,
        rows,
        rows,
        save_steps=2,
        eval_steps=2,
        val_dataset=("x",),
        learning_rate=0.0,
        num_train_epochs=2.0,
        create_checkpoint_symlink=True,
    )
    assert (tmp_path / "run/last").resolve().name == "checkpoint-4"
    assert (tmp_path / "run/best").resolve().name == "checkpoint-2"


def test_checkpoints_are_plain_peft_and_transformers(tmp_path, base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lora = run(tmp_path / "lora", base)
    checkpoint = tmp_path / "lora/run/checkpoint-4"
    reloaded = PeftModel.from_pretrained(copy.deepcopy(base), str(checkpoint)).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(reloaded(input_ids=ids).logits, lora.model.eval()(input_ids=ids).logits)
    full = run(tmp_path / "full", base, tuner_type="full", max_shard_size="100KB")
    checkpoint = tmp_path / "full/run/checkpoint-4"
    assert len(list(checkpoint.glob("model-*.safetensors"))) > 1, "max_shard_size counts"
    reloaded = AutoModelForCausalLM.from_pretrained(checkpoint)
    with torch.no_grad():
        assert torch.equal(reloaded.eval()(input_ids=ids).logits, full.model.eval()(input_ids=ids).logits)
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template == tiny.CHATML


def test_lora_plus_trains_b_faster(tmp_path, base):
    trainer = run(tmp_path, base, lorap_lr_ratio=16.0, max_steps=1)
    groups = trainer.optimizer.param_groups
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    initial = {"lora_B" in names[id(p)]: group["initial_lr"] for group in groups for p in group["params"]}
    assert initial[True] == pytest.approx(16 * initial[False])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (dict(optim="sgd"), lambda t: type(t.optimizer.optimizer).__name__ == "SGD"),
        (dict(adam_beta2=0.5), lambda t: t.optimizer.param_groups[0]["betas"] == (0.9, 0.5)),
        (dict(weight_decay=0.3), lambda t: t.optimizer.param_groups[0]["weight_decay"] == 0.3),
        (dict(gradient_checkpointing=True), lambda t: t.model.get_base_model().is_gradient_checkpointing),
        (dict(dataloader_drop_last=True, per_device_train_batch_size=3), lambda t: t.state.max_steps == 3),
    ],
)
def test_options_reach_transformers(tmp_path, base, changed, expected):
    assert expected(run(tmp_path, base, **changed))


def rates(tmp_path) -> list[float]:
    return [r["learning_rate"] for r in support.records(tmp_path / "run") if "loss" in r]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (dict(lr_scheduler_type="constant", warmup_ratio=0.0), [1e-2] * 4),
        (dict(lr_scheduler_type="linear", warmup_ratio=0.5), [0.0, 0.5e-2, 1e-2, 0.5e-2]),
        (dict(lr_scheduler_type="linear", warmup_steps=1.0), [0.0, 1e-2, 1e-2 * 2 / 3, 1e-2 / 3]),
        (dict(lr_scheduler_type="constant_with_warmup", warmup_ratio=1.0), [0.0, 0.25e-2, 0.5e-2, 0.75e-2]),
    ],
)
def test_schedules(tmp_path, base, changed, expected):
    run(tmp_path, base, logging_steps=1, **changed)
    assert rates(tmp_path) == pytest.approx(expected)


def test_steps_are_predicted_right(tmp_path, base):
    from swift.train.arguments import steps_in_run

    for options in (dict(), dict(num_train_epochs=2.5), dict(per_device_train_batch_size=3), dict(max_steps=3)):
        cfg = support.config(**options)
        trainer = run(tmp_path / str(len(options)), base, support.encoded_rows(17), save_strategy="no", **options)
        assert steps_in_run(cfg, 17, 1) == trainer.state.max_steps


def test_unknown_schedules_are_refused():
    from swift.train.arguments import check_schedule

    with pytest.raises(UsageError) as caught:
        check_schedule(support.config(lr_scheduler_type="cosinus"))
    assert "cosine" in caught.value.fix


def test_missing_libraries_are_named():
    import importlib.util

    from swift.errors import MissingPackage
    from swift.train.build import REPORTERS, check_packages

    for name, (module, package) in REPORTERS.items():
        if importlib.util.find_spec(module) is None:
            with pytest.raises(MissingPackage, match=package):
                check_packages(support.config(report_to=(name,)))
    check_packages(support.config(report_to=("none",)))


def test_tensorboard_gets_every_number_once(tmp_path, base):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(
        tmp_path,
        base,
        val=support.encoded_rows(3, seed=4),
        val_dataset=("x",),
        logging_steps=1,
        report_to=("tensorboard",),
        logging_dir=str(tmp_path / "board"),
    )
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    logged = [(r["step"], pytest.approx(r["loss"])) for r in support.records(tmp_path / "run") if "loss" in r]
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == logged
    assert len(events.Scalars("eval/loss")) == 1


def test_without_a_terminal_every_record_is_a_line(tmp_path, base, capsys):
    run(tmp_path, base, logging_steps=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split("  ")[0] for line in lines] == ["step 1/4", "step 2/4", "step 4/4"]
    assert all(word in lines[0] for word in ("loss", "acc", "grad", "lr", "tok/s", "GiB", "eta"))
