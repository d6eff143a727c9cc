"""LoRA and DoRA over quantized weights: the loss falls as on the plain model, a run that was stopped goes on as if it
weren't, and the adapter merges onto either base, each held against plain transformers and peft.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from swift.cli import main
from tests import tiny
from tests.export.test_merge import IDS, plain
from tests.export.test_quantize import SMALL, rows_in

KINDS = {
    "awq": ["--quant_method", "awq"],
    "gptq": ["--quant_method", "gptq"],
    "fp8": ["--quant_method", "fp8"],
    "gguf": ["--quant_method", "gguf", "--gguf_type", "Q4_0"],
    "bnb": ["--quant_method", "bnb"],
    "4 bits": ["--load_in_4bit", "true"],
    "8 bits": ["--load_in_8bit", "true"],
    "experts in 4 bits": ["--load_in_4bit", "true"],
    "fp8 in bits": ["--quant_method", "fp8"],
    "torchao in 8 bits": ["--quant_method", "torchao", "--quant_bits", 8],
    "torchao in 4 bits": ["--quant_method", "torchao", "--quant_bits", 4],
}
RUN = ["--max_steps", 6, "--save_steps", 3, "--logging_steps", 1, "--learning_rate", 5e-3, "--add_version", "false"]
RUN += ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 1, "--split_dataset_ratio", 0]
FAST = [("awq", "false"), ("8 bits", "true"), ("experts in 4 bits", "false")]
SLOW = [(kind, dora) for kind in KINDS for dora in ("false", "true")]
SLOW = [case for case in SLOW if case not in FAST and case != ("experts in 4 bits", "true")]


def swift(*words) -> None:
    assert main([str(word) for word in words]) == 0


def quantized(folder: Path, base: Path, kind: str) -> tuple[Path, list]:
    """(model to train on, options that quantize while it is loaded)."""
    if "bits" in kind:
        return base, KINDS[kind]
    rows = ["--dataset", rows_in(folder), *SMALL] if kind in ("awq", "gptq") else []
    swift("export", "--model", base, *KINDS[kind], *rows, "--output_dir", folder / "quantized")
    return next((folder / "quantized").glob("*.gguf"), folder / "quantized"), []


def trained(folder: Path, model: Path, name: str, *words) -> tuple[list[float], Path]:
    out = folder / name
    common = ["--dataset", rows_in(folder), "--torch_dtype", "float32", *RUN]
    swift("sft", "--model", model, "--output_dir", out, *common, *words)
    lines = [json.loads(line) for line in (out / "logging.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line], out / "checkpoint-6"


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


@pytest.mark.parametrize("kind, dora", [*FAST, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_training_resuming_and_both_merges(tmp_path, monkeypatch, kind, dora):
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))
    if "torchao" in kind:
        pytest.importorskip("torchao")
    base = tiny.checkpoint(tmp_path / "base", "qwen3_moe" if "experts" in kind else "qwen3", moe_intermediate_size=64)
    model, loading = quantized(tmp_path, base, kind)
    losses, adapter = trained(tmp_path, model, "run", *loading, "--use_dora", dora)
    on_plain, _ = trained(tmp_path, base, "plain", "--use_dora", dora)
    assert losses[-1] < losses[0] - 0.2 and losses == pytest.approx(on_plain, abs=0.06)
    if (kind, dora) not in FAST:
        goes_on_as_if_it_never_stopped(tmp_path, model, adapter, [*loading, "--use_dora", dora])

    words = ["--adapters", adapter, "--merge_lora", "true", "--merge_dtype", "float32"]
    swift("export", *words, "--model", base, "--output_dir", tmp_path / "full")
    swift("export", *words, "--merge_quantized_base", "true", "--output_dir", tmp_path / "dense")
    full, dense = logits(plain(tmp_path / "full")), logits(plain(tmp_path / "dense"))
    on_full = logits(PeftModel.from_pretrained(plain(base), adapter))
    torch.testing.assert_close(full, on_full, atol=2e-4, rtol=2e-4)
    if "bits" not in kind and kind != "bnb":
        swift("export", "--model", model, "--output_dir", tmp_path / "plainer", "--torch_dtype", "float32")
        on_dense = logits(PeftModel.from_pretrained(plain(tmp_path / "plainer"), adapter))
        assert (dense - on_dense).norm() / dense.norm() < 0.01
    assert 0.005 < (dense - full).norm() / full.norm() < 0.3, "they differ as the quantized weights do"
    other = json.loads((tmp_path / "full" / "export_report.json").read_text())["other"]
    assert 0 < other["divergence"] < 0.05 and 0.5 < other["agreement"] <= 1 and other["difference"] > 0


def goes_on_as_if_it_never_stopped(folder: Path, model: Path, whole: Path, words: list) -> None:
    half = folder / "half"
    half.mkdir()
    shutil.copytree(whole.parent / "checkpoint-3", half / "checkpoint-3")
    _, end = trained(folder, model, "half", *words, "--resume_from_checkpoint", half / "checkpoint-3")
    one, two = (load_file(path / "adapter_model.safetensors") for path in (whole, end))
    assert all(torch.equal(one[name], two[name]) for name in one)
