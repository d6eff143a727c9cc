"""Fused experts in 8 and 4 bits: as near to the plain ones as bitsandbytes rounds, really small, trainable."""

from __future__ import annotations

import pytest
import torch

from swift.config.model import ModelOptions, QuantizationOptions
from swift.config.tuner import TunerOptions
from swift.hub import check_model_files
from swift.models.adapted import AdaptedExperts
from swift.models.device import pick_device
from swift.models.load import load_model
from swift.models.packed import PackedWeight, pack
from swift.models.plan import plan_loading
from swift.models.quantized import quantized_weights, weight_bytes
from swift.models.tuners import apply_tuner
from tests import tiny

bnb = pytest.importorskip("bitsandbytes")


def experts(dtype=torch.float32, shape=(4, 48, 64)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype) * 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eight_bits_are_rounded_to_the_nearest_step(dtype):
    plain = experts(dtype, (3, 16, 192))  # 192 columns: groups of 64
    packed = pack(plain, "int8")
    assert packed.shape == plain.shape and packed.dtype == dtype and packed.codes.dtype == torch.int8
    step = plain.float().unflatten(-1, (-1, 64)).abs().amax(-1, keepdim=True) / 127
    off = (packed.plain().float() - plain.float()).unflatten(-1, (-1, 64)).abs()
    rounding = 0.51 if dtype == torch.float32 else 1.2  # bfloat16 keeps 8 bits of the product
    assert (off <= step * rounding + step * 127 * (2**-8 if dtype == torch.bfloat16 else 2**-9)).all()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits_are_those_of_bitsandbytes(kind):
    plain = experts()
    packed = pack(plain, kind)
    for mine, one in zip(packed.plain(), plain, strict=True):
        theirs = bnb.functional.dequantize_4bit(*bnb.functional.quantize_4bit(one, blocksize=64, quant_type=kind))
        torch.testing.assert_close(mine, theirs, rtol=2**-8, atol=1e-7)


def test_blocks_of_fp8_are_those_of_the_checkpoints():
    plain = experts(shape=(3, 200, 192))
    packed = pack(plain, "fp8")
    for one, codes, scales in zip(plain, packed.codes, packed.scales, strict=True):
        torch.testing.assert_close(tiny.dequantize_blocks(codes, scales), pack(one, "fp8").plain())
        torch.testing.assert_close(pack(one, "fp8").plain(), one, rtol=0.07, atol=one.abs().max().item() / 448)


def test_four_bit_integers_span_every_group():
    plain = experts(shape=(2, 16, 192)) + 0.1
    off = (pack(plain, "int4").plain() - plain).unflatten(-1, (-1, 64)).abs()
    grouped = plain.unflatten(-1, (-1, 64))
    step = (grouped.amax(-1, keepdim=True) - grouped.amin(-1, keepdim=True)) / 15
    assert (off <= step * 0.55 + 0.3 * 2**-8).all() and off.max() > step.max() * 0.4


@pytest.mark.parametrize("columns", [16, 32, 64, 96])
def test_four_bits_are_as_near_for_narrow_experts(columns):
    plain = experts(shape=(2, 64, columns))
    assert (pack(plain, "nf4").plain() - plain).norm() < 0.11 * plain.norm()


@pytest.mark.parametrize("kind", ["int8", "nf4", "int4", "fp8"])
def test_picking_and_turning_stay_packed_and_give_the_plain_numbers(kind):
    packed = pack(experts(), kind)
    plain, x = packed.plain(), torch.randn(5, 64, requires_grad=True)
    one = packed[torch.tensor(2)]
    assert isinstance(one, PackedWeight) and isinstance(one.t(), PackedWeight)
    torch.testing.assert_close(one.plain(), plain[2])
    few = packed[torch.tensor([3, 0])]
    assert isinstance(few, PackedWeight) and torch.equal(few.plain(), plain[[3, 0]])
    assert torch.equal(packed.transpose(1, 2).plain(), plain.transpose(1, 2))
    result = torch.nn.functional.linear(x, packed[1])
    torch.testing.assert_close(result, x @ plain[1].T)
    result.sum().backward()
    torch.testing.assert_close(x.grad, plain[1].sum(0).expand(5, -1))
    assert torch.equal(packed.to(torch.bfloat16).plain(), packed.to(torch.bfloat16).plain())
    torch.testing.assert_close(packed + 1, plain + 1)


def quantized(path, bits, dtype="bfloat16", method="bnb", **options):
    files = check_model_files(path)
    options = QuantizationOptions(quant_method=method, quant_bits=bits, **options)
    plan = plan_loading(ModelOptions(torch_dtype=dtype), options, files, pick_device(True), training=True)
    return load_model(path, plan), plan


@pytest.mark.parametrize(
    "method, bits, share, most",
    [
        ("bnb", 8, 0.56, 0.05),
        ("bnb", 4, 0.31, 0.35),
        ("fp8", 8, 0.51, 0.1),
        ("torchao", 8, 0.56, 0.05),
        ("torchao", 4, 0.34, 0.35),
    ],
)
def test_a_mixture_of_experts_really_shrinks_and_answers_alike(tmp_path, method, bits, share, most):
    if method == "torchao":
        pytest.importorskip("torchao")
    shape = dict(hidden_size=128, moe_intermediate_size=128, num_experts=16, head_dim=32)
    tiny.checkpoint(tmp_path / "moe", "qwen3_moe", **shape)
    plain = tiny.model("qwen3_moe", **shape).bfloat16()
    model, plan = quantized(tmp_path / "moe", bits, method=method)
    body = sum(p.numel() for n, p in plain.named_parameters() if "embed" not in n and "lm_head" not in n)
    outside = sum(p.nbytes for n, p in plain.named_parameters() if "embed" in n or "lm_head" in n)
    assert weight_bytes(model) - outside < share * 2 * body
    assert abs(plan.needed_bytes - weight_bytes(model)) < 0.1 * weight_bytes(model)
    packed, kept = quantized_weights(model)
    assert packed + kept == plain.num_parameters()
    ids = torch.arange(7, 60).unsqueeze(0)
    with torch.no_grad():
        wanted, given = plain(ids).logits.float(), model(ids).logits.float()
    assert ((wanted - given).norm() / (wanted - wanted.mean()).norm()).item() < most


def test_gradients_pass_after_an_evaluation(tmp_path):
    """The CPU kernel of bitsandbytes repacks layers when a model is evaluated, and has no gradient afterwards."""
    tiny.checkpoint(tmp_path / "dense", "llama", head_dim=16)
    ids = torch.arange(7, 40).unsqueeze(0)
    gradients = []
    for evaluate in (False, True):
        model, _ = quantized(tmp_path / "dense", 4)
        torch.manual_seed(3)
        tuned = apply_tuner(model, TunerOptions(lora_dropout=0.0))
        if evaluate:
            with torch.no_grad():
                tuned.eval()(input_ids=ids)
        tuned.train()(input_ids=ids, labels=ids).loss.backward()
        gradients.append({n: p.grad for n, p in tuned.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, wanted in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], wanted, msg=name)


@pytest.mark.parametrize("bits", [8, 4])
def test_layers_take_inputs_of_any_shape_and_order(tmp_path, bits):
    tiny.checkpoint(tmp_path / "dense", "llama", head_dim=16)
    files = check_model_files(tmp_path / "dense")
    options = QuantizationOptions(quant_method="bnb", quant_bits=bits)
    plan = plan_loading(ModelOptions(torch_dtype="float32"), options, files, pick_device(True), training=False)
    layer = load_model(tmp_path / "dense", plan).model.layers[0].mlp.gate_proj
    x = torch.randn(2, 3, 64, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        straight = layer(x.transpose(2, 3).contiguous().reshape(-1, 64)).reshape(2, 3, 5, -1)
        torch.testing.assert_close(layer(x.transpose(2, 3)), straight)
        torch.testing.assert_close(layer(x[0].transpose(1, 2)), straight[0])


FUSED = {
    "qwen3_moe": {},
    "mixtral": dict(num_local_experts=4, num_experts_per_tok=2),
    "gpt_oss": dict(num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2),
}


@pytest.mark.parametrize("family, bits", [("qwen3_moe", 8), ("qwen3_moe", 4), ("mixtral", 8), ("gpt_oss", 8)])
def test_lora_over_packed_experts_is_lora_over_the_plain_numbers(tmp_path, family, bits, monkeypatch):
    """The same loss and gradients as peft's over the unpacked experts, though no layer's experts are unpacked whole."""
    tiny.checkpoint(tmp_path / "moe", family, **FUSED[family])
    model, _ = quantized(tmp_path / "moe", bits, "float32")
    twin = tiny.model(family, **FUSED[family])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if isinstance(parameter, PackedWeight):
                twin.get_parameter(name).copy_(parameter.plain())
            elif "proj.weight" in name and hasattr(parameter, "quant_state"):
                plain = bnb.functional.dequantize_4bit(parameter, parameter.quant_state)
                twin.get_parameter(name).copy_(plain)
            elif parameter.dtype == torch.int8:
                twin.get_parameter(name).copy_(bnb.functional.int8_vectorwise_dequant(parameter, parameter.SCB))
    monkeypatch.setattr(AdaptedExperts, "summed", lambda self: pytest.fail("all experts of a layer were unpacked"))
    tuner = TunerOptions(target_modules=("all-experts",), lora_dropout=0.0)
    ids, kept, found = torch.arange(7, 40).unsqueeze(0), [], []
    shapes = {p.shape for p in model.parameters() if isinstance(p, PackedWeight)}
    for one in (model, twin):
        torch.manual_seed(3)
        tuned = apply_tuner(one, tuner).train()
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        for _ in range(2):  # the wrappers of peft come off and go on again
            tuned.zero_grad()
            with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
                loss = tuned(input_ids=ids, labels=ids).loss
            if one is model:
                assert not [t.shape for t in kept if t.shape in shapes and not isinstance(t, PackedWeight)]
            loss.backward()
        found.append((loss, {n: p.grad for n, p in tuned.named_parameters() if p.grad is not None}))
    (mine, own), (theirs, wanted) = found
    torch.testing.assert_close(mine, theirs, rtol=2e-3 if bits == 8 else 1e-5, atol=0)
    assert own.keys() == wanted.keys() and own
    for name, gradient in own.items():
        far = (gradient - wanted[name]).norm() / (wanted[name].norm() + 1e-6)
        assert far < (0.05 if bits == 8 else 1e-3), name
