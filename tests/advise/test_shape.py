"""The parameter counter against transformers' own models, built without memory on the meta device."""

import json

import pytest
import torch
import transformers

from swift.advise import shape as shapes
from swift.advise.shape import shape_of
from swift.errors import ModelFileError
from tests import tiny
from tests.advise.families import LATENT, MOE

SPARSE = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2)
MLA = LATENT | dict(
    n_routed_experts=6,
    n_group=1,
    topk_group=1,
    num_experts_per_tok=2,
    n_shared_experts=2,
    moe_intermediate_size=24,
    first_k_dense_replace=1,
)
LINEAR = dict(
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=16,
    linear_value_head_dim=8,
    layer_types=["linear_attention", "full_attention", "linear_attention"],
    num_hidden_layers=3,
)
# family -> what its config needs beside the tiny one's values
FAMILIES = {
    "llama": {},
    "mistral": {},
    "qwen2": {},
    "qwen3": {},
    "smollm3": {},
    "granite": {},
    "gemma": {},
    "gemma2": {},
    "olmo2": {},
    "olmo": {},
    "glm": {},
    "glm4": {},
    "phi3": {},
    "phi": {},
    "stablelm": {},
    "starcoder2": {},
    "nemotron": {},
    "seed_oss": {},
    "cohere": {},
    "exaone4": {},
    "hunyuan_v1_dense": {},
    "minicpm3": LATENT,
    "ernie4_5": {},
    "olmoe": SPARSE,
    "minimax_m2": SPARSE,
    "gemma3_text": dict(layer_types=["sliding_attention", "full_attention"], sliding_window=64),
    "qwen3_moe": MOE,
    "qwen2_moe": MOE | dict(shared_expert_intermediate_size=40),
    "mixtral": dict(num_local_experts=4),
    "gpt_oss": dict(num_local_experts=4, num_experts_per_tok=2),
    "phimoe": dict(num_local_experts=4),
    "llama4_text": dict(num_local_experts=4, intermediate_size_mlp=96),
    "deepseek_v3": MLA,
    "deepseek_v2": MLA | dict(q_lora_rank=None),
    "glm4_moe": MOE | dict(n_routed_experts=4, n_shared_experts=1),
    "qwen3_next": MOE | LINEAR | dict(shared_expert_intermediate_size=40),
    "qwen3_5_text": LINEAR,
    "gpt2": {},
    "gpt_neox": {},
    "opt": dict(ffn_dim=96, word_embed_proj_dim=64),
    "bloom": {},
    "falcon": dict(multi_query=True),
}
OLD = (
    "gpt2",
    "gpt_neox",
    "opt",
    "bloom",
    "falcon",
)  # one key/value head per head, so their configs have no field for it


def parameters(config) -> int:
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in model.parameters())


def config_of(family, **changes):
    values = {"tie_word_embeddings": False, **FAMILIES[family], **changes}
    if family in OLD:
        sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=512)
        return transformers.AutoConfig.for_model(family, **sizes, **values)
    return tiny.config(family, **values)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_equal_those_of_transformers(family):
    config = config_of(family)
    counted = shape_of(config.to_dict())
    assert counted.counted == parameters(config)
    assert counted.exact


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "qwen3_moe"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_count_once(family, tied):
    config = config_of(family, tie_word_embeddings=tied)
    assert shape_of(config.to_dict()).counted == parameters(config)


@pytest.mark.parametrize("bias", [dict(attention_bias=True), dict(mlp_bias=True)])
def test_biases_that_the_config_asks_for(bias):
    config = config_of("llama", **bias)
    assert shape_of(config.to_dict()).counted == parameters(config)


@pytest.mark.parametrize("changes", [dict(mlp_only_layers=[0]), dict(decoder_sparse_step=2)])
def test_layers_without_experts(changes):
    config = config_of("qwen3_moe", num_hidden_layers=4, **changes)
    assert shape_of(config.to_dict()).counted == parameters(config)


@pytest.mark.parametrize(
    "family", ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "qwen3_moe", "phi3", "deepseek_v3"]
)
def test_a_config_may_leave_out_what_equals_the_default(family):
    config = transformers.AutoConfig.for_model(family, num_hidden_layers=2)
    stated = {"model_type": family, "num_hidden_layers": 2}
    if family == "deepseek_v3":
        stated["first_k_dense_replace"] = config.first_k_dense_replace
    assert shape_of(stated).counted == parameters(config)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3"])
def test_what_a_class_computes_from_other_fields_is_computed_here_too(family):
    """Such as the width of a head, and as many key/value heads as heads."""
    stated = dict(hidden_size=96, num_attention_heads=6, num_hidden_layers=2, vocab_size=64)
    config = transformers.AutoConfig.for_model(family, **stated, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    assert shape_of({"model_type": family, **stated}).counted == parameters(config)


def test_a_given_name_beats_the_default_of_another_name_for_the_same_thing():
    config = config_of("qwen3_moe")
    as_on_the_hub = {k: v for k, v in config.to_dict().items() if k != "num_local_experts"} | {"num_experts": 4}
    assert shape_of(as_on_the_hub).counted == parameters(config)


def test_the_text_part_of_a_multimodal_config_is_counted_and_the_rest_comes_from_the_files():
    text = config_of("qwen2").to_dict()
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    config = {"model_type": "some_vlm", "text_config": text, "vision_config": vision}
    language = shape_of(text).counted
    assert not shape_of(config).exact
    assert shape_of(config).parameters > language
    assert shape_of(config, stored=language + 12_345).tower == 12_345


def test_active_parameters_are_those_a_token_is_multiplied_with():
    dense = shape_of(config_of("llama").to_dict())
    matrices = sum(x.parameters for layer in dense.layers for x in layer.linears)
    assert dense.active == matrices + dense.head
    sparse = shape_of(config_of("mixtral", num_experts_per_tok=1).to_dict())
    assert sparse.expert_parameters == 4 * (
        sparse.active - dense.active + sum(3 * 64 * 128 for _ in dense.layers) - 2 * 64 * 4
    )


def test_a_config_without_sizes_says_what_is_missing():
    with pytest.raises(ModelFileError, match="hidden_size"):
        shape_of({"architectures": ["X"]})


def test_sliding_windows_are_found_layer_by_layer():
    gemma = shape_of({"model_type": "gemma3_text", "num_hidden_layers": 12, "sliding_window": 512})
    assert [layer.window for layer in gemma.layers] == ([512] * 5 + [None]) * 2
    assert all(layer.window is None for layer in shape_of(config_of("qwen2", sliding_window=64).to_dict()).layers)


def test_every_known_architecture_is_checked_or_built_like_llama():
    """A line of architectures.toml that differs from llama's must be in FAMILIES, so that its count is proven."""
    special = {name for name, rules in shapes._architectures().items() if rules and name != "llama"}
    unproven = (
        special
        - set(FAMILIES)
        - {
            "gemma4_text",
            "qwen3_5_moe_text",
            "dots1",
            "exaone_moe",
            "hunyuan_v1_moe",
            "hy_v3",
            "flex_olmo",
            "olmo3",
            "cohere2",
            "hyperclovax",
            "granite_swa",
            "gpt_bigcode",
            "arcee",
        }
    )  # variants of one in FAMILIES
    assert not unproven
    json.loads((shapes.HERE / "config_defaults.json").read_text(encoding="utf-8"))
