"""Adapters in plain peft's format: what stands in the directory is what peft computes with, from either format."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from swift import runs
from swift.cli import main
from tests import tiny
from tests.export.test_merge import IDS, adapter_of, plain


def export(*words) -> int:
    return main(["export", "--to_peft_format", "true", *map(str, words)])


def in_their_format(adapter: Path, folder: Path, name: str = "default", **settings) -> Path:
    """The adapter as ms-swift's own tuner saves it: names of the model, with the adapter's name in them."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"swift_type": "LORA", "lora_dtype": None, "use_qa_lora": False, "model_key_mapping": None, **settings}
    below = folder / name
    below.mkdir(parents=True)
    (below / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for key, tensor in load_file(adapter / "adapter_model.safetensors").items():
        key = key.removeprefix("base_model.model.")
        for part in ("lora_A", "lora_B", "lora_magnitude_vector"):
            key = key.replace(part, f"{part}.{name}")
        tensors[key] = tensor
    save_file(tensors, below / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize("theirs", [False, True])
@pytest.mark.parametrize("family, options", [("qwen3", dict(use_dora=True)), ("qwen3_moe", {})])
def test_peft_reads_the_same_adapter(tmp_path, family, options, theirs):
    base = tiny.checkpoint(tmp_path / "base", family)
    adapter = adapter_of(base, tmp_path / "adapter", **options)
    (adapter / "optimizer.pt").write_bytes(b"x")
    source = in_their_format(adapter, tmp_path / "theirs") if theirs else adapter
    assert export("--adapters", source, "--output_dir", tmp_path / "out") == 0
    own, new = (load_file(path / "adapter_model.safetensors") for path in (adapter, tmp_path / "out"))
    assert own.keys() == new.keys() and all(torch.equal(own[name], new[name]) for name in own)
    assert "swift_type" not in (tmp_path / "out" / "adapter_config.json").read_text()
    assert not (tmp_path / "out" / "optimizer.pt").exists() and runs.verify_dir(tmp_path / "out") == []
    logits = [PeftModel.from_pretrained(plain(base), path).eval()(IDS).logits for path in (adapter, tmp_path / "out")]
    assert torch.equal(*logits) and not torch.allclose(logits[0], plain(base)(IDS).logits, atol=1e-3)


def test_an_adapter_in_their_format_is_not_mistaken_for_pefts(tmp_path, capfd):
    base = tiny.checkpoint(tmp_path / "base")
    theirs = in_their_format(adapter_of(base, tmp_path / "adapter"), tmp_path / "theirs")
    for path in (theirs, theirs / "default"):
        assert main(["export", "--adapters", str(path), "--merge_lora", "true"]) == 3
        assert f"swift export --adapters {theirs} --to_peft_format true" in capfd.readouterr().err


@pytest.mark.parametrize(
    "settings, says", [({"swift_type": "LONGLORA"}, "LONGLORA"), ({"use_qa_lora": True}, "qa_lora")]
)
def test_what_peft_has_no_counterpart_of_is_refused(tmp_path, settings, says, capfd):
    base = tiny.checkpoint(tmp_path / "base")
    theirs = in_their_format(adapter_of(base, tmp_path / "adapter"), tmp_path / "theirs", **settings)
    assert export("--adapters", theirs, "--output_dir", tmp_path / "out") == 2
    assert says in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_another_base_is_refused(tmp_path, capfd):
    base, other = tiny.checkpoint(tmp_path / "base"), tiny.checkpoint(tmp_path / "other", hidden_size=128)
    theirs = in_their_format(adapter_of(base, tmp_path / "adapter"), tmp_path / "theirs")
    assert export("--adapters", theirs, "--model", other, "--output_dir", tmp_path / "out") == 10
    said = capfd.readouterr().err
    assert not (tmp_path / "out").exists() and str(other) in said and str(theirs) in said and ".writing" not in said
    assert export("--adapters", theirs, theirs, "--model", base) == 2
    assert export("--adapters", theirs, "--model", base, "--merge_lora", "true") == 2
