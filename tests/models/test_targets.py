"""Which layers LoRA reaches: compared with peft's own all-linear for dense models, stated for mixtures of experts."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from swift.config.tuner import TunerOptions
from swift.errors import TrainingError, UsageError
from swift.models.adapters import load_adapter
from swift.models.tuners import apply_tuner, optimizer_groups, trainable_summary
from tests import tiny

IDS = torch.tensor([[5, 9, 200, 31, 77, 12]])


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
def test_all_linear_is_pefts_in_a_dense_model(family):
    ours = apply_tuner(tiny.model(family), TunerOptions(lora_rank=4))
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=32, target_modules="all-linear")
    theirs = get_peft_model(tiny.model(family), config)
    assert trained_names(ours) == trained_names(theirs)
    assert not any("lm_head" in name for name in trained_names(ours))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_same_seed_starts_the_same_adapter_as_peft(family):
    model, other = tiny.model(family), tiny.model(family)
    torch.manual_seed(3)
    ours = apply_tuner(model, TunerOptions())
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear")
    theirs = dict(get_peft_model(other, config).named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in ours.named_parameters())


def test_experts_are_reached_and_routers_are_not():
    model = apply_tuner(tiny.model("qwen3_moe"), TunerOptions())
    names = trained_names(model)
    assert any("experts" in name for name in names)
    assert any("q_proj" in name for name in names)
    assert not any("gate.lora" in name or "gate.weight" in name for name in names)
    with_router = apply_tuner(tiny.model("qwen3_moe"), TunerOptions(target_modules=("all-linear", "all-router")))
    assert len(trained_names(with_router)) > len(names)
    assert any(".mlp.gate." in name for name in trained_names(with_router))


def test_a_shared_expert_is_not_taken_for_the_experts(tmp_path):
    """peft would read shared_expert.gate_proj as the fused experts' name."""
    model = apply_tuner(
        tiny.model("qwen2_moe", shared_expert_intermediate_size=64, decoder_sparse_step=1),
        TunerOptions(target_regex=r".*\.shared_expert\.(gate|up|down)_proj"),
    )
    names = trained_names(model)
    assert names and all(".shared_expert." in name for name in names)
    model.save_pretrained(tmp_path)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(
        tiny.model("qwen2_moe", shared_expert_intermediate_size=64, decoder_sparse_step=1), tmp_path
    )
    torch.testing.assert_close(model.eval()(IDS).logits, again.eval()(IDS).logits)


def test_dora_leaves_the_experts_out():
    model = apply_tuner(tiny.model("qwen3_moe"), TunerOptions(use_dora=True))
    assert not any("experts" in name for name in trained_names(model))


def test_names_and_patterns():
    named = apply_tuner(tiny.model(), TunerOptions(target_modules=("q_proj", "v_proj")))
    pattern = apply_tuner(tiny.model(), TunerOptions(target_regex=r"model\.layers\.\d+\.self_attn\.[qv]_proj"))
    assert trained_names(named) == trained_names(pattern)
    one_layer = apply_tuner(tiny.model(), TunerOptions(target_regex=r"model\.layers\.1\.self_attn\.q_proj"))
    assert {name.split(".")[4] for name in trained_names(one_layer)} == {"1"}


@pytest.mark.parametrize(
    "family, options, says",
    [
        ("llama", dict(target_modules=("q_prj",)), "q_proj"),
        ("llama", dict(target_regex="q_proj"), "whole name"),
        ("llama", dict(target_regex="("), "regular expression"),
        ("llama", dict(target_modules=("all-router",)), "no experts"),
        ("llama", dict(modules_to_save=("nope",)), "lm_head"),
        ("llama", dict(init_weights="xavier"), "pissa"),
        ("llama", dict(freeze_parameters=("model",)), "full"),
        ("qwen3_moe", dict(target_modules=("gate_proj",)), "up_proj"),
        ("qwen3_moe", dict(target_parameters=("nope",)), "gate_up_proj"),
        ("llama", dict(tuner_type="full", freeze_parameters=("nope",)), "embed_tokens"),
    ],
)
def test_what_matches_nothing_names_what_exists(family, options, says):
    with pytest.raises(UsageError) as caught:
        apply_tuner(tiny.model(family), TunerOptions(**options))
    assert says in str(caught.value)


def test_freezing():
    model = tiny.model()
    options = TunerOptions(
        tuner_type="full",
        freeze_parameters=("model.layers",),
        freeze_parameters_regex="embed",
        trainable_parameters_regex=r"layers\.1\..*norm",
    )
    names = trained_names(apply_tuner(model, options))
    assert names == {
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.1.input_layernorm.weight",
        "model.layers.1.post_attention_layernorm.weight",
    }
    with pytest.raises(TrainingError):
        apply_tuner(tiny.model(), TunerOptions(tuner_type="full", freeze_parameters=("model", "lm_head")))


def test_half_frozen_by_ratio():
    model = apply_tuner(tiny.model(), TunerOptions(tuner_type="full", freeze_parameters_ratio=0.5))
    frozen = [p.numel() for p in model.parameters() if not p.requires_grad]
    total = sum(p.numel() for p in model.parameters())
    assert 0 < sum(frozen) <= total / 2
    assert not model.get_input_embeddings().weight.requires_grad


def test_adapter_weights_are_float32_on_a_bfloat16_base():
    model = apply_tuner(tiny.model().bfloat16(), TunerOptions())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    model = apply_tuner(tiny.model().bfloat16(), TunerOptions(lora_dtype="bfloat16"))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize("init", ["pissa", "olora", "gaussian"])
def test_an_adapter_that_changed_the_base_loads_again(tmp_path, init):
    model = apply_tuner(tiny.model(), TunerOptions(init_weights=init, lora_dropout=0.0))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.add_(0.1)
    model.save_pretrained(tmp_path)
    wanted = model.eval()(IDS).logits
    again = load_adapter(tiny.model(), tmp_path)
    torch.testing.assert_close(again(IDS).logits, wanted, atol=1e-4, rtol=1e-4)


def test_lora_plus_groups_are_pefts():
    from peft.optimizers import create_loraplus_optimizer

    model = apply_tuner(tiny.model(), TunerOptions())
    groups = optimizer_groups(model, learning_rate=1e-4, weight_decay=0.1, lorap_lr_ratio=16)
    ours = {id(p): group["lr"] for group in groups for p in group["params"]}
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=1e-4, loraplus_lr_ratio=16)
    theirs = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert ours == pytest.approx(theirs)


def test_summary_counts_what_trains():
    model = apply_tuner(tiny.model(), TunerOptions())
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert f"{count:,}" in trainable_summary(model)
