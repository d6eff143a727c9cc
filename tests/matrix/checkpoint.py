"""A tiny random checkpoint of any architecture, as a directory with weights, config and tokenizer or processor."""

from __future__ import annotations

from pathlib import Path

from swift.models.packed import fused_experts
from tests import tiny
from tests.matrix import senses
from tests.matrix.shapes import tiny_config

MOST_PARAMETERS = 20_000_000


def class_of(model_type: str) -> str:
    """The name of the class that is tried: of the whole model for those that see or hear."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    )

    table = MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES if senses.sees(model_type) else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    name = table[model_type]
    return name if isinstance(name, str) else name[0]


def build(model_type: str, path: Path, seed: int = 0) -> Path:
    """Write the checkpoint; what transformers raises for a shape that can't be passes through."""
    import torch
    import transformers

    processor = senses.processor_for(model_type) if senses.sees(model_type) else None
    tokenizer = processor.tokenizer if processor else tiny.tokenizer()
    tokens = dict(
        pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.eos_token_id
    )
    if processor:
        recipe = senses.recipe_of(model_type)
        special = {name: value(tokenizer) if callable(value) else value for name, value in recipe.config.items()}
        config = tiny_config(model_type, tokens, len(tokenizer), special, senses.naming(processor, recipe.ids))
    else:
        config = tiny_config(model_type, tokens, 512)
    name = class_of(model_type)
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
    (processor or tokenizer).save_pretrained(path)
    return path


def initialise(model) -> None:
    """Draw the weights that a class leaves as the memory was (fused experts), or sets to nothing for a start: gates at
    zero, towers at 1e-10. Nothing would be seen of them, and few bits can't hold them.
    """
    import torch

    fused = set(fused_experts(model))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = name.rpartition(".")[2]
            gate = ("gate" in own and parameter.numel() == 1) or ("alpha" in own and not parameter.any())
            nothing = parameter.ndim >= 2 and not parameter.std() > 1e-6
            if gate or not parameter.isfinite().all():
                parameter.normal_(std=0.3)
            elif name in fused or nothing:
                parameter.normal_(std=0.08)
