"""Every method on every kind of model: a directory that plain transformers reads and that answers nearly as the source
does, or a refusal before a weight is read.
"""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, GgufConfig

from swift.cli import main
from swift.models.gguf import as_directory
from tests import tiny, tiny_vlm
from tests.export.test_quantize import IDS, SIZES, SMALL, decoded, plain_directory, rows_in

METHODS = {
    "awq": [],
    "gptq": [],
    "fp8": [],
    "bnb": ["--quant_bits", "4"],
    "bnb 8": ["--quant_bits", "8"],
    "torchao": [],
    "gguf": ["--gguf_type", "Q8_0"],
}
FAMILIES = {
    "qwen3": {"head_dim": 128},  # plain transformers reads no other from a GGUF file
    "qwen3_moe": {"norm_topk_prob": True, "head_dim": 128, **SIZES["qwen3_moe"]},
    "gemma3_text": {"head_dim": 256, "tie_word_embeddings": True},
    "bamba": SIZES["bamba"],
    "llava": None,
    "gemma3": None,
}
# what has no file format, and what the message offers instead
REFUSED = {("bnb", "qwen3_moe"): "awq, gptq or fp8", ("bnb 8", "qwen3_moe"): "awq, gptq or fp8"}
REFUSED |= {("torchao", "qwen3_moe"): "awq", ("gguf", "bamba"): "awq, gptq, bnb or fp8"}
REFUSED |= {("gguf", family): "--mmproj" for family in ("llava", "gemma3")}
FAST = [("awq", "llava"), ("bnb", "qwen3_moe"), ("gguf", "gemma3_text"), ("gguf", "llava"), ("fp8", "gemma3")]
CASES = [(method, family) for method in METHODS for family in FAMILIES]


def case(method: str, family: str):
    return pytest.param(method, family, marks=() if (method, family) in FAST else pytest.mark.slow)


def source_of(folder: Path, family: str) -> Path:
    if FAMILIES[family] is None:
        return tiny_vlm.checkpoint(folder, family)
    return tiny.checkpoint(folder, family, **FAMILIES[family])


def logits(directory: Path, sees: bool) -> torch.Tensor:
    """By plain transformers."""
    auto = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    options = {}
    if files := list(directory.glob("*.gguf")):
        options = {"gguf_file": files[0].name, "quantization_config": GgufConfig(dequantize=True)}
    with torch.no_grad():
        return auto.from_pretrained(directory, dtype=torch.float32, **options).eval()(IDS).logits.float()


@pytest.mark.parametrize("method, family", [case(*names) for names in CASES])
def test_it_is_read_again_or_refused(tmp_path, monkeypatch, capfd, method, family):
    name = method.split()[0]
    if name == "torchao":
        pytest.importorskip("torchao")
    base, out, sees = source_of(tmp_path / "base", family), tmp_path / "out", FAMILIES[family] is None
    words = ["--quant_method", name, *METHODS[method], "--output_dir", str(out)]
    if name in ("awq", "gptq"):
        words += ["--dataset", str(rows_in(tmp_path)), *map(str, SMALL)]
    if (method, family) in REFUSED:
        monkeypatch.setattr("swift.models.load.load_model", None)
        assert main(["export", "--model", str(base), *words]) == 2
        assert REFUSED[method, family] in capfd.readouterr().err and not out.exists()
        return
    assert main(["export", "--model", str(base), *words]) == 0
    report = json.loads((out / "quantization_report.json").read_text())
    assert (
        report["quantized_share"] > 0.02
        and report["divergence"] < 0.02
        and "| perplexity |" in (out / "README.md").read_text()
    )
    source = logits(base, sees)
    if (method, family) == ("gguf", "qwen3_moe"):  # transformers doesn't read the experts' size from a GGUF file
        monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))
        out = as_directory(next(out.glob("*.gguf")))
    if name in ("awq", "gptq"):
        out = plain_directory(tmp_path / "plain", out, decoded(out)[0])
    assert 1e-6 < (logits(out, sees) - source).norm() / source.norm() < (0.4 if name == "gptq" else 0.35)
