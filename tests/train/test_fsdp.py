"""FSDP2 over two processes (gloo) against one process, and its options in the forms they are written in."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from swift.config.commands import SftConfig
from swift.errors import UsageError
from swift.train.fsdp_options import read_fsdp
from swift.train.sharding import decide_sharding
from tests.train import support
from tests.train.test_distributed import finish, losses, sft, start

TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def config(**values) -> SftConfig:
    return SftConfig().replace(values, "command line")


@pytest.mark.parametrize(
    ("written", "settings"),
    [
        ("fsdp2", {}),
        ("true", {}),
        ("full_shard auto_wrap", {"reshard_after_forward": True}),
        ("shard_grad_op offload", {"reshard_after_forward": False, "cpu_offload": True}),
        ('{"fsdp": "full_shard auto_wrap", "fsdp_config": {"fsdp_version": 2}}', {"reshard_after_forward": True}),
        ('{"fsdp_transformer_layer_cls_to_wrap": "A, B"}', {"transformer_layer_cls_to_wrap": ["A", "B"]}),
        ('{"fsdp_sharding_strategy": "SHARD_GRAD_OP"}', {"reshard_after_forward": False}),
    ],
)
def test_every_way_to_write_it_means_the_same(tmp_path, written, settings):
    assert read_fsdp(config(fsdp=written)).settings == {"version": 2, **settings}
    if written.startswith("{"):
        (tmp_path / "fsdp.json").write_text(written)
        assert read_fsdp(config(fsdp=str(tmp_path / "fsdp.json"))).settings == {"version": 2, **settings}


def test_settings_are_used_or_said_to_mean_nothing_or_refused():
    both = read_fsdp(config(fsdp="fsdp2", fsdp_config='{"activation_checkpointing": true, "use_orig_params": true}'))
    assert both.checkpointing is True and "use_orig_params means nothing" in both.notes[0]
    assert read_fsdp(config()) is None and read_fsdp(config(fsdp="none")) is None
    for wrong in ({"fsdp": "fully_shard"}, {"fsdp": "hybrid_shard"}, {"fsdp_config": "{}", "fsdp": "no-such.json"}):
        with pytest.raises(UsageError):
            read_fsdp(config(**wrong))
    for wrong in ('{"version": 1}', '{"reshard": true}', '{"auto_wrap_policy": "ALL"}', "[]", '{"cpu_offload": 3}'):
        with pytest.raises(UsageError):
            read_fsdp(config(fsdp="fsdp2", fsdp_config=wrong))
    with pytest.raises(UsageError, match="without --fsdp"):
        read_fsdp(config(fsdp_config='{"cpu_offload": true}'))


def test_what_does_not_combine_is_refused_at_once(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(UsageError, match="NPROC_PER_NODE=2"):
        decide_sharding(config(fsdp="fsdp2"), 1)
    for unfit in (
        {"quant_bits": 4},
        {"device_map": "auto"},
        {"torch_compile": True},
        {"optim": "adamw_8bit"},
        {"use_dora": True},
        {"init_weights": "pissa"},
    ):
        with pytest.raises(UsageError, match=f"--{next(iter(unfit))} with --fsdp"):
            decide_sharding(config(fsdp="fsdp2", **unfit), 2)
    resumed = SftConfig().replace({"fsdp": "fsdp2"}, "args.json")
    assert decide_sharding(resumed, 1).training.fsdp is None


FULL = ("--tuner_type", "full", "--learning_rate", "1e-3")
LORA = ("--lora_rank", "4", "--learning_rate", "1e-2")


@pytest.mark.slow
@pytest.mark.parametrize("tuner", [FULL, LORA], ids=["full", "lora"])
def test_fsdp_trains_as_one_process_and_any_number_of_processes_goes_on(tmp_path, tuner):
    options = [*tuner, "--max_steps", "8", "--save_steps", "4", "--val_dataset", f"{tmp_path / 'rows.jsonl'}#5"]
    rows = ["--dataset", f"{tmp_path / 'rows.jsonl'}#21"]  # 21 rows: the last batches are uneven
    of_two = ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--fsdp", "fsdp2"]
    of_one = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "2"]
    finish(start([], [*sft(tmp_path, "one", *options, *of_one), *rows, "--output_dir", str(tmp_path / "one")]))
    finish(start(TWO, [*sft(tmp_path, "two", *options, *of_two), *rows, "--output_dir", str(tmp_path / "two")]))
    expected = [(step, pytest.approx(value, abs=1e-4)) for step, value in losses(tmp_path / "one")]
    assert losses(tmp_path / "two") == expected
    one, two = (next((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert_same_checkpoint(one / "checkpoint-8", two / "checkpoint-8")
    evaluated = [[r["eval_loss"] for r in support.records(run) if "eval_loss" in r] for run in (one, two)]
    assert evaluated[1] == pytest.approx(evaluated[0], abs=1e-4) and len(evaluated[0]) == 2
    # one process goes on from two's checkpoint, and two from one's
    for name, run, launcher, more in (("one", two, [], []), ("two", one, TWO, ["--fsdp", "fsdp2"])):
        place = tmp_path / f"on-{name}"
        shutil.copytree(run, place / run.name)
        shutil.rmtree(place / run.name / "checkpoint-8")
        argv = ["swift.cli", "sft", "--resume_from_checkpoint", "auto", "--output_dir", str(place), *more]
        finish(start(launcher, argv))
        assert losses(place) == expected


def assert_same_checkpoint(one: Path, two: Path) -> None:
    """The same files, weights and optimizer state to rounding, with the same names, shapes and dtypes."""
    ours, theirs = support.weights(one), support.weights(two)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        torch.testing.assert_close(theirs[name], value, atol=2e-3, rtol=0)
    states = [torch.load(path / "optimizer.pt", weights_only=True) for path in (one, two)]
    assert states[0]["param_groups"] == states[1]["param_groups"]
    for number, values in states[0]["state"].items():
        for name, value in values.items():
            torch.testing.assert_close(states[1]["state"][number][name], value, atol=1e-4, rtol=1e-2)
    for name in ("config.json", "adapter_config.json"):
        if (one / name).is_file():
            assert facts(one / name) == facts(two / name)


def facts(path: Path) -> dict:
    """A config file without paths and without the order of its lists."""
    values = json.loads(path.read_text())
    return {k: sorted(map(str, v)) if isinstance(v, list) else v for k, v in values.items() if "path" not in k}
