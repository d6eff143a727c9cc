"""DeepSpeed over two processes (gloo) against one process without it, and its configurations."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest

from swift.config.commands import SftConfig
from swift.errors import CheckpointError, MissingPackage, UsageError
from swift.train import checkpoints
from swift.train.deepspeed_options import check_deepspeed, names, read_deepspeed, stage
from swift.train.sharding import decide_sharding
from tests.train import support
from tests.train.test_distributed import finish, losses, sft, start
from tests.train.test_fsdp import FULL, LORA, TWO

# weights that decay and norms that don't: two groups of parameters
DECAYED = (*FULL, "--weight_decay", "0.5")
HERE = importlib.util.find_spec("deepspeed") is not None


def config(**values) -> SftConfig:
    return SftConfig().replace(values, "command line")


def test_configurations_by_name_by_file_and_as_json(tmp_path):
    assert names() == ["zero0", "zero1", "zero2", "zero2_offload", "zero3", "zero3_offload"]
    for name in names():
        settings = read_deepspeed(config(deepspeed=name))
        assert stage(settings) == int(name[4])
        assert ("offload_optimizer" in settings["zero_optimization"]) == name.endswith("offload")
        assert settings["gradient_accumulation_steps"] == "auto"
    (tmp_path / "own.json").write_text('{"zero_optimization": {"stage": 1}}')
    assert stage(read_deepspeed(config(deepspeed=str(tmp_path / "own.json")))) == 1
    assert stage(read_deepspeed(config(deepspeed='{"zero_optimization": {"stage": 3}}'))) == 3
    auto = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": "auto"}}
    given = read_deepspeed(config(deepspeed=json.dumps(auto)))
    assert given["zero_optimization"]["stage3_param_persistence_threshold"] == 0
    assert read_deepspeed(config()) is None and read_deepspeed(config(deepspeed="none")) is None
    for wrong in ("zero4", "no-such.json", "{", "[1]"):
        with pytest.raises(UsageError):
            read_deepspeed(config(deepspeed=wrong))


def test_without_the_package_the_error_says_what_to_type(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="pip install"):
        decide_sharding(config(deepspeed="zero2"), 2)


def test_what_contradicts_or_does_not_combine_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("LOCAL_RANK", "0")
    for key, value in (("gradient_clipping", 3.0), ("train_micro_batch_size_per_gpu", 7), ("train_batch_size", 7)):
        with pytest.raises(UsageError, match=key):
            check_deepspeed(config(gradient_accumulation_steps=1), {key: value}, 2)
    with pytest.raises(UsageError, match="both"):
        decide_sharding(config(deepspeed="zero2", fsdp="fsdp2"), 2)
    for unfit in ({"probe": True}, {"device_map": "auto"}, {"torch_compile": True}):
        with pytest.raises(UsageError, match=next(iter(unfit))):
            decide_sharding(config(deepspeed="zero1", **unfit), 2)
    for unfit in ({"quant_bits": 4}, {"use_dora": True}, {"new_special_tokens": ("<a>",)}):
        decide_sharding(config(deepspeed="zero2", **unfit), 2)
        with pytest.raises(UsageError, match=next(iter(unfit))):
            decide_sharding(config(deepspeed="zero3", **unfit), 2)
    decide_sharding(config(deepspeed="zero2"), 2, quantization="gptq")
    with pytest.raises(UsageError, match="gptq weights can't be cut"):
        decide_sharding(config(deepspeed="zero3"), 2, quantization="gptq")
    with pytest.raises(UsageError, match="awq weights can't be cut"):
        decide_sharding(config(fsdp="fsdp2"), 2, quantization="awq")
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(UsageError, match="NPROC_PER_NODE"):
        decide_sharding(config(deepspeed="zero2"), 1)


def test_its_state_goes_on_with_what_reads_it(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setenv("LOCAL_RANK", "0")
    (tmp_path / "progress.json").write_text(json.dumps({"world_size": 2}))
    with pytest.raises(CheckpointError, match="without DeepSpeed"):
        decide_sharding(config(deepspeed="zero2"), 2, tmp_path)
    state = tmp_path / "global_step4"
    state.mkdir()
    (state / "mp_rank_00_model_states.pt").touch()
    decide_sharding(config(deepspeed="zero0"), 4, tmp_path)
    assert not checkpoints.other_parts(tmp_path, 4)  # every process has it all
    with pytest.raises(CheckpointError, match="(?s)ZeRO-2 doesn't read.*--deepspeed zero0"):
        decide_sharding(config(deepspeed="zero2"), 2, tmp_path)
    (state / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    decide_sharding(config(deepspeed="zero1"), 2, tmp_path)
    assert not caplog.messages
    decide_sharding(config(deepspeed="zero2"), 4, tmp_path)
    assert "cut for 2 processes, is converted for 4" in caplog.text
    with pytest.raises(CheckpointError, match="(?s)converts AdamW's only.*NPROC_PER_NODE=2"):
        decide_sharding(config(deepspeed="zero2", optim="sgd"), 4, tmp_path)
    with pytest.raises(CheckpointError, match="(?s)of zero1 or zero2, which.*ZeRO-3"):
        decide_sharding(config(deepspeed="zero3_offload"), 2, tmp_path)
    (state / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    with pytest.raises(CheckpointError, match="(?s)of zero3, which.*ZeRO-2"):
        decide_sharding(config(deepspeed="zero2"), 2, tmp_path)
    with pytest.raises(CheckpointError, match="by DeepSpeed"):
        decide_sharding(config(), 2, tmp_path)
    decide_sharding(config(resume_only_model=True, resume_from_checkpoint="auto"), 4, tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not HERE, reason="deepspeed is not installed")
@pytest.mark.parametrize(
    ("name", "tuner"),
    [("zero1", DECAYED), ("zero2", LORA), ("zero3", DECAYED), ("zero3", LORA), ("zero2_offload", FULL)],
    ids=["zero1-full", "zero2-lora", "zero3-full", "zero3-lora", "zero2_offload-full"],
)
def test_zero_trains_as_one_process_and_any_number_goes_on(tmp_path, name, tuner):
    options = [*tuner, "--max_steps", "8", "--save_steps", "4", "--val_dataset", f"{tmp_path / 'rows.jsonl'}#5"]
    options += ["--dataset", f"{tmp_path / 'rows.jsonl'}#21", "--gradient_accumulation_steps", "2"]
    one = ["--per_device_train_batch_size", "4", "--output_dir", str(tmp_path / "one")]
    two = ["--per_device_train_batch_size", "2", "--deepspeed", name, "--output_dir", str(tmp_path / "two")]
    finish(start([], [*sft(tmp_path, "one", *options), *one]))
    finish(start(TWO, [*sft(tmp_path, "two", *options), *two]))
    expected = [(step, pytest.approx(value, abs=1e-4)) for step, value in losses(tmp_path / "one")]
    assert losses(tmp_path / "two") == expected
    (run,), (reference,) = ((tmp_path / place).iterdir() for place in ("two", "one"))
    evaluated = [[r["eval_loss"] for r in support.records(place) if "eval_loss" in r] for place in (reference, run)]
    assert evaluated[1] == pytest.approx(evaluated[0], abs=1e-4) and len(evaluated[0]) == 2
    mine, theirs = (support.weights(place / "checkpoint-8") for place in (reference, run))
    assert {k: v.shape for k, v in mine.items()} == {k: v.shape for k, v in theirs.items()}
    assert all((mine[k] - theirs[k]).abs().max() < 2e-3 for k in mine)
    shutil.rmtree(run / "checkpoint-8")
    for processes in (2, 4, 1):
        place = tmp_path / f"on-{processes}"
        shutil.copytree(run, place / run.name)
        launcher = [*TWO[:-1], str(processes)]
        told = finish(
            start(launcher, ["swift.cli", "sft", "--resume_from_checkpoint", "auto", "--output_dir", str(place)])
        )
        assert ("is converted for" in told) == (processes != 2)
        assert losses(place) == expected
        again = support.weights(place / run.name / "checkpoint-8")
        assert all((mine[k] - again[k]).abs().max() < 2e-3 for k in mine)
        assert not list((place / run.name).glob(".writing-*"))
