"""The floating point operations that a batch needs: matrix products and attention, forward and backward.

Promises: what training needs, not what an implementation does: nothing for padding, for logits where there is no label
or for what is computed twice to save memory; a product costs once forward, once more where a gradient goes on to its
input and once more where its matrix trains. Convolutions, recurrent layers and elementwise work count nothing; so does
the attention of towers. Found from the module tree and transformers' names in configs.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from swift.models.parts import LLM, config_value, find_parts
from swift.train.zero import numel

WINDOWED = ("sliding_attention", "chunked_attention")


class Needed:
    """`per_token`: operations of the language model's matrices for each token; `per_label`: of its head."""

    def __init__(self, model: nn.Module):
        self.per_token = self.per_label = 0.0
        self._of_towers = 0.0
        self._counting = False
        parts = find_parts(model)
        head = model.get_output_embeddings()
        config = model.config.get_text_config()
        share = _active_share(config)
        towers: dict[str, float] = {}  # what is called as a whole -> operations for each of its tokens
        trains = False
        for name, module in model.named_modules():
            elements = matrix_elements(module)
            trained = any(p.requires_grad for p in module.parameters(recurse=False))
            passes = 1 + trains + trained
            trains = trains or trained
            work = 2.0 * passes * elements
            if not elements:
                continue
            if module is head:
                self.per_label += work
            elif parts.of(name) == LLM:
                self.per_token += work * (share if ".experts" in name else 1.0)
            else:
                place = _block(model, name)
                towers[place] = towers.get(place, 0.0) + work
        for name, work in towers.items():
            model.get_submodule(name).register_forward_hook(functools.partial(self._tower, work))
        self.kinds = _attention(config, passes=3 if trains else 1)

    def of(self, mask: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """A padded batch's operations, float64 scalar (float32 where a device has none). `mask`, `labels` [B, T]."""
        dtype = torch.float32 if mask.device.type == "mps" else torch.float64
        lengths = mask.sum(1).to(dtype)
        total = lengths.sum() * self.per_token + self._of_towers
        self._of_towers = 0.0
        if labels is not None:
            total = total + (labels[:, 1:] >= 0).sum() * self.per_label
        for window, work in self.kinds:
            seen = lengths if window is None else lengths.clamp(max=window)
            total = total + ((lengths - seen) * seen + seen * (seen + 1) / 2).sum() * work
        return total

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Around a forward pass: the tokens of towers are known only when they are called."""
        self._counting = True
        try:
            yield
        finally:
            self._counting = False

    def _tower(self, work: float, module: nn.Module, args: tuple, output: Any) -> None:
        tensors = [x for x in (*args, output) if isinstance(x, torch.Tensor) and x.ndim > 1]
        if self._counting and tensors:
            self._of_towers += work * tensors[0].numel() / tensors[0].shape[-1]


def matrix_elements(module: nn.Module) -> float:
    """Elements of the matrices that a module multiplies by, its children's left out; packed weights count unpacked."""
    if isinstance(module, nn.Embedding):
        return 0
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inputs, int) and isinstance(outputs, int) and "base_layer" not in dict(module.named_children()):
        return inputs * outputs
    own = module.parameters(recurse=False)
    return sum(numel(p) for p in own if p.ndim in (2, 3) and p.is_floating_point())


def _active_share(config: Any) -> float:
    """The share of its experts that a token goes through."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    experts = next((n for n in (getattr(config, name, None) for name in names) if isinstance(n, int) and n), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    return chosen / experts if experts and isinstance(chosen, int) else 1.0


def _block(model: nn.Module, name: str) -> str:
    """The outermost layer of a list of layers that a module of a tower is in, or the module itself."""
    path = name.split(".")
    for depth in range(1, len(path)):
        if isinstance(model.get_submodule(".".join(path[:depth])), nn.ModuleList):
            return ".".join(path[: depth + 1])
    return name


def _attention(config: Any, passes: int) -> list[tuple[int | None, float]]:
    """(window or None, operations for each pair of a token and one that it sees, over all layers of this kind)."""
    heads, layers = config_value(config, "num_attention_heads"), config_value(config, "num_hidden_layers")
    if not isinstance(heads, int) or not isinstance(layers, int):
        return []
    size = config_value(config, "head_dim") or config.hidden_size // heads
    key = config_value(config, "qk_head_dim") or size
    value = config_value(config, "v_head_dim") or size
    window = config_value(config, "sliding_window") or config_value(config, "attention_chunk_size")
    default = ["full_attention" if window is None else "sliding_attention"] * layers
    kinds = config_value(config, "layer_types") or default
    work = 2.0 * passes * heads * (key + value)
    found = [(None, work * kinds.count("full_attention"))]
    found.append((window, work * sum(kinds.count(kind) for kind in WINDOWED)))
    return [(window, work) for window, work in found if work]
