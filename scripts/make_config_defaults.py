"""Writes swift/advise/config_defaults.json: the defaults of transformers' configs that tell a model's size.

A config.json on a hub often leaves out what equals the default of its class, so the size can't be read from it alone.
Run after a new release of transformers: python scripts/make_config_defaults.py
"""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub.errors import StrictDataclassClassValidationError

from swift.advise.shape import NAMES

OTHERS = [
    "tie_word_embeddings",
    "layer_types",
    "mlp_layer_types",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "attention_bias",
    "mlp_bias",
    "use_bias",
    "use_qkv_bias",
    "qkv_bias",
    "bias",
    "multi_query",
    "mlp_only_layers",
    "decoder_sparse_step",
    "moe_layer_freq",
    "interleave_moe_layer_step",
    "moe_layers",
    "sliding_window_pattern",
    "use_sliding_window",
    "intermediate_size_mlp",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "linear_conv_kernel_dim",
    "global_head_dim",
    "num_global_key_value_heads",
    "hidden_size_per_layer_input",
    "vocab_size_per_layer_input",
    "attn_logit_softcapping",
    "final_logit_softcapping",
]


def period(kinds: list[str]) -> list[str]:
    """The shortest beginning of the list that gives the whole of it when repeated."""
    lengths = range(1, len(kinds) + 1)
    return next((kinds[:n] for n in lengths if all(kind == kinds[i % n] for i, kind in enumerate(kinds))), [])


def derived(config, values: dict) -> set[str]:
    """Fields that the class computes from the width or the heads: their values say nothing of another size."""
    found: set[str] = set()
    for quantity in ("hidden", "heads"):
        name = next((n for n in NAMES[quantity] if isinstance(values.get(n), int)), None)
        if name is None:
            continue
        try:
            other = type(config)(**{name: 2 * values[name]}).to_dict()
        except (ValueError, TypeError, StrictDataclassClassValidationError):
            continue  # this class allows no such change
        found |= {field for field, value in values.items() if field != name and other.get(field) != value}
    return found


def defaults() -> dict[str, dict]:
    """Text model type -> the relevant fields of its config class as they are when nothing is given."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    from transformers.utils import logging

    logging.set_verbosity_error()
    names = [*(name for group in NAMES.values() for name in group), *OTHERS]
    found = {}
    for kind in (
        *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    ):  # text-only ones first
        try:
            whole = CONFIG_MAPPING[kind]()
            config = whole.get_text_config(decoder=True)
        except (KeyError, ValueError, StrictDataclassClassValidationError):
            continue  # not of this release, or several text models in one
        if config is not whole and config.model_type in found:
            continue  # a multimodal model's own choice for a class that has its defaults already
        values = config.to_dict()
        computed = derived(config, values)
        kept = {
            name: values[name]
            for name in names
            if name not in computed and isinstance(values.get(name), (bool, int, float, list))
        }
        # of a list by layer only its rhythm carries over to another number of layers
        found[config.model_type] = {k: v for k, v in kept.items() if not isinstance(v, list)}
        rhythm = period(values.get("layer_types") or [])
        if len(set(rhythm)) > 1:
            found[config.model_type]["layer_rhythm"] = rhythm
    return dict(sorted(found.items()))


def text() -> str:
    lines = [f"{json.dumps(kind)}: {json.dumps(values, sort_keys=True)}" for kind, values in defaults().items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    path = Path(__file__).resolve().parents[1] / "swift" / "advise" / "config_defaults.json"
    path.write_text(text(), encoding="utf-8")
    print(f"wrote {path}")
