"""Finds the layers whose structure the fused operations know, and puts them into these instances.

Promises: classes aren't touched and parameters keep their names; `Fused.release` makes every instance what it was.
What a layer has that isn't known here (trained biases, several adapters, variants of LoRA but DoRA) leaves it as it is,
and `Fused.summary` counts it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import nn

from swift.models.quantized import is_quantized
from swift.train.lean.blocks import Gated, RmsNorm, activation_of, norm_kind
from swift.train.lean.dora import Dora
from swift.train.lean.lora import GatedMlp, Group, Project
from swift.train.lean.projections import kind_of

QUERY_KEY_VALUE = ("q_proj", "k_proj", "v_proj")
GATED = ("gate_proj", "up_proj", "down_proj")


class Fused:
    """The fused layers of one model. `light`: gate and up aren't kept but computed again in the backward pass."""

    def __init__(self, model: nn.Module, light: bool = False):
        self.model, self.light = model, light
        self.counts: Counter[str] = Counter()
        self.left: Counter[str] = Counter()
        self._patched: list[tuple[nn.Module, Any]] = []
        self._groups: list[Group] = []

    def engage(self) -> None:
        if self._patched:
            self._install()
            return
        self.counts.clear()
        self.left.clear()
        done: set[int] = set()
        for module in list(self.model.modules()):
            children = dict(module.named_children())
            if {*GATED, "act_fn"} <= children.keys() and len(children) == 4:
                self._mlp(module, children, done)
            if all(name in children for name in QUERY_KEY_VALUE):
                self._group(module, [children[name] for name in QUERY_KEY_VALUE], done)
        for module in list(self.model.modules()):
            if is_lora(module) and id(module) not in done:
                why = refusal(module)
                if why is None:
                    self._group(None, [module], done)
                else:
                    self.left[why] += 1
            kind = norm_kind(module)
            if kind is not None:
                self._patch(module, _norm_forward(module, kind))
                self.counts["norms"] += 1
        self._install()

    def rest(self) -> None:
        """The layers' own forward until the next `engage`; their weights stay where they are, views of joint ones."""
        for module, _ in self._patched:
            module.__dict__.pop("forward", None)

    def release(self) -> None:
        self.rest()
        self._patched.clear()
        while self._groups:
            self._groups.pop().dismantle()

    def summary(self) -> str:
        made = ", ".join(f"{count} {name}" for name, count in self.counts.items()) or "none"
        left = "; ".join(f"{count} left as they are: {why}" for why, count in self.left.items())
        return f"fused layers: {made}" + (f" ({left})" if left else "")

    def _patch(self, module: nn.Module, forward: Any) -> None:
        self._patched.append((module, forward))

    def _install(self) -> None:
        for module, forward in self._patched:
            module.forward = forward

    def _mlp(self, module: nn.Module, children: dict[str, nn.Module], done: set[int]) -> None:
        layers = [children[name] for name in GATED]
        act = children["act_fn"]
        if activation_of(act) is None:
            self.left[f"the activation {type(act).__name__}"] += 1
            return
        if not all(is_lora(layer) for layer in layers):
            if not any(is_lora(layer) for layer in layers) and not self._lora_model():
                self._patch(module, _gated_forward(module))
                self.counts["gated products"] += 1
            return
        if any(map(refusal, layers)) or not _alike(layers[:2]):
            return  # counted when the layers are looked at one by one
        first, last = self._projections(layers[:2]), self._projections(layers[2:])
        self._patch(module, _mlp_forward(module, first, last, not self.light))
        self.counts["MLPs"] += 1
        done.update(map(id, layers))

    def _lora_model(self) -> bool:
        return any(is_lora(module) for module in self.model.modules())

    def _group(self, parent: nn.Module | None, layers: list[nn.Module], done: set[int]) -> None:
        layers = [layer for layer in layers if is_lora(layer) and refusal(layer) is None]
        if parent is None and not layers:
            return
        if parent is not None and (len(layers) < 2 or not _alike(layers)):
            return
        shared = _Shared(self._projections(layers))
        for place, layer in enumerate(layers):
            self._patch(layer, _shared_forward(shared, layer, place))
            done.add(id(layer))
        self.counts["groups of projections" if len(layers) > 1 else "projections"] += 1

    def _projections(self, layers: list[nn.Module]) -> Group:
        base, adapter = layers[0].base_layer, layers[0].active_adapters[0]
        dtype = self.model.dtype if is_quantized(base) else base.weight.dtype
        group = kind_of(layers[0])(layers, adapter, dtype)
        if is_dora(layers[0]):
            group = Dora(group)
        self._groups.append(group)
        return group


def is_lora(module: nn.Module) -> bool:
    from peft.tuners.lora import LoraLayer

    return isinstance(module, LoraLayer)


def is_dora(layer: nn.Module) -> bool:
    from peft.tuners.lora.variants import DoraLinearVariant

    return any(type(variant) is DoraLinearVariant for variant in layer.lora_variant.values())


def refusal(layer: nn.Module) -> str | None:
    """Why a LoRA layer stays peft's own; None when the fused operations know it."""
    from peft.tuners.lora import Linear

    base = layer.base_layer
    quantized = is_quantized(base)
    if not (quantized or (isinstance(layer, Linear) and type(base) is nn.Linear)):
        return f"{type(base).__name__} under LoRA"
    if len(layer.active_adapters) != 1 or len(layer.lora_A) != 1 or layer.merged:
        return "several adapters"
    adapter = layer.active_adapters[0]
    if layer.lora_variant.get(adapter) is not None and not is_dora(layer):
        return type(layer.lora_variant[adapter]).__name__
    if layer.lora_bias.get(adapter) or base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad):
        return "weights or biases of the base that train"
    if layer.fan_in_fan_out or not (quantized or base.weight.dtype in (torch.float32, torch.bfloat16, torch.float16)):
        return f"weights in {base.weight.dtype}"
    if not all(p.requires_grad for p in (layer.lora_A[adapter].weight, layer.lora_B[adapter].weight)):
        return "frozen adapters"
    return None


def _alike(layers: list[nn.Module]) -> bool:
    """Whether layers with the same input are computed in the same way."""
    return len({(layer.base_layer.in_features, kind_of(layer), is_dora(layer)) for layer in layers}) == 1


class _Shared:
    """Projections of one input, computed at the first call and handed out at the others."""

    def __init__(self, group: Group):
        self.group = group
        self.x: torch.Tensor | None = None
        self.outputs: dict[int, torch.Tensor] = {}

    def take(self, x: torch.Tensor, place: int) -> torch.Tensor:
        if self.x is not x or place not in self.outputs:
            self.x = x
            self.outputs = dict(enumerate(Project.apply(x, self.group, *self.group.parameters())))
        out = self.outputs.pop(place)
        if not self.outputs:
            self.x = None
        return out


def _shared_forward(shared: _Shared, layer: nn.Module, place: int) -> Any:
    plain = layer.forward

    def forward(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args or kwargs or not shared.group.ready(x.device.type):
            return plain(x, *args, **kwargs)
        return shared.take(x, place)

    return forward


def _mlp_forward(module: nn.Module, first: Group, last: Group, keep: bool) -> Any:
    plain, activation = module.forward, activation_of(module.act_fn)

    def forward(x: torch.Tensor) -> torch.Tensor:
        if not (first.ready(x.device.type) and last.ready(x.device.type)):
            return plain(x)
        return GatedMlp.apply(x, first, last, keep, activation, *first.parameters(), *last.parameters())

    return forward


def _gated_forward(module: nn.Module) -> Any:
    activation = activation_of(module.act_fn)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return module.down_proj(Gated.apply(module.gate_proj(x), module.up_proj(x), activation))

    return forward


def _norm_forward(module: nn.Module, kind: tuple[float, float, bool]) -> Any:
    def forward(hidden_states: torch.Tensor) -> torch.Tensor:
        return RmsNorm.apply(hidden_states, module.weight, *kind)

    return forward
