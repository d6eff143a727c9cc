"""The transformers config of a GGUF file, with what transformers' own reader leaves out: the size of a head, and how
positions are scaled for long contexts (without it a model loads, and computes other angles than llama.cpp does).

The keys are those of the GGUF specification (ggml/docs/gguf.md); Llama 3's scaling stands in the file as the divisors
that it gives, and is found from these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from swift.errors import ModelFileError

FACTORS = "rope_freqs.weight"  # [head size / 2]: what llama.cpp divides the frequencies by
# layers of the models that divide attention by the square root of hidden size / heads, not of a head's size
GEMMA_27B = {"gemma2": 46, "gemma3": 62}
SCALINGS = ("linear", "yarn")
# sizes that transformers leaves at its own defaults
EXPERTS = {
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}


def read_config(path: Path, metadata: Mapping[str, Any], factors: torch.Tensor | None) -> Any:
    """The config of the file. `factors`: its tensor of divisors, if it has one. ModelFileError for a scaling that
    transformers has no counterpart of.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name, local_files_only=True)
    prefix = metadata["general.architecture"]
    size = metadata.get(f"{prefix}.attention.key_length")
    if size and hasattr(config, "head_dim"):
        config.head_dim = int(size)
    if size and hasattr(config, "query_pre_attn_scalar"):  # Gemma: as llama.cpp has it
        wide = config.num_hidden_layers == GEMMA_27B.get(prefix)
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if wide else int(size)
    for key, name in EXPERTS.items():
        if f"{prefix}.{key}" in metadata and hasattr(config, name):
            setattr(config, name, int(metadata[f"{prefix}.{key}"]))
    scaling = _scaling(path, metadata, factors, config)
    if scaling:
        rope = dict(config.rope_parameters)
        whole = rope.get("full_attention", rope)
        whole.update(scaling)
        config.rope_parameters = rope
    return config


def _scaling(path: Path, metadata: Mapping[str, Any], factors: torch.Tensor | None, config: Any) -> dict[str, Any]:
    """What belongs into rope_parameters."""
    if getattr(config, "rope_parameters", None) is None:
        return {}
    prefix = f"{metadata['general.architecture']}.rope.scaling"
    kind = metadata.get(f"{prefix}.type")
    if kind in SCALINGS and metadata.get(f"{prefix}.factor", 1.0) != 1.0:
        found: dict[str, Any] = {"rope_type": kind, "factor": float(metadata[f"{prefix}.factor"])}
        original = metadata.get(f"{prefix}.original_context_length")
        if kind == "yarn" and original:
            found["original_max_position_embeddings"] = int(original)
        return found
    if factors is None or bool((factors == 1).all()):
        return {}
    theta = dict(config.rope_parameters).get("rope_theta") or metadata.get(
        f"{metadata['general.architecture']}.rope.freq_base", 10000.0
    )
    fitted = llama3_scaling(factors.float(), float(theta))
    if fitted is None:
        what = "the file scales its positions in a way that transformers has no counterpart of (rope_freqs)"
        raise ModelFileError(what, where=str(path), fix="use the model's directory of safetensors")
    return fitted


def llama3_scaling(factors: torch.Tensor, theta: float) -> dict[str, Any] | None:
    """Llama 3's settings that give these divisors [half a head], or None.

    A frequency f with s = (original f / 2 pi - low) / (high - low) cut to 0..1 becomes (1 - s) f / factor + s f. Only
    two of low, high and original are free, so low is 1, as in every release.
    """
    half = len(factors)
    turns = theta ** (-torch.arange(half, dtype=torch.float64) / half) / (2 * math.pi)  # a token
    kept = 1 / factors.double()
    factor = float(factors.max())
    share = (kept - 1 / factor) / (1 - 1 / factor)
    between = (share > 1e-4) & (share < 1 - 1e-4)
    choices = [(4.0, 8192)]
    if int(between.sum()) >= 2:
        x, y = turns[between], share[between]
        slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
        offset = float(slope * x.mean() - y.mean())
        if offset > 1e-6:
            choices.append((round(1 + 1 / offset, 3), round(slope / offset)))
    for high, original in choices:
        given = ((turns * original - 1) / (high - 1)).clamp(0, 1)
        if torch.allclose((1 - given) / factor + given, kept, rtol=2e-3, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": high,
                "original_max_position_embeddings": original,
            }
    return None
