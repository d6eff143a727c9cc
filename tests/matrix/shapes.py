"""A tiny config for any architecture of transformers: its default config with every size made small.

Sizes are known by the names of their fields, which the architectures share; per-layer lists keep one layer of every
kind. What can't be said by names (values that must agree with each other) stands in EXCEPTIONS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Named = Callable[[Any], dict[str, int]]
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD, EXPERT = 64, 128, 2, 4, 2, 16, 32
CONTEXT = 512

_TEXT = (
    (
        HIDDEN,
        "hidden_size d_model n_embd dim embedding_size word_embed_proj_dim embed_dim dim_model lru_width "
        "attention_hidden_size backbone_hidden_size conv_dim conv_dim_out hidden_dim model_dim hidden_size_global",
    ),
    (
        INNER,
        "intermediate_size ffn_dim n_inner d_ff dff dim_ff ffn_hidden_size intermediate_size_mlp encoder_ffn_dim "
        "decoder_ffn_dim dense_intermediate_size prefix_dense_intermediate_size mlp_dim mlp_hidden_size block_ff_dim "
        "mamba_d_ssm ffn_intermediate_size dense_ffn_hidden_size",
    ),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_encoder_layers "
        "num_decoder_layers num_layers_per_stack",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_value_heads "
        "linear_num_heads",
    ),
    (
        KV_HEADS,
        "num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads num_global_key_value_heads "
        "linear_num_key_heads index_n_heads n_mamba_heads",
    ),
    (
        HEAD,
        "head_dim kv_channels d_kv swa_head_dim swa_v_head_dim global_head_dim v_head_dim dim_head linear_head_dim "
        "linear_key_head_dim linear_value_head_dim qk_nope_head_dim attention_head_dim index_head_dim mamba_headdim "
        "mamba_head_dim mamba_d_head hidden_size_per_layer_input",
    ),
    (8, "qk_rope_head_dim rotary_dim laurel_rank mamba_n_heads mamba_num_heads gated_norm_rank rank"),
    (24, "qk_head_dim"),
    (CONTEXT, "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length model_max_length"),
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts num_experts_per_layer"),
    (
        2,
        "num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k top_k_experts num_selected_experts "
        "o_groups altup_num_inputs",
    ),
    (
        1,
        "n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group num_expert_group "
        "first_k_dense_replace moe_layer_start_index mamba_n_groups mamba_ngroups n_groups num_dense_layers "
        "max_window_layers zero_expert_num",
    ),
    (
        EXPERT,
        "moe_intermediate_size expert_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size "
        "moe_shared_expert_intermediate_size shared_intermediate_size shared_experts_intermediate_size "
        "sliding_window sliding_window_size attention_window_size local_attention_window_len window_size",
    ),
    (
        16,
        "q_lora_rank kv_lora_rank o_lora_rank index_topk mamba_d_state state_size ssm_state_size mamba_chunk_size "
        "chunk_size",
    ),
    (0, "num_nextn_predict_layers num_kv_shared_layers num_mtp_layers"),
)
TEXT = {name: size for size, names in _TEXT for name in names.split()}
TEXT |= {"attention_chunk_size": 32, "mamba_dt_rank": 4, "time_step_rank": 4}
_VISION = (
    (
        32,
        "hidden_size embed_dim d_model width hidden_dim projection_dim vision_output_dim conv_hidden_size dim channels "
        "downsample_hidden_size",
    ),
    (64, "intermediate_size encoder_ffn_dim decoder_ffn_dim mlp_dim ffn_dim output_hidden_size"),
    (
        2,
        "num_hidden_layers depth num_layers layers encoder_layers decoder_layers num_attention_heads num_heads heads "
        "encoder_attention_heads decoder_attention_heads num_key_value_heads attention_heads conf_num_hidden_layers "
        "conf_num_attention_heads",
    ),
    (1, "num_global_layers"),
    (16, "head_dim num_position_embeddings position_embedding_size attention_key_value_heads"),
    (28, "image_size crop_size"),
    (14, "patch_size"),
)
VISION = {name: size for size, names in _VISION for name in names.split()}
SENSES = ("vision", "visual", "audio", "image", "vit", "speech", "video", "vq", "sam", "backbone", "projector", "codec")
TO_TEXT = ("out_hidden_size", "text_hidden_size", "llm_hidden_size", "proj_dim")  # of a part that sees
# Lists with one value a layer, beside `layer_types`.
PER_LAYER = (
    "mlp_layer_types",
    "attention_layers",
    "no_rope_layers",
    "indexer_types",
    "layer_rope_theta",
    "num_attention_heads_per_layer",
    "activation_sparsity_pattern",
    "moe_layers",
    "mlp_only_layers",
)

_HYBRID = ["linear_attention", "full_attention"]
# ...: the default is left to the class
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "dbrx": {"attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "granitemoehybrid": {"layer_types": _HYBRID},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "ministral": {"head_dim": 16},
    "nemotron": {"head_dim": 16, "num_key_value_heads": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "local"]},
    "xlm": {"emb_dim": 64, "n_words": 512},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "hrm_text": {"num_layers_per_stack": None},
    "xlstm": {"qk_dim_factor": 1.0},
    "qwen4_exp_text": {
        "layer_types": _HYBRID,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 2,
        "hc_lowrank": 8,
        "heads_per_ngram": 2,
    },
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "num_hidden_layers": 4,
        "n_mamba_heads": 8,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "num_mem_blocks": 1,
    },
    "dots3_note_text": {
        "per_layer_config": ...,
        "rope_parameters": None,
        "head_dim": 24,
        "qk_nope_head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 16,
        "swa_kv_lora_rank": 16,
        "swa_head_dim": 24,
        "swa_qk_nope_head_dim": 16,
        "swa_v_head_dim": 16,
    },
    "blt": {"encoder_hash_byte_group_vocab": 128},
}


def tiny_config(
    model_type: str,
    tokens: dict[str, int],
    vocabulary: int,
    special: Mapping[str, Any] | None = None,
    named: Named | None = None,
):
    """The shrunk config of a model type; `tokens` are the ids of pad, bos, eos.

    `special`: fields over the shrunk ones, "text.NAME" and "vision.NAME" for those of a part. `named(config)`: the ids
    of the tokens that a config names, for the whole and for every part.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    shrinking = Shrinking(tokens, vocabulary, named or (lambda config: {}))
    return shrinking.shrink(CONFIG_MAPPING[model_type], model_type, TEXT, special or {})


def tower(model_type: str, **special: Any) -> dict[str, Any]:
    """The shrunk config of a part that sees or hears, where the whole has none by default."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return Shrinking({}, 0, lambda config: {}).shrink(CONFIG_MAPPING[model_type], model_type, VISION, special).to_dict()


def _get(config: Any, name: str) -> Any:
    """A field; some can't be read because they differ by layer: those exist, and count as 1."""
    try:
        return getattr(config, name, None)
    except Exception as error:
        if "PerLayer" in type(error).__name__:
            return 1
        raise


def _settable(kind: type, name: str) -> bool:
    found = getattr(kind, (getattr(kind, "attribute_map", None) or {}).get(name, name), None)
    return not (isinstance(found, property) and found.fset is None)


@dataclass(frozen=True)
class Shrinking:
    """What every part of a config gets: ids of pad, bos and eos, the size of the vocabulary, ids of named tokens."""

    tokens: Mapping[str, int]
    vocabulary: int
    named: Named

    def shrink(self, kind: type, model_type: str, sizes: Mapping[str, int], special: Mapping[str, Any]):
        """The shrunk config of class `kind`. `special`: see tiny_config."""
        special = {**EXCEPTIONS.get(model_type, {}), **special}
        default = kind(**special.pop("__first__", {}))
        own = {name: value for name, value in vars(default).items() if not name.startswith("_")}
        values = {
            name: made
            for name, value in own.items()
            if _settable(kind, name) and (made := self._value(name, value, sizes, special)) is not None
        }
        if sizes is TEXT:
            fields = {*own, *getattr(kind, "__dataclass_fields__", ())}
            values |= {k: v for k, v in self.tokens.items() if k in fields}
            if own.get("bos_token_id") is None:
                values.pop("bos_token_id", None)
            _agree(kind, default, values)
            _layers(kind, default, values)
        values |= self.named(default)
        values |= {name: value for name, value in special.items() if "." not in name}
        return kind(**{name: value for name, value in values.items() if value is not ...})

    def _value(self, name: str, value: Any, sizes: Mapping[str, int], special: Mapping[str, Any]) -> Any:
        """The field's new value; None leaves the default."""
        from transformers import PretrainedConfig

        if isinstance(value, PretrainedConfig):
            return self._part(name, value, sizes, special)
        if name in sizes and _is_size(value):
            return sizes[name]
        if name in sizes and isinstance(value, (list, tuple)) and value and all(map(_is_size, value)):
            return [sizes[name]] * LAYERS
        if name in ("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input", "patch_size_vocab"):
            return self.vocabulary
        if name.endswith("_dropout") or name in ("dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "layerdrop"):
            return 0.0 if isinstance(value, float) else None
        return None

    def _part(self, name: str, value: Any, sizes: Mapping[str, int], special: Mapping[str, Any]) -> dict[str, Any]:
        sense = sizes is VISION or any(word in name for word in SENSES)
        prefixes = (name, "vision" if sense else "text")
        own = {k.partition(".")[2]: v for k, v in special.items() if "." in k and k.partition(".")[0] in prefixes}
        kind = getattr(value, "model_type", "")
        made = self.shrink(type(value), kind, VISION if sense else sizes, own).to_dict()
        return made | ({name: HIDDEN for name in TO_TEXT if name in made and name not in own} if sense else {})


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _agree(kind: type, default: Any, values: dict[str, Any]) -> None:
    """Sizes that several families tie to each other."""
    if "kv_lora_rank" in values:
        values["num_key_value_heads"] = HEADS
        if _get(default, "head_dim") and _get(default, "head_dim") == _get(default, "qk_rope_head_dim"):
            values["head_dim"] = TEXT["qk_rope_head_dim"]
    rope = _get(default, "rope_parameters")
    if isinstance(rope, dict) and "mrope_section" in rope:
        values["rope_parameters"] = {**rope, "mrope_section": [2, 3, 3], "partial_rotary_factor": 1.0}
    if "initializer_range" in vars(default):
        values["initializer_range"] = 0.08
    if "init_std" in vars(default):
        values["init_std"] = 0.08


def _layers(kind: type, default: Any, values: dict[str, Any]) -> None:
    """Per-layer lists: one layer of every kind, at least two."""
    count = LAYERS
    for name in ("layer_types", "layers_block_type"):
        kinds = vars(default).get(name) or None
        if not isinstance(kinds, (list, tuple)) or not _settable(kind, name):
            continue
        kept = list(dict.fromkeys(kinds))
        kept = kept * 2 if len(kept) == 1 else kept
        values[name] = kept
        count = len(kept)
    for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
        if name in values:
            values[name] = count
    for name in PER_LAYER:
        listed = vars(default).get(name)
        if isinstance(listed, (list, tuple)) and listed and _settable(kind, name):
            values[name] = list(listed)[:count]
