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
    initialise(model)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def initialise(model) -> None:
    """Draw the weights that a class leaves as the memory was (fused experts), or sets to nothing for a start: gates at
    zero, towers at 1e-10. Nothing would be seen of them, and few bits can't hold them.
    """
    import torch

    fused = set(fused_experts(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gate = "gate" in name.rpartition(".")[2] and parameter.numel() == 1
            nothing = parameter.ndim >= 2 and not parameter.std() > 1e-6
            if name in fused or gate or nothing:
                parameter.normal_(std=0.08)
