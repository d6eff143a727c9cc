"""The parts of a model that sees or hears: the language model, the towers beside it, and what joins the two.

Promises: every parameter belongs to exactly one part; a model of text is all language. Found from the module tree: the
language model is what transformers names as the decoder, with the head; what stands beside it on the way there is a
tower, unless its name says that it joins (a projector, a merger); so for the modules of a tower. Names no model family.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

LLM, VIT, ALIGNER = "llm", "vit", "aligner"
# what transformers' classes call the layers between a tower and the language model
JOINING = re.compile(
    r"(^|_)(projector|projection|connector|merger|mergers|aligner|adapter|adaptor|resampler|perceiver|downsample"
    r"|embed_vision|embed_audio)($|_)"
)


@dataclass(frozen=True)
class Parts:
    """Prefixes of module names ("" stands for all). `loose`: parameters that hang between the parts."""

    language: str = ""
    towers: tuple[str, ...] = ()
    aligners: tuple[str, ...] = ()
    loose: tuple[str, ...] = ()

    def of(self, name: str) -> str:
        """The part of a module or parameter, by its full name, also inside a peft model."""
        name = name.removeprefix("base_model.model.")
        if any(_within(name, prefix) for prefix in self.aligners) or name in self.loose:
            return ALIGNER
        return VIT if any(_within(name, prefix) for prefix in self.towers) else LLM

    @property
    def several(self) -> bool:
        return bool(self.towers or self.aligners)


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def find_parts(model: nn.Module) -> Parts:
    """The parts of a transformers model, or of one inside a peft model."""
    from peft import PeftModel

    if isinstance(model, PeftModel):
        model = model.get_base_model()
    if getattr(model.config, "text_config", None) is None:
        return Parts()
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    path = next((name for name, module in model.named_modules() if module is decoder), "")
    if not path:
        return Parts()
    towers, aligners, loose = [], [], []
    at, prefix = model, ""
    for step in path.split("."):
        loose += [prefix + name for name, _ in at.named_parameters(recurse=False)]
        for name, child in at.named_children():
            if name != step and child is not head and any(True for _ in child.parameters()):
                (aligners if JOINING.search(name) else towers).append(prefix + name)
        at, prefix = getattr(at, step), f"{prefix}{step}."
    for tower in towers:
        inner = (name for name, _ in model.get_submodule(tower).named_children())
        aligners += [f"{tower}.{name}" for name in inner if JOINING.search(name)]
    return Parts(path, tuple(towers), tuple(aligners), tuple(loose))


def config_value(config: Any, name: str) -> Any:
    """A config's attribute, None where it has none; its general value where layers may differ in it (Gemma 4)."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return config.to_dict().get(name)
