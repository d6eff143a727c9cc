"""What transformers' reader leaves out of a GGUF file: heads of their own size, scaled positions."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from swift.cli import main
from swift.models.gguf import as_directory
from swift.models.gguf_config import llama3_scaling
from tests import tiny

IDS = torch.arange(5, 105)[None]
LLAMA3 = dict(
    rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)


@pytest.mark.parametrize(
    "family, rope",
    [
        ("gemma3_text", None),
        ("qwen3", None),
        ("llama", LLAMA3),
        ("llama", dict(rope_type="linear", factor=4.0)),
        ("qwen2", dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32)),
    ],
)
def test_the_directory_computes_what_the_source_does(tmp_path, monkeypatch, family, rope):
    monkeypatch.setenv("SWIFT_CACHE", str(tmp_path / "cache"))
    changes = {} if rope is None else {"rope_parameters": {"rope_theta": 1e4, **rope}}
    if family == "gemma3_text":
        changes = {"query_pre_attn_scalar": 16, "tie_word_embeddings": True}
    base = tiny.checkpoint(tmp_path / "base", family, **changes)
    words = ["--quant_method", "gguf", "--gguf_type", "F32", "--output_dir", str(tmp_path / "out")]
    assert main(["export", "--model", str(base), *words]) == 0
    made = as_directory(next((tmp_path / "out").glob("*.gguf")))
    with torch.no_grad():
        one, two = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32)(IDS).logits for p in (base, made))
    assert (one - two).norm() / one.norm() < 0.01, "bfloat16's rounding and no more"


@pytest.mark.parametrize(
    "size, theta, factor, high, original", [(128, 5e5, 8, 4, 8192), (64, 5e5, 32, 4, 8192), (128, 1e5, 3, 7.5, 2048)]
)
def test_llama3s_settings_are_found_from_the_divisors(size, theta, factor, high, original):
    rope = {**LLAMA3, "factor": factor, "high_freq_factor": high, "original_max_position_embeddings": original}
    config = tiny.config("llama", head_dim=size, rope_parameters={"rope_theta": theta, **rope})
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device=torch.device("cpu"))
    plain = 1 / theta ** (torch.arange(0, size, 2) / size)
    found = llama3_scaling(plain / scaled, theta)
    assert found["factor"] == pytest.approx(factor) and found["high_freq_factor"] == pytest.approx(high, rel=1e-2)
    assert found["original_max_position_embeddings"] == pytest.approx(original, rel=1e-2)


def test_divisors_that_are_nothing_of_llama3s_are_refused():
    assert llama3_scaling(torch.linspace(1, 6, 32), 1e4) is None
