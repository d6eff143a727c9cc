"""A tiny random checkpoint of any causal-LM architecture, as a directory with weights, config and tokenizer."""

from __future__ import annotations

from pathlib import Path

from swift.models.packed import fused_experts
from tests import tiny
from tests.matrix.shapes import tiny_config

MOST_PARAMETERS = 20_000_000


def build(model_type: str, path: Path, seed: int = 0) -> Path:
    """Write the checkpoint; what transformers raises for a shape that can't be passes through."""
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    tokenizer = tiny.tokenizer()
    tokens = dict(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id
    )
    config = tiny_config(model_type, tokens, 512)
    name = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]
    name = name if isinstance(name, str) else name[0]
    config.architectures = [name]
    if vars(config).get("is_decoder") is False:
        config.is_decoder = True
    kind = getattr(transformers, name)
    with torch.device("meta"):
        size = sum(p.numel() for p in kind(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size:,} parameters after shrinking")
    torch.manual_seed(seed)
    model = kind(config).float().eval()
    for name in fused_experts(model):  # some classes leave them as the memory was
        torch.nn.init.normal_(model.get_parameter(name), std=0.08)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
