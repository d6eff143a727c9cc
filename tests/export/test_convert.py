"""Plain copies (another dtype, other shards, plain weights of a packed checkpoint) and merges onto quantized bases."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from swift import runs
from swift.cli import main
from tests import tiny
from tests.export.test_merge import adapter_of
from tests.export.test_quantize import IDS, SMALL, logits_by_swift, plain, rows_in


def export(*words) -> int:
    return main(["export", *map(str, words)])


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_another_dtype_in_small_shards(tmp_path, family):
    base = tiny.checkpoint(tmp_path / "base", family)
    out = tmp_path / "out"
    words = ["--torch_dtype", "bfloat16", "--max_shard_size", "100KB"]
    assert export("--model", base, "--output_dir", out, *words) == 0
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 150_000 for file in files)
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    source = load_file(base / "model.safetensors")
    assert stored.keys() == source.keys()
    assert all(torch.equal(tensor, source[name].bfloat16()) for name, tensor in stored.items())
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    report = json.loads((out / "export_report.json").read_text())
    assert 0 < report["rounding"] < 0.05 and report["reload_difference"] < 1e-4
    assert runs.verify_dir(out) == []
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(base).chat_template


def test_an_fp8_checkpoint_becomes_plain(tmp_path):
    base = tiny.fp8_checkpoint(tmp_path / "base")
    assert export("--model", base, "--output_dir", tmp_path / "out") == 0
    stored, packed = load_file(tmp_path / "out" / "model.safetensors"), load_file(base / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    back = tiny.dequantize_blocks(packed[name], packed[f"{name}_scale_inv"])
    torch.testing.assert_close(stored[name].float(), back, rtol=2**-8, atol=0)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


@pytest.mark.parametrize("bits", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_a_bitsandbytes_checkpoint_becomes_plain(tmp_path, bits):
    base = tiny.checkpoint(tmp_path / "base", "qwen3")
    words = ["--quant_method", "bnb", "--quant_bits", bits, "--output_dir", tmp_path / "q"]
    assert export("--model", base, *words) == 0
    assert export("--model", tmp_path / "q", "--output_dir", tmp_path / "out", "--torch_dtype", "float32") == 0
    dense, packed = plain(tmp_path / "out"), plain(tmp_path / "q")
    assert (dense - packed).norm() / packed.norm() < (1e-3 if bits == 4 else 0.02)  # 8 bits round the inputs too
    assert (dense - plain(base)).norm() / dense.norm() > 1e-3


@pytest.mark.parametrize("method", ["fp8", "bnb"])
def test_neither_fp8_nor_bitsandbytes_is_made_of_fp8(tmp_path, capfd, method):
    base = tiny.fp8_checkpoint(tmp_path / "base")
    assert export("--model", base, "--quant_method", method, "--output_dir", tmp_path / "out") == 2
    assert "already quantized (fp8)" in capfd.readouterr().err and not (tmp_path / "out").exists()


def test_an_adapter_goes_back_into_block_fp8(tmp_path):
    """The guide's FP8 release: merged in bfloat16, then the same layout again."""
    base = tiny.fp8_checkpoint(tmp_path / "base")
    assert export("--model", base, "--output_dir", tmp_path / "dense") == 0
    adapter = adapter_of(tmp_path / "dense", tmp_path / "adapter")
    words = ["--model", base, "--adapters", adapter]
    assert export(*words, "--merge_lora", "true", "--output_dir", tmp_path / "merged") == 0
    assert export(*words, "--quant_method", "fp8", "--output_dir", tmp_path / "out") == 0
    new, old = (load_file(path / "model.safetensors") for path in (tmp_path / "out", base))
    assert new.keys() == old.keys() and all(new[name].dtype == old[name].dtype for name in old)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["weight_block_size"] == [128, 128] and config["quant_method"] == "fp8"
    merged = plain(tmp_path / "merged")
    change = (merged - plain(tmp_path / "dense")).norm() / merged.norm()
    rounding = (logits_by_swift(tmp_path / "out") - merged).norm() / merged.norm()
    assert rounding < 0.1 < change


@pytest.mark.parametrize("method", ["awq", pytest.param("gptq", marks=pytest.mark.slow)])
def test_a_merge_onto_a_quantized_base_is_only_done_when_asked(tmp_path, method, capfd):
    base = tiny.checkpoint(tmp_path / "base", "qwen3")
    rows = ["--dataset", rows_in(tmp_path), *SMALL]
    assert export("--model", base, "--quant_method", method, *rows, "--output_dir", tmp_path / "q") == 0
    adapter = adapter_of(base, tmp_path / "adapter")
    words = ["--adapters", adapter, "--merge_lora", "true", "--output_dir", tmp_path / "out", "--model"]
    assert export(*words, tmp_path / "q") == 2
    assert "--merge_quantized_base true" in capfd.readouterr().err and not (tmp_path / "out").exists()
    assert export(*words, tmp_path / "q", "--merge_quantized_base", "true") == 0
    assert export("--model", tmp_path / "q", "--output_dir", tmp_path / "dense") == 0
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", dtype=torch.float32)
    with torch.no_grad():
        tuned = PeftModel.from_pretrained(model, adapter).eval()(IDS).logits
    assert (plain(tmp_path / "out") - tuned).norm() / tuned.norm() < 0.02


def test_what_it_holds_itself_is_no_place_for_the_copy(tmp_path, capfd):
    base = tiny.checkpoint(tmp_path / "base")
    assert export("--model", base, "--output_dir", base) == 2
    assert export("--model", base) == 2
    assert "nothing to export" in capfd.readouterr().err
