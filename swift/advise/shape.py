"""config.json -> the dimensions and the parameter count of a transformer, without torch and without weights.

Promises: for the architectures whose peculiarities stand in architectures.toml (and every other one built like Llama)
the count is that of transformers' own model, embeddings shared where they are tied. Knows nothing of what vision and
audio towers look like inside: theirs is an approximation, and `exact` is then False. Fields that config.json leaves
out are transformers' own defaults (config_defaults.json).
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from swift.advise.layers import Layer, Linear, Shape
from swift.errors import ModelFileError

HERE = Path(__file__).parent
# what a quantity is called in the configs of different architectures, the likeliest first
NAMES: dict[str, tuple[str, ...]] = {
    "hidden": ("hidden_size", "n_embd", "d_model", "dim", "model_dim"),
    "layers": ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "num_heads", "n_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "n_kv_heads", "multi_query_group_num"),
    "head_dim": ("head_dim", "attention_head_dim", "kv_channels", "attention_head_size"),
    "inner": ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "d_ff"),
    "vocab": ("vocab_size", "padded_vocab_size"),
    "context": ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "n_ctx", "max_seq_len"),
    "experts": ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts"),
    "top_k": ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "moe_top_k", "top_k_experts"),
    "expert_inner": ("moe_intermediate_size", "expert_intermediate_size"),
    "shared_inner": (
        "shared_expert_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "shared_intermediate_size",
    ),
    "shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert"),
    "dense_first": ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"),
    "window": ("sliding_window", "attention_window_size", "local_attention"),
}
TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config", "lm_config")
TOWER_PARTS = ("vision_config", "audio_config", "visual", "vision_encoder", "speech_config")


@functools.cache
def _architectures() -> dict[str, dict[str, Any]]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads((HERE / "architectures.toml").read_text(encoding="utf-8"))


@functools.cache
def _defaults() -> dict[str, dict[str, Any]]:
    return json.loads((HERE / "config_defaults.json").read_text(encoding="utf-8"))


class Fields:
    """A (text) config with one name per quantity; absent fields are the architecture's defaults."""

    def __init__(self, config: Mapping[str, Any]):
        self.model_type = str(config.get("model_type") or "")
        self.given, self.defaults = config, _defaults().get(self.model_type, {})
        self.values = {**self.defaults, **config}
        self.rules = {**_architectures()["llama"], **_architectures().get(self.model_type, {})}

    def number(self, quantity: str, default: int | None = None) -> int:
        """The first of the quantity's names that has a value. ModelFileError when there is none and no default."""
        for source in (self.given, self.defaults):  # a name that is given beats a default under another name
            for name in NAMES[quantity]:
                value = source.get(name)
                if isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
                    value = max(value)
                if isinstance(value, int) and not isinstance(value, bool):
                    return value
        if default is None:
            names = ", ".join(NAMES[quantity][:2])
            what = f"config.json doesn't say how large the model is ({names} is missing)"
            raise ModelFileError(
                what, where=self.model_type or None, fix="check --model: a causal language model is needed"
            )
        return default

    def per_layer(self, quantity: str, index: int, default: int) -> int:
        """A quantity that some configs list layer by layer."""
        for name in NAMES[quantity]:
            value = self.values.get(name)
            if isinstance(value, (list, tuple)) and index < len(value) and isinstance(value[index], int):
                return value[index]
        return self.number(quantity, default)

    def flag(self, name: str) -> bool:
        return bool(self.values.get(name))


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config; the config itself when it is one of a text-only model."""
    for part in TEXT_PARTS:
        inner = config.get(part)
        if isinstance(inner, Mapping):
            outer = {k: config[k] for k in ("tie_word_embeddings",) if k in config and k not in inner}
            return text_config({**inner, **outer})
    return config


def shape_of(config: Mapping[str, Any], stored: int | None = None) -> Shape:
    """The shape that config.json describes; `stored`: parameters found in the weight files, where they are there.

    ModelFileError when the fields for a transformer's size are missing.
    """
    fields = Fields(text_config(config))
    rules = fields.rules
    hidden, count = fields.number("hidden"), fields.number("layers")
    layers = tuple(_layer(fields, hidden, index) for index in range(count))
    tied = fields.values.get("tie_word_embeddings", config.get("tie_word_embeddings", True))
    extras = hidden * (rules["final_norms"] + rules["final_norms"] * rules["norm_bias"])
    if rules["positions"]:
        extras += (fields.number("context") + rules["position_offset"]) * hidden
    per_layer = fields.values.get("hidden_size_per_layer_input") or 0
    if per_layer:  # Gemma 4: a second embedding that feeds every layer
        rows = fields.values.get("vocab_size_per_layer_input") or fields.number("vocab")
        extras += per_layer * (count * (rows + hidden) + 1) + count * (2 * hidden * per_layer + hidden)
    known = fields.model_type in _architectures() or fields.model_type in ("", "llama")
    shape = Shape(
        model_type=fields.model_type,
        hidden=hidden,
        vocab=fields.number("vocab"),
        context=fields.number("context", 0) or None,
        layers=layers,
        tied=bool(tied),
        extras=extras,
        head_bias=rules["head_bias"],
        exact=known,
        final_softcap=bool(fields.values.get("final_logit_softcapping")),
    )
    tower = _tower(config)
    if tower or stored:
        shape = replace(shape, tower=tower, exact=known and not tower, stored=stored)
    if stored and tower:
        # the tower is what the files hold beyond the language model
        shape = replace(shape, tower=max(0, stored - (shape.counted - tower)))
    return shape


def _tower(config: Mapping[str, Any]) -> int:
    """A rough count of vision and audio encoders: 12 d^2 per layer of width d."""
    total = 0
    for part in TOWER_PARTS:
        inner = config.get(part)
        if isinstance(inner, Mapping):
            width = next(
                (inner[k] for k in ("hidden_size", "embed_dim", "d_model", "width") if isinstance(inner.get(k), int)), 0
            )
            depth = next(
                (
                    inner[k]
                    for k in ("num_hidden_layers", "depth", "encoder_layers", "layers")
                    if isinstance(inner.get(k), int)
                ),
                0,
            )
            wide = inner.get("intermediate_size") or 4 * width
            total += depth * (4 * width * width + 2 * width * wide)
    return total


def _layer(fields: Fields, hidden: int, index: int) -> Layer:
    attention = _attention(fields, hidden, index)
    mlp = _mlp(fields, hidden, index)
    rules = fields.rules
    norms = hidden * rules["norms"] * (1 + rules["norm_bias"])
    return replace(
        attention,
        linears=attention.linears + mlp.linears,
        inner=mlp.inner,
        expert_inner=mlp.expert_inner,
        experts=mlp.experts,
        top_k=mlp.top_k,
        gated=mlp.gated,
        norms=rules["norms"],
        layer_norm=rules["norm_bias"],
        wide_norm=rules["wide_norm"],
        softcap=bool(fields.values.get("attn_logit_softcapping")),
        dropout=bool(fields.values.get("attention_dropout") or fields.values.get("attn_pdrop")),
        extras=attention.extras + mlp.extras + norms,
    )


def _kind(fields: Fields, index: int) -> str | None:
    """What `layer_types` says of layer `index`, or the older `sliding_window_pattern` (every n-th layer sees
    everything).
    """
    kinds = fields.values.get("layer_types")
    if isinstance(kinds, (list, tuple)) and index < len(kinds):
        return str(kinds[index])
    every = fields.values.get("sliding_window_pattern")
    if isinstance(every, int) and every > 1:
        return "full_attention" if (index + 1) % every == 0 else "sliding_attention"
    rhythm = fields.values.get("layer_rhythm")
    return rhythm[index % len(rhythm)] if rhythm else None


def _window(fields: Fields, index: int) -> int | None:
    """The sliding window of layer `index`, None where it sees everything."""
    window = fields.number("window", 0) or None
    kind = _kind(fields, index)
    if kind is not None:
        return window if kind.startswith(("sliding", "chunked", "local")) else None
    if fields.values.get("use_sliding_window") is False:
        return None
    return window


def _attention(fields: Fields, hidden: int, index: int) -> Layer:
    values, rules = fields.values, fields.rules
    heads = fields.per_layer("heads", index, 1)
    if values.get("kv_lora_rank"):
        return _latent_attention(fields, hidden, heads)
    if rules["linear_attention"] and _kind(fields, index) == "linear_attention":
        return _linear_attention(fields, hidden)
    head_dim, kv_heads = _heads(fields, hidden, heads, index)
    query, key = heads * head_dim, kv_heads * head_dim
    bias = rules["attention_bias"]
    if bias == "config":
        bias = "all" if any(fields.flag(n) for n in ("attention_bias", "use_bias", "use_qkv_bias", "bias")) else "none"
    elif bias == "config_qkv":
        bias = "qkv" if any(fields.flag(n) for n in ("attention_bias", "use_qkv_bias", "qkv_bias")) else "none"
    qkv_bias, out_bias = bias != "none", bias == "all"
    if rules["qkv_name"]:
        inputs = [Linear(rules["qkv_name"], hidden, query + 2 * key, qkv_bias)]
    else:
        parts = zip(("q_proj", "k_proj", "v_proj"), (query, key, key), strict=True)
        inputs = [Linear(name, hidden, width, qkv_bias) for name, width in parts]
        if rules["query_gate"]:
            inputs[0] = replace(inputs[0], outputs=2 * query)
    linears = [*inputs, Linear(rules["out_name"], query, hidden, out_bias)]
    norm = {"head": 2 * head_dim, "full": query + key, "none": 0}[rules["qk_norm"]]
    return Layer(
        linears=tuple(linears),
        heads=heads,
        query=query,
        key=key,
        value=key,
        attended=query,
        cached=2 * key,
        inner=0,
        window=_window(fields, index),
        extras=norm + heads * rules["sinks"],
        qk_norm=bool(norm),
    )


def _heads(fields: Fields, hidden: int, heads: int, index: int) -> tuple[int, int]:
    """(width of a head, number of key/value heads) of layer `index`; Gemma 4's full layers have their own."""
    values = fields.values
    head_dim = fields.number("head_dim", 0) or hidden // heads
    kv_heads = fields.per_layer("kv_heads", index, heads)
    if values.get("multi_query") and not values.get("new_decoder_architecture"):
        kv_heads = 1
    if _kind(fields, index) == "full_attention":
        head_dim = values.get("global_head_dim") or head_dim
        kv_heads = values.get("num_global_key_value_heads") or kv_heads
    return head_dim, kv_heads


def _linear_attention(fields: Fields, hidden: int) -> Layer:
    """Gated DeltaNet (Qwen3-Next, Qwen3.5): a state of fixed size instead of a cache that grows."""
    v = {
        n: fields.values[f"linear_{n}"] for n in ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim")
    }
    key, value, heads = (
        v["num_key_heads"] * v["key_head_dim"],
        v["num_value_heads"] * v["value_head_dim"],
        v["num_value_heads"],
    )
    kernel = fields.values.get("linear_conv_kernel_dim", 4)
    names = fields.rules["linear_attention"]
    widths = [2 * key + 2 * value, 2 * heads] if len(names) == 2 else [2 * key + value, value, heads, heads]
    linears = [Linear(name, hidden, width) for name, width in zip(names, widths, strict=True)]
    return Layer(
        linears=(*linears, Linear("out_proj", value, hidden)),
        heads=heads,
        query=key + value,
        key=key,
        value=value,
        attended=value,
        cached=0,
        inner=0,
        extras=2 * heads + (2 * key + value) * kernel + v["value_head_dim"],
    )


def _latent_attention(fields: Fields, hidden: int, heads: int) -> Layer:
    """Multi-head latent attention (DeepSeek): keys and values are expanded from one small vector per token."""
    values = fields.values
    rank, q_rank = values["kv_lora_rank"], values.get("q_lora_rank")
    plain, rope, value = (values[n] for n in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    query, bias = heads * (plain + rope), fields.flag("attention_bias")
    if q_rank:
        down, up = Linear("q_a_proj", hidden, q_rank, bias), Linear("q_b_proj", q_rank, query)
        linears, norms = [down, up], q_rank
    else:
        linears, norms = [Linear("q_proj", hidden, query)], 0
    linears += [
        Linear("kv_a_proj_with_mqa", hidden, rank + rope, bias),
        Linear("kv_b_proj", rank, heads * (plain + value)),
        Linear("o_proj", heads * value, hidden, bias),
    ]
    return Layer(
        linears=tuple(linears),
        heads=heads,
        query=query,
        key=query,
        value=heads * value,
        attended=heads * value,
        cached=rank + rope,  # before the expansion
        inner=0,
        extras=norms + rank,
    )


def _is_sparse(fields: Fields, index: int) -> bool:
    """Whether layer `index` has experts instead of one MLP."""
    values = fields.values
    if fields.number("experts", 0) < 2:
        return False
    kinds = values.get("mlp_layer_types")
    if isinstance(kinds, (list, tuple)) and index < len(kinds):
        return kinds[index] == "sparse"
    listed = values.get("moe_layers")
    if isinstance(listed, (list, tuple)):
        return index in listed
    if index in (values.get("mlp_only_layers") or ()) or index < fields.number("dense_first", 0):
        return False
    step = (
        values.get("decoder_sparse_step")
        or values.get("moe_layer_freq")
        or values.get("interleave_moe_layer_step")
        or 1
    )
    return isinstance(step, int) and (index + fields.rules["sparse_offset"]) % step == 0


def _dense(fields: Fields, hidden: int, inner: int, prefix: str = "") -> list[Linear]:
    rules = fields.rules
    bias = rules["mlp_bias"] == "all" or (
        rules["mlp_bias"] == "config" and (fields.flag("mlp_bias") or fields.flag("use_bias"))
    )
    if rules["up_names"]:
        names = list(rules["up_names"])
    else:
        names = ["gate_proj", "up_proj"] if rules["gated"] else ["up_proj"]
    factor = 2 if rules["gated"] and len(names) == 1 else 1
    ups = [Linear(name, hidden, factor * inner, bias) for name in names]
    return [*ups, Linear(rules["down_name"], inner, hidden, bias)]


def _mlp(fields: Fields, hidden: int, index: int) -> Layer:
    rules = fields.rules
    dense = fields.per_layer("inner", index, 4 * hidden)
    nothing = dict(heads=0, query=0, key=0, value=0, attended=0, cached=0)
    if not _is_sparse(fields, index):
        inner = fields.values.get(rules["dense_inner"])
        inner = inner if isinstance(inner, int) and inner else dense
        linears = _dense(fields, hidden, inner)
        return Layer(tuple(linears), **nothing, inner=inner, gated=rules["gated"])
    experts, top_k = fields.number("experts"), fields.number("top_k", 2)
    inner = fields.number("expert_inner", dense)
    shared = (
        fields.number("shared_inner", 0) or fields.number("shared_experts", 0) * inner or rules["always_shared"] * inner
    )
    linears = [
        replace(linear, count=experts, used=top_k, expert=True, bias=rules["expert_bias"])
        for linear in _dense(fields, hidden, inner)
    ]
    linears.append(Linear("gate", hidden, experts, rules["router_bias"], router=True))
    if shared:
        linears += _dense(fields, hidden, shared)
        if rules["shared_gate"]:
            linears.append(Linear("shared_expert_gate", hidden, 1, router=True))
    return Layer(
        tuple(linears),
        **nothing,
        inner=shared,
        expert_inner=inner,
        experts=experts,
        top_k=top_k,
        gated=rules["gated"],
        extras=0,
    )
