"""Fused layers against peft's and transformers' own: gradients, dropout, what they leave alone, and the way back."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from swift.train.lean import check, fuse, pages, projections
from swift.train.lean.blocks import RmsNorm, norm_kind
from swift.train.lean.fuse import Fused
from swift.train.lean.projections import Apart, Joined
from tests import tiny
from tests.train import support


def tuned(family: str = "llama", dtype: torch.dtype = torch.float32, **settings):
    """A tiny model with LoRA on all linear layers, whose B isn't zero."""
    return adapted(tiny.model(family).to(dtype), **settings)


def adapted(base: torch.nn.Module, **settings):
    from peft import LoraConfig, get_peft_model

    values = dict(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM") | settings
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(**values))
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        elif "lora_magnitude" in name:
            parameter.data.mul_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return model.train()


def gradients(model, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = model(**batch).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def a_batch():
    return {name: value for name, value in support.collate(support.encoded_rows(4)).items() if name != "row_ids"}


@pytest.mark.parametrize("light", [False, True])
@pytest.mark.parametrize("kind", [Apart, Joined])
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"use_rslora": True}),
        ("qwen2", {"r": 3}),  # biases; an odd rank
        ("qwen3", {"target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]}),
        ("gemma3_text", {}),
        ("phi3", {}),
        ("qwen3_moe", {"target_modules": ["q_proj", "k_proj", "o_proj"]}),
        ("llama", {"use_dora": True}),
        ("qwen2", {"use_dora": True, "use_rslora": True, "r": 3}),
        ("llama", {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
        ("llama", {"target_modules": ["q_proj", "v_proj"], "bias": "all"}),
    ],
)
def test_gradients_are_those_of_peft(family, settings, kind, light, monkeypatch):
    """Both ways, whichever the width of the weights would choose."""
    monkeypatch.setattr(fuse, "kind_of", lambda layer: kind)
    plain = tuned(family, **settings)
    ours = copy.deepcopy(plain)
    fused = Fused(ours, light)
    fused.engage()
    assert fused.counts["norms"]
    batch = a_batch()
    expected, wanted = gradients(plain, batch)
    loss, found = gradients(ours, batch)
    torch.testing.assert_close(loss, expected, atol=2e-6, rtol=0)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", [Apart, Joined])
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
def test_dropout_is_that_of_each_adapter(settings, kind, monkeypatch):
    """The same masks, given to peft's own layers as their dropout."""
    monkeypatch.setattr(fuse, "kind_of", lambda layer: kind)
    drawn: list[torch.Tensor] = []
    real = projections.keep_mask
    monkeypatch.setattr(projections, "keep_mask", lambda *args: drawn.append(real(*args)) or drawn[-1])
    targets = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
    plain = tuned("qwen2", lora_dropout=0.25, target_modules=targets, **settings)
    ours = copy.deepcopy(plain)
    fused = Fused(ours)
    fused.engage()
    batch = a_batch()
    loss, found = gradients(ours, batch)
    share = torch.cat([mask.flatten() for mask in drawn]).float().mean()
    assert len(drawn) == 12 and share == pytest.approx(0.75, abs=0.02)

    class Given(torch.nn.Module):
        def __init__(self, mask):
            super().__init__()
            self.mask = mask

        def forward(self, x):
            return x * self.mask.view(x.shape) / 0.75

    masks = iter(drawn)
    for layer in plain.base_model.model.model.layers:
        for module in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            module.lora_dropout["default"] = Given(next(masks))
        for module in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            module.lora_dropout["default"] = Given(next(masks))
    expected, wanted = gradients(plain, batch)
    torch.testing.assert_close(loss, expected, atol=2e-6, rtol=0)
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-6, rtol=1e-3, msg=name)
    ours.eval(), plain.eval()
    with torch.no_grad():
        count = len(drawn)
        ours(**batch)
        assert len(drawn) == count, "no dropout outside training"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
def test_over_bitsandbytes_gradients_are_those_of_peft(bits, settings, tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny.checkpoint(tmp_path / "model", "qwen2")
    few = BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4)

    def made():
        base = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", quantization_config=few, dtype=torch.float32, device_map="cpu"
        )
        return adapted(base, **settings)

    ours = made()
    fused = Fused(ours)
    fused.engage()
    assert fused.counts["MLPs"] == fused.counts["groups of projections"] == 2 and not fused.left
    with check._at_rest(ours):
        layer = ours.base_model.model.model.layers[0].mlp.up_proj
        assert not layer.training and layer.base_layer.training == (bits == 8)
    batch = a_batch()
    loss, found = gradients(ours, batch)
    expected, wanted = gradients(made(), batch)
    torch.testing.assert_close(loss, expected, atol=2e-6, rtol=0)
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}])
def test_in_bfloat16_fused_is_nearer_to_float32_than_peft(settings):
    exact = tuned(**settings)
    batch = a_batch()
    expected, wanted = gradients(exact, batch)
    distances = []
    for fused in (False, True):
        model = copy.deepcopy(exact)
        model.zero_grad()
        for name, parameter in model.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.bfloat16()
        if fused:
            Fused(model).engage()
        with torch.autocast("cpu", torch.bfloat16):
            _, found = gradients(model, batch)
        gap = sum((found[n] - wanted[n]).square().sum() for n in wanted) / sum(
            g.square().sum() for g in wanted.values()
        )
        distances.append(float(gap.sqrt()))
    assert distances[1] < distances[0] * 1.05 and distances[1] < 0.05


def test_products_that_autocast_narrows_are_peft_s_own():
    """Weights in float32 under autocast: no product of ours in float32 in their place."""
    plain = tuned()
    ours = copy.deepcopy(plain)
    fused = Fused(ours)
    fused.engage()
    seen = []
    for group in fused._groups:
        group.outputs = lambda *args, own=group.outputs: seen.append(1) or own(*args)
    with torch.autocast("cpu", torch.bfloat16):
        expected, wanted = gradients(plain, a_batch())
        loss, found = gradients(ours, a_batch())
    assert not seen and found.keys() == wanted.keys()
    torch.testing.assert_close(loss, expected, atol=0.02, rtol=0)
    gradients(ours, a_batch())
    assert seen


def test_full_training_keeps_half_of_a_gated_product():
    plain = tiny.model("llama").train()
    ours = copy.deepcopy(plain)
    fused = Fused(ours)
    fused.engage()
    assert fused.counts == {"gated products": 2, "norms": 5}

    def kept(model) -> int:
        sizes: dict[int, int] = {}
        note = lambda t: sizes.__setitem__(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) or t  # noqa: E731
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            loss = model(**a_batch()).loss
        loss.backward()
        return sum(sizes.values())

    assert kept(ours) < 0.9 * kept(plain)
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_released_layers_are_peft_s_own_again_and_adapters_save_as_ever(tmp_path, dtype):
    model = tuned(dtype=dtype)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fused = Fused(model)
    weights = {name: p.data_ptr() for name, p in model.named_parameters()}
    fused.engage()
    moved = any(p.data_ptr() != weights[name] for name, p in model.named_parameters())
    assert moved == (dtype == torch.bfloat16), "only products in 16 bits have weights of their own"
    model.save_pretrained(tmp_path / "a")
    fused.release()
    model.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a/adapter_model.safetensors").read_bytes() == (
        tmp_path / "b/adapter_model.safetensors"
    ).read_bytes()
    assert all(p.is_contiguous() for p in model.parameters())
    assert not any("forward" in vars(module) for module in model.modules())
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_an_adapter_that_is_switched_off_or_merged_is_not_used():
    model = tuned()
    Fused(model).engage()
    batch = {name: value for name, value in a_batch().items() if name != "labels"}
    with torch.no_grad(), model.disable_adapter():
        off = model(**batch).logits
    torch.testing.assert_close(off, tiny.model("llama")(**batch).logits, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        on = model.eval()(**batch).logits
        model.merge_adapter()
        torch.testing.assert_close(model(**batch).logits, on, atol=1e-4, rtol=1e-3)


def test_a_norm_that_computes_something_else_is_left_alone():
    class OddRMSNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(8)), 1e-6

        def forward(self, x):
            return x * self.weight * torch.rsqrt(x.square().sum(-1, keepdim=True) + self.eps)

    assert norm_kind(OddRMSNorm()) is None
    x, weight = torch.randn(3, 8, dtype=torch.float64, requires_grad=True), torch.rand(8, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x, w: RmsNorm.apply(x.float(), w.float(), 1e-6, 1.0, True).double(),
        (x, weight.detach().double().requires_grad_()),
        eps=1e-2,
        atol=1e-3,
    )


@pytest.mark.parametrize("kind", [Apart, Joined])
def test_at_rest_the_layers_compute_as_before_and_nothing_is_copied(kind, monkeypatch):
    monkeypatch.setattr(fuse, "kind_of", lambda layer: kind)
    model = tuned()
    before = {id(module): module.forward.__func__ for module in model.modules()}
    fused = Fused(model)
    fused.engage()
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    fused.rest()
    assert all(module.forward.__func__ is before[id(module)] for module in model.modules())
    expected = model(**a_batch()).loss
    fused.engage()
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places
    torch.testing.assert_close(model(**a_batch()).loss, expected, atol=2e-6, rtol=0)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
def test_pages_of_a_file_are_given_back_once_its_weights_stand_elsewhere(tmp_path):
    size = 32 << 20
    (tmp_path / "weights").write_bytes(bytes(range(256)) * (size // 256))
    storage = torch.UntypedStorage.from_file(str(tmp_path / "weights"), False, size)
    mapped = torch.empty(0, dtype=torch.uint8).set_(storage, 0, (size,), (1,))
    total = mapped.sum()
    assert resident(mapped) > 0.9 * size
    pages.give_back(mapped[4096:])
    others = torch.ones(1 << 20), torch.from_numpy(np.ones(1 << 20))  # no file's: left alone
    for tensor in others:
        pages.give_back(tensor)
        assert tensor.all()
    assert resident(mapped) < 0.1 * size
    assert mapped.sum() == total


def resident(tensor: torch.Tensor) -> int:
    """Bytes of the mapping that holds `tensor` which are in memory now."""
    start = f"{tensor.data_ptr():x}-"
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if line.startswith(start))
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))
