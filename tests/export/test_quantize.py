"""Quantized exports: what stands in the files, read by a decoder written here from the formats' descriptions, is a
model close to its source, and what swift loads is exactly that model.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from swift import runs
from swift.cli import main
from swift.config.model import ModelOptions, QuantizationOptions
from swift.hub import check_model_files
from swift.models.device import pick_device
from swift.models.load import load_model
from swift.models.plan import plan_loading
from tests import tiny
from tests.export.cut import cut_once
from tests.export.test_merge import adapter_of

IDS = torch.tensor([[5, 9, 200, 31, 77, 12, 400, 3]])
SIZES = {"qwen3_moe": dict(moe_intermediate_size=64), "bamba": dict(
    attn_layer_indices=[1], mamba_n_heads=8, mamba_d_head=16, mamba_d_state=16, mamba_n_groups=1
)}  # fmt: skip
SMALL = ("--quant_n_samples", 6, "--max_length", 64)


def rows_in(folder: Path, count: int = 60) -> Path:
    pairs = [("Who are you?", "I am an assistant."), ("你好", "你好，我是助手。"), ("Write", "The capital is Paris.")]
    file = folder / "rows.jsonl"
    lines = [json.dumps({"query": q, "response": a}) for q, a in pairs * (count // 3)]
    file.write_text("\n".join(lines) + "\n")
    return file


def export(*words) -> int:
    return main(["export", *map(str, words)])


def exported(folder: Path, family: str, method: str, *words) -> tuple[Path, Path]:
    base = tiny.checkpoint(folder / "base", family, **SIZES.get(family, {}))
    out = folder / "out"
    options = ["--quant_method", method, "--dataset", rows_in(folder), "--output_dir", out, *SMALL, *words]
    assert export("--model", base, *options) == 0
    return base, out


def bits_of(words: torch.Tensor, bits: int) -> list[torch.Tensor]:
    return [(words >> (bits * i)) & (2**bits - 1) for i in range(32 // bits)]


def decode_awq(t: dict, group: int) -> torch.Tensor:
    """AutoAWQ's GEMM layout, nibble by nibble: nibble i of a word belongs to output 8 * word + (0 2 4 6 1 3 5 7)[i]."""

    def spread(words):
        out = torch.empty(words.shape[0], words.shape[1] * 8, dtype=torch.int32)
        for output, nibble in zip((0, 2, 4, 6, 1, 3, 5, 7), bits_of(words, 4), strict=True):
            out[:, output::8] = nibble
        return out

    codes, zeros = spread(t["qweight"]), spread(t["qzeros"])
    of = torch.arange(len(codes)) // group
    return ((codes - zeros[of]).float() * t["scales"].float()[of]).T


def decode_gptq(t: dict, bits: int) -> torch.Tensor:
    """AutoGPTQ's layout: word r, bit field i is input (32 / bits) r + i; a stored zero point is one less than it is."""
    per = 32 // bits
    codes = torch.empty(t["qweight"].shape[0] * per, t["qweight"].shape[1], dtype=torch.int32)
    zeros = torch.empty(t["qzeros"].shape[0], t["qzeros"].shape[1] * per, dtype=torch.int32)
    for i, (code, zero) in enumerate(zip(bits_of(t["qweight"], bits), bits_of(t["qzeros"], bits), strict=True)):
        codes[i::per], zeros[:, i::per] = code, zero + 1
    of = t["g_idx"].long()
    return ((codes - zeros[of]).float() * t["scales"].float()[of]).T


def decoded(directory: Path) -> tuple[dict, int]:
    """(the plain tensors that a packed directory stands for, how many matrices were packed)."""
    config = json.loads((directory / "config.json").read_text())["quantization_config"]
    stored = load_file(directory / "model.safetensors")
    plain = {n: t for n, t in stored.items() if n.rpartition(".")[2] not in ("qweight", "qzeros", "scales", "g_idx")}
    layers = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    for name in layers:
        parts = {n.rpartition(".")[2]: t for n, t in stored.items() if n.rpartition(".")[0] == name}
        awq = config["quant_method"] == "awq"
        weight = decode_awq(parts, config["group_size"]) if awq else decode_gptq(parts, config["bits"])
        plain[f"{name}.weight"] = weight
    return plain, len(layers)


def plain_directory(folder: Path, source: Path, tensors: dict) -> Path:
    """A directory that plain transformers reads, with these weights."""
    from safetensors.torch import save_file

    config = json.loads((source / "config.json").read_text())
    del config["quantization_config"]
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits_by_swift(directory: Path, training: bool = False) -> torch.Tensor:
    options = ModelOptions(torch_dtype="float32")
    plan = plan_loading(options, QuantizationOptions(), check_model_files(directory), pick_device(True), training)
    with torch.no_grad():
        return load_model(directory, plan)(IDS).logits


def plain(directory: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()(IDS).logits


@pytest.mark.parametrize(
    "family, method, words, matrices",
    [
        ("llama", "awq", (), 14),
        ("qwen3_moe", "awq", (), 2 * (4 + 4 * 3)),
        ("gemma3_text", "awq", ("--quant_search", "true"), 14),
        ("bamba", "awq", (), 4 + 3 + 3 + 1),
        ("qwen3", "gptq", (), 14),
        ("qwen3_moe", "gptq", ("--quant_bits", 8), 32),
    ],
)
def test_the_files_are_in_the_formats_layout(tmp_path, family, method, words, matrices):
    base, out = exported(tmp_path, family, method, *words)
    tensors, packed = decoded(out)
    assert packed == matrices
    assert set(tensors) == set(load_file(base / "model.safetensors")), "the checkpoint's own names"
    reference = plain(plain_directory(tmp_path / "plain", out, tensors))
    torch.testing.assert_close(logits_by_swift(out), reference, atol=1e-4, rtol=1e-4)
    source = plain(base)
    error = (reference - source).norm() / source.norm()
    assert 1e-4 < error < 0.35, "close to the source, but not the source"
    assert runs.verify_dir(out) == [] and not list(tmp_path.glob(f"{runs.STAGING_PREFIX}*"))
    report = json.loads((out / "quantization_report.json").read_text())
    assert report["quantized_share"] > 0.4 and abs(report["perplexity_increase"]) < 0.1
    assert "| perplexity |" in (out / "README.md").read_text()
    assert AutoTokenizer.from_pretrained(out).chat_template == AutoTokenizer.from_pretrained(base).chat_template


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_fp8_is_read_by_plain_transformers(tmp_path, family):
    base, out = exported(tmp_path, family, "fp8")
    stored, source = load_file(out / "model.safetensors"), load_file(base / "model.safetensors")
    quantized = [name for name, tensor in stored.items() if tensor.dtype == torch.float8_e4m3fn]
    assert len(quantized) == {"qwen3": 14, "qwen3_moe": 32}[family]
    for name in quantized:
        back = tiny.dequantize_blocks(stored[name], stored[f"{name}_scale_inv"])
        torch.testing.assert_close(back, source[name], rtol=0.07, atol=source[name].abs().max().item() / 448)
    source = plain(base)
    assert 1e-4 < (plain(out) - source).norm() / source.norm() < 0.1
    torch.testing.assert_close(logits_by_swift(out), plain(out), atol=0.02, rtol=0.02)


def test_blocks_of_fp8_divide_every_matrix(tmp_path):
    """576 and 192, as SmolLM2 has: with blocks of 128 plain transformers reads other weights or none."""
    base, out = tiny.checkpoint(tmp_path / "base", "llama", hidden_size=576, head_dim=96, intermediate_size=320), "out"
    assert export("--model", base, "--quant_method", "fp8", "--output_dir", tmp_path / out) == 0
    config = json.loads((tmp_path / out / "config.json").read_text())["quantization_config"]
    assert config["weight_block_size"] == [64, 64]
    assert 1e-4 < (plain(tmp_path / out) - plain(base)).norm() / plain(base).norm() < 0.1


def test_bitsandbytes_layers_of_odd_shapes_are_read_back(tmp_path):
    _, out = exported(tmp_path, "bamba", "bnb")
    report = json.loads((out / "quantization_report.json").read_text())
    assert report["quantized_share"] > 0.3 and abs(report["perplexity_increase"]) < 0.1


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes_is_read_by_plain_transformers(tmp_path, bits):
    base, out = exported(tmp_path, "qwen3", "bnb", "--quant_bits", bits)
    model = AutoModelForCausalLM.from_pretrained(out)
    kinds = {type(module).__name__ for module in model.modules()}
    assert {4: "Linear4bit", 8: "Linear8bitLt"}[bits] in kinds
    with torch.no_grad():
        logits = model(IDS).logits.float()
    assert 1e-4 < (logits - plain(base)).norm() / plain(base).norm() < 0.25


def test_a_cut_run_goes_on_and_gives_the_same_files(tmp_path, monkeypatch):
    base, out = exported(tmp_path, "qwen3_moe", "awq")
    words = ["--model", base, "--quant_method", "awq", "--dataset", tmp_path / "rows.jsonl", *SMALL]
    seen = cut_once(monkeypatch)
    again = tmp_path / "again"
    assert export(*words, "--output_dir", again) != 0
    assert not again.exists()
    assert export(*words, "--output_dir", again) == 0
    assert seen == [0, 1, 1], "the first layer was taken from the run that was cut"
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_an_adapter_is_merged_in_full_precision_first(tmp_path):
    base = tiny.checkpoint(tmp_path / "base", "qwen3")
    adapter = adapter_of(base, tmp_path / "adapter")
    words = ["--dataset", rows_in(tmp_path), *SMALL, "--quant_method", "awq"]
    assert export("--adapters", adapter, *words, "--output_dir", tmp_path / "out") == 0
    assert export("--adapters", adapter, "--merge_lora", "true", "--output_dir", tmp_path / "merged") == 0
    merged = plain(tmp_path / "merged")
    error = (logits_by_swift(tmp_path / "out") - merged).norm() / merged.norm()
    assert error < 0.25 < (merged - plain(base)).norm() / merged.norm()
    manifest = json.loads((tmp_path / "out" / runs.MANIFEST).read_text())
    assert manifest["base"] == str(base) and manifest["adapters"] == [str(adapter)]


def test_a_result_that_is_too_far_off_is_refused(tmp_path, capfd):
    base = tiny.checkpoint(tmp_path / "base", "llama")
    words = ["--model", base, "--quant_method", "gptq", "--quant_bits", 2, "--dataset", rows_in(tmp_path), *SMALL]
    code = export(*words, "--output_dir", tmp_path / "out", "--max_ppl_increase", 0)
    err = capfd.readouterr().err
    assert (code, (tmp_path / "out").exists()) == ((11, False) if "perplexity rose" in err else (0, True))


@pytest.mark.parametrize(
    "words, says",
    [
        (["--quant_method", "awq", "--quant_bits", 8], "--quant_bits 4"),
        (["--quant_method", "gptq", "--quant_bits", 3], "--quant_bits 2 or 4 or 8"),
        (["--quant_method", "hqq"], "awq"),
        (["--quant_bits", 4], "--quant_method"),
        (["--quant_method", "awq", "--dataset"], "no calibration rows"),
        (["--quant_method", "awq", "--group_size", 48], "--group_size 64 or 32"),
        (["--quant_method", "fp8", "--group_size", 64], "--group_size"),
    ],
)
def test_what_can_not_work_is_refused_before_any_work(tmp_path, capfd, words, says):
    base = tiny.checkpoint(tmp_path / "base", "llama")
    rows = ["--dataset", rows_in(tmp_path)]
    if words[-1] == "--dataset":
        words, rows = words[:-1], []
    assert export("--model", base, *words, *rows, "--output_dir", tmp_path / "out") == 2
    assert says in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_quantized_source_is_refused(tmp_path, capfd):
    _, out = exported(tmp_path, "llama", "awq")
    words = ["--quant_method", "gptq", "--dataset", tmp_path / "rows.jsonl", "--output_dir", tmp_path / "twice"]
    assert export("--model", out, *words) == 2
    assert "already quantized (awq)" in capfd.readouterr().err


def test_torchao_is_read_by_plain_transformers(tmp_path):
    pytest.importorskip("torchao")
    base, out = exported(tmp_path, "qwen3", "torchao")
    model = AutoModelForCausalLM.from_pretrained(out)
    kinds = [type(p).__name__ for p in model.parameters()]
    assert kinds.count("Int8Tensor") == 14
    with torch.no_grad():
        logits = model(IDS).logits.float()
    assert 1e-4 < (logits - plain(base)).norm() / plain(base).norm() < 0.05
    assert (out / "model.safetensors").stat().st_size < 0.75 * (base / "model.safetensors").stat().st_size


def test_a_missing_torchao_and_its_4_bits_are_said(tmp_path, capfd, monkeypatch):
    base = tiny.checkpoint(tmp_path / "base", "llama")
    words = ["--model", base, "--quant_method", "torchao", "--output_dir", tmp_path / "out"]
    assert export(*words, "--quant_bits", 4) == 2
    assert "mslk" in capfd.readouterr().err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert export(*words) != 0
    assert "pip install 'torchao" in capfd.readouterr().err
