"""LoRA adapters that each request chooses for itself: rows of one forward pass use different ones, or none.

Promises: a row's result is that of the adapter alone on the model; the model's own modules and weights are never
changed, so an adapter comes and goes while requests run, and one that has gone still serves those that began with it.
peft reads the adapter (names, ranks, scales); what is more than low-rank changes of layers is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from swift.engines.protocol import RequestError
from swift.models.adapters import load_adapter

MERGE = "merge it: swift export --merge_lora true"


@dataclass(eq=False)
class Adapter:
    """`layers`: by the module that it changes, A [rank, in] and B [out, rank] with its scale in it."""

    name: str
    layers: Mapping[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]


# Which tokens (places in the flattened input; None: all) an adapter is for in the forward pass under way.
Groups = Sequence[tuple[Adapter, torch.Tensor | None]]


class Loras:
    """Of one model. All methods belong to the thread that owns the model."""

    def __init__(self, model: Any):
        self._model = model
        self._hooked: set[torch.nn.Module] = set()
        self._groups: Groups = ()

    @property
    def at_work(self) -> bool:
        return bool(self._groups)

    @torch.inference_mode(False)
    def load(self, name: str, path: Path) -> Adapter:
        from peft.tuners.tuners_utils import BaseTunerLayer

        model = self._model
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            fix = "give each a name: --adapters NAME=PATH"
            raise RequestError("the adapters of this engine are always on", fix=fix, param="adapter")
        had = {p for p in model.parameters() if p.requires_grad}
        tuned = load_adapter(model, path, name="it")
        try:
            layers = _harvest(tuned, path)
        finally:
            tuned.unload()
            vars(model).pop("peft_config", None)
            for parameter in model.parameters():
                parameter.requires_grad_(parameter in had)
        for module in layers:
            if module not in self._hooked:
                module.register_forward_hook(self._changed)
                self._hooked.add(module)
        return Adapter(name, layers)

    @contextmanager
    def using(self, groups: Groups) -> Iterator[None]:
        self._groups = groups
        try:
            yield
        finally:
            self._groups = ()

    def _changed(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> Any:
        if not self._groups:
            return None
        x = args[0].flatten(0, -2)
        changed = output.flatten(0, -2)
        for adapter, places in self._groups:
            if module not in adapter.layers:
                continue
            a, b = adapter.layers[module]
            own = (x if places is None else x[places]).to(a.dtype)
            delta = (own @ a.T @ b.T).to(changed.dtype)
            changed = changed + delta if places is None else changed.index_add(0, places, delta)
        return changed.view(output.shape)


def groups(adapters: Sequence[Adapter | None], device: Any) -> Groups:
    """Of tokens with these adapters."""
    places: dict[Adapter, list[int]] = {}
    for place, adapter in enumerate(adapters):
        if adapter is not None:
            places.setdefault(adapter, []).append(place)
    return [(a, None if len(p) == len(adapters) else torch.tensor(p, device=device)) for a, p in places.items()]


def _harvest(tuned: Any, path: Path) -> dict[torch.nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    from peft.tuners.lora import LoraLayer, ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    config = tuned.peft_config["it"]
    if config.peft_type != "LORA":
        raise _refused(path, f"it is of the kind {config.peft_type.value}, requests can choose LoRA")
    if config.bias != "none" or any(isinstance(m, ModulesToSaveWrapper) for m in tuned.modules()):
        raise _refused(path, "it changes whole layers beside its low-rank matrices")
    layers = {}
    for name, module in tuned.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        known = isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper) and "it" in module.lora_A
        if not known or not isinstance(module.lora_A["it"], torch.nn.Linear):
            raise _refused(path, f"it changes {name}, which is no linear layer")
        if module.lora_variant.get("it") is not None or module.lora_bias.get("it"):
            raise _refused(path, f"{name} is more than low-rank matrices (DoRA, say)")
        a, b = module.lora_A["it"].weight, module.lora_B["it"].weight
        layers[module.get_base_layer()] = (a.detach().clone(), b.detach() * module.scaling["it"])
    if not layers:
        raise _refused(path, "it changes nothing")
    return layers


def _refused(path: Path, why: str) -> RequestError:
    return RequestError(f"this adapter can't be one of several: {why}", where=str(path), fix=MERGE, param="adapter")
