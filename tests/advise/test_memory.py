"""Parts of the estimate against peft, torch and transformers; and one whole peak against a process's peak."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, DynamicCache

from swift.advise.memory import Training, cache_bytes, estimate, estimate_inference, estimate_serving, weight_bytes
from swift.advise.shape import shape_of
from swift.config.tuner import TunerOptions
from swift.models.tuners import apply_tuner
from tests import tiny
from tests.advise.families import LATENT, MOE

MLA = LATENT | dict(
    n_routed_experts=4,
    n_group=1,
    topk_group=1,
    num_experts_per_tok=2,
    n_shared_experts=1,
    moe_intermediate_size=24,
    first_k_dense_replace=1,
)
BASE = Training(dtype="float32", mixed=False, device="cpu", dropout=0.0)


def shape(family="llama", **changes):
    return shape_of(tiny.config(family, **changes).to_dict())


@pytest.mark.parametrize(
    ("family", "options", "changes"),
    [
        ("llama", {}, {}),
        ("llama", dict(target_modules=("q_proj", "v_proj"), lora_rank=16), {}),
        ("llama", dict(use_dora=True), {}),
        ("llama", dict(modules_to_save=("embed_tokens", "lm_head")), {}),
        ("qwen3_moe", {}, MOE),
        ("qwen3_moe", dict(target_modules=("q_proj", "o_proj")), MOE),
        ("deepseek_v3", dict(target_modules=("q_a_proj", "kv_b_proj")), MLA),
        ("phi3", {}, {}),
    ],
)
def test_trainable_parameters_equal_those_of_the_adapter(family, options, changes):
    tuner = TunerOptions(lora_dropout=0.0, **options)
    tuned = apply_tuner(tiny.model(family, **changes), tuner)
    training = replace(
        BASE,
        rank=tuner.lora_rank,
        targets=tuner.target_modules,
        dora=tuner.use_dora,
        modules_to_save=tuner.modules_to_save,
    )
    assert estimate(shape(family, **changes), training).trainable == sum(
        p.numel() for p in tuned.parameters() if p.requires_grad
    )


def test_full_training_holds_weights_gradients_and_two_moments_in_the_weights_dtype():
    model = tiny.model("llama").to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    optimizer.step()
    state = sum(v.nbytes for values in optimizer.state.values() for name, v in values.items() if name != "step")
    found = estimate(shape(), replace(BASE, dtype="bfloat16", full=True, accumulation=2))
    assert found.parts["weights"] == sum(p.nbytes for p in model.parameters())
    assert found.parts["optimizer"] == state
    assert found.parts["gradients"] == sum(p.grad.nbytes for p in model.parameters())


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("qwen3_moe", MOE),
        ("deepseek_v3", MLA),
        (
            "minicpm3",
            {k: v for k, v in MLA.items() if "_dim" in k or k.endswith("lora_rank") or k == "num_key_value_heads"},
        ),
        ("gemma3_text", dict(layer_types=["sliding_attention", "full_attention"], sliding_window=16)),
    ],
)
def test_the_cache_is_as_large_as_transformers_own(family, changes):
    config = tiny.config(family, **changes)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    rows, length = 3, 40
    with torch.no_grad():
        cache = model(
            torch.ones(rows, length, dtype=torch.long), past_key_values=DynamicCache(config=config), use_cache=True
        ).past_key_values
    # a window of w tokens is kept as the w - 1 that the next token sees besides itself
    real = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert cache_bytes(shape(family, **changes), "float32", rows, length) == pytest.approx(real, rel=0.05)


def test_serving_counts_the_latent_of_multi_head_latent_attention():
    deepseek = shape("deepseek_v3", **MLA)
    per_token = 2 * (12 + 8) * deepseek.layers.__len__()
    assert estimate_serving(deepseek, 10**10, dtype="bfloat16", length=100).per_token == per_token


def test_serving_gives_no_requests_where_the_weights_dont_fit():
    big = shape_of({"model_type": "qwen3", "hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728})
    none = estimate_serving(big, 4 << 30, dtype="bfloat16", length=2048)
    some = estimate_serving(big, 24 << 30, dtype="bfloat16", length=2048)
    assert none.requests == 0 < some.requests
    assert some.tokens * some.per_token <= 0.9 * (24 << 30) - some.weights


def test_more_of_anything_never_takes_less():
    base = replace(BASE, batch=2, length=128)
    small = estimate(shape(), base).total
    for change in (
        dict(batch=4),
        dict(length=256),
        dict(rank=64),
        dict(full=True),
        dict(checkpointing=False),
        dict(accumulation=4),
    ):
        assert estimate(shape(), replace(base, **change)).total >= small, change
    assert estimate(shape(), replace(base, dtype="bfloat16", mixed=True)).total < small
    large = shape(vocab_size=50_000)
    assert estimate(large, replace(base, label_share=0.3)).total < estimate(large, base).total
    for change in (dict(weight_bits=8), dict(weight_bits=4)):
        assert estimate(shape(), replace(base, **change)).parts["weights"] < estimate(shape(), base).parts["weights"]


def test_experts_are_quantized_while_loading_too():
    moe = shape("qwen3_moe", **MOE)
    assert weight_bytes(moe, "bfloat16") - weight_bytes(moe, "bfloat16", 4) > moe.expert_parameters * 1.4
    dense = shape("llama")
    quantized = sum(x.inputs * x.outputs for layer in dense.layers for x in layer.linears)
    assert weight_bytes(dense, "bfloat16", 8) == quantized + 2 * (dense.parameters - quantized)


def test_an_estimate_takes_a_plain_config_and_adds_up():
    found = estimate(tiny.config().to_dict(), BASE, parameters=123_456)
    assert found.parts["weights"] == 4 * 123_456
    assert found.total == sum(found.parts.values()) == found.above_framework + found.parts["framework"]
    generation = estimate_inference(tiny.config().to_dict(), dtype="float32", rows=2, length=64, device="cpu")
    assert list(generation.parts) == ["weights", "KV cache", "activations", "logits", "framework"]


benchmark = Path(__file__).resolve().parents[2] / "benchmarks" / "plan_accuracy.py"


@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="resets the peak through /proc")
@pytest.mark.parametrize("case", ["test-lora", pytest.param("test-full", marks=pytest.mark.slow)])
def test_the_peak_of_a_real_run_is_met_within_a_tenth(case):
    spec = importlib.util.spec_from_file_location("plan_accuracy", benchmark)
    accuracy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(accuracy)
    sizes = dict(
        hidden_size=256,
        intermediate_size=768,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        vocab_size=16000,
    )
    how = dict(full=True) if case == "test-full" else {}
    row = accuracy.compare(accuracy.case(case, "llama", sizes, 6, batch=4, length=192, checkpointing=False, **how))
    assert abs(row["error"]) < 0.1, row
    assert row["trainable"][0] == row["trainable"][1]


def test_peft_and_swift_agree_on_all_linear():
    """`all-linear` in the estimate means what peft means by it in a dense model."""
    tuned = get_peft_model(tiny.model("qwen2"), LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert estimate(shape("qwen2"), BASE).trainable == sum(p.numel() for p in tuned.parameters() if p.requires_grad)
