"""Adapters: the right checkpoint of a run, loading as plain peft does, another base refused."""

import pytest
import torch
from peft import PeftModel

from swift import runs
from swift.config.tuner import TunerOptions
from swift.errors import CheckpointError, ModelFileError
from swift.models.adapters import find_checkpoint, load_adapter, load_adapters
from swift.models.tuners import apply_tuner
from tests import tiny

IDS = torch.tensor([[5, 9, 200, 31]])


def adapter(path, family="llama", seed=0, **options):
    model = apply_tuner(tiny.model(family), TunerOptions(**options))
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(path)
    return path


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_loads_as_peft_does(tmp_path, family):
    path = adapter(tmp_path / "a", family)
    ours = load_adapter(tiny.model(family), path)
    theirs = PeftModel.from_pretrained(tiny.model(family), path).eval()
    assert torch.equal(ours(IDS).logits, theirs(IDS).logits)
    assert not any(p.requires_grad for p in ours.parameters())
    assert any(p.requires_grad for p in load_adapter(tiny.model(family), path, trainable=True).parameters())


def test_several_add_up(tmp_path):
    one, two = adapter(tmp_path / "1", seed=1), adapter(tmp_path / "2", seed=2)
    both = load_adapters(tiny.model(), [one, two])
    step = PeftModel.from_pretrained(tiny.model(), one).merge_and_unload()
    step = PeftModel.from_pretrained(step, two).merge_and_unload()
    torch.testing.assert_close(both(IDS).logits, step(IDS).logits)


@pytest.mark.parametrize("family, changes", [("qwen3_moe", {}), ("llama", dict(hidden_size=128)), ("gpt2", {})])
def test_another_base_is_named(tmp_path, family, changes):
    path = adapter(tmp_path / "a")
    base = tiny.model("llama", **changes) if family == "llama" else tiny.model("qwen3_moe")
    with pytest.raises(CheckpointError) as caught:
        load_adapter(base, path)
    assert "another base" in str(caught.value) or "doesn't fit" in str(caught.value)


def run_of(tmp_path, steps):
    run = tmp_path / "v0-20250101-000000"
    for step in steps:
        folder = run / f"checkpoint-{step}"
        adapter(folder, seed=step)
        runs.write_manifest(folder, step=step)
    return run


def test_a_run_means_its_newest_complete_checkpoint(tmp_path):
    run = run_of(tmp_path, [5, 10, 20])
    assert find_checkpoint(run).name == "checkpoint-20"
    assert find_checkpoint(tmp_path).name == "checkpoint-20"
    weights = run / "checkpoint-20" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert find_checkpoint(run).name == "checkpoint-10"
    (run / "checkpoint-10" / "manifest.json").unlink()
    assert find_checkpoint(run).name == "checkpoint-5"
    with pytest.raises(CheckpointError):
        find_checkpoint(run / "checkpoint-20")


def test_a_directory_that_is_neither(tmp_path):
    with pytest.raises(ModelFileError):
        find_checkpoint(tmp_path)
