"""Block-FP8 checkpoints: dequantized to what their numbers say, saved again as plain weights."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from swift.config.model import ModelOptions, QuantizationOptions
from swift.hub import check_model_files
from swift.models.device import pick_device
from swift.models.load import load_model
from swift.models.plan import plan_loading
from tests import tiny


def load(path, dtype="float32", training=True, **options):
    files = check_model_files(path)
    plan = plan_loading(
        ModelOptions(torch_dtype=dtype, **options), QuantizationOptions(), files, pick_device(True), training
    )
    return load_model(path, plan), plan


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_weights_are_those_of_the_blocks(tmp_path, family):
    path = tiny.fp8_checkpoint(tmp_path / "fp8", family)
    model, plan = load(path)
    assert plan.dequantize and "fp8" in plan.reasons["quantization"]
    stored = load_file(path / "model.safetensors")
    wanted = {
        name: tiny.dequantize_blocks(tensor, stored[f"{name}_scale_inv"])
        for name, tensor in stored.items()
        if tensor.dtype == torch.float8_e4m3fn
    }
    state = model.state_dict()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, tensor in wanted.items():
        layer, _, rest = name.partition(".experts.")
        if not rest:
            assert torch.equal(state[name], tensor), name
            continue
        number, part, _ = rest.split(".")
        fused = state[f"{layer}.experts.{'down_proj' if part == 'down_proj' else 'gate_up_proj'}"][int(number)]
        half = {"down_proj": fused, "gate_proj": fused[: len(fused) // 2], "up_proj": fused[len(fused) // 2 :]}[part]
        assert torch.equal(half, tensor), name


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_saving_writes_plain_weights_in_the_hubs_layout(tmp_path, family):
    path = tiny.fp8_checkpoint(tmp_path / "fp8", family)
    model, _ = load(path, "bfloat16")
    model.save_pretrained(tmp_path / "plain")
    names = load_file(tmp_path / "plain" / "model.safetensors")
    assert set(names) == {n for n in load_file(path / "model.safetensors") if not n.endswith("_scale_inv")}
    assert {tensor.dtype for tensor in names.values()} == {torch.bfloat16}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype=torch.bfloat16)
    assert getattr(again.config, "quantization_config", None) is None
    for (name, a), (_, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_a_size_that_is_no_multiple_of_the_block(tmp_path):
    """192 = 1.5 blocks of 128: plain transformers reads two blocks of 96."""
    path = tiny.fp8_checkpoint(tmp_path / "odd", "llama", hidden_size=192, intermediate_size=320, head_dim=48)
    model, _ = load(path)
    stored = load_file(path / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(model.state_dict()[name], tiny.dequantize_blocks(stored[name], stored[f"{name}_scale_inv"]))
