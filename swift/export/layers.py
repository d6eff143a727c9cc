"""A decoder as a row of layers that are run one by one, with what each one's matrices see of the calibration rows.

Promises: a layer gets exactly the arguments that its model gives it (masks, position embeddings); fused experts are
taken apart into plain linear layers that share the fused tensor's memory. A model whose layers can't be run one after
the other (they hand something to each other besides the hidden states) is refused, not approximated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from swift.errors import UsageError


@dataclass(frozen=True)
class Row:
    """The decoder's layers: `name` of their list in the model ("model.layers")."""

    name: str
    layers: tuple[nn.Module, ...]


def find_layers(model: nn.Module) -> Row:
    """The largest list of modules directly in the decoder."""
    decoder = model.get_decoder()
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    lists = [(name, child) for name, child in decoder.named_children() if isinstance(child, nn.ModuleList)]
    if not lists:
        raise UsageError(
            "the model's decoder has no list of layers", where=type(model).__name__, fix="--quant_method bnb"
        )
    name, found = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    return Row(f"{prefix}.{name}" if prefix else name, tuple(found))


class Experts(nn.Module):
    """Fused experts [E, 2I, H] and [E, H, I] as E modules of three linear layers, views of the same memory."""

    def __init__(self, fused: nn.Module):
        super().__init__()
        self.fused = [fused]  # in a list: its parameters aren't this module's own
        self.experts = nn.ModuleList()
        for gate_up, down in zip(fused.gate_up_proj.data, fused.down_proj.data, strict=True):
            expert, half = nn.Module(), len(gate_up) // 2
            expert.gate_proj, expert.up_proj = _linear(gate_up[:half]), _linear(gate_up[half:])
            expert.down_proj = _linear(down)
            self.experts.append(expert)

    def forward(self, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor) -> torch.Tensor:
        """hidden [tokens, H], top_k_index and top_k_weights [tokens, k] -> [tokens, H]."""
        total = torch.zeros_like(hidden)
        for index, expert in enumerate(self.experts):
            token, place = torch.where(top_k_index == index)
            if len(token) == 0:
                continue
            state = hidden[token]
            both = torch.cat([expert.gate_proj(state), expert.up_proj(state)], dim=-1)
            out = expert.down_proj(self.fused[0]._apply_gate(both))
            total.index_add_(0, token, (out * top_k_weights[token, place, None]).to(total.dtype))
        return total


def _linear(weight: torch.Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def is_fused(module: nn.Module) -> bool:
    """Whether the module holds experts in 3-D tensors."""
    return any(p.ndim == 3 for p in module.parameters(recurse=False)) and "expert" in type(module).__name__.lower()


def take_apart(layer: nn.Module) -> dict[str, nn.Module]:
    """Replace the fused experts in a layer by `Experts`; {name: the fused module}, to be put back."""
    found = {name: module for name, module in layer.named_modules() if is_fused(module)}
    for name, module in found.items():
        names = {name for name, _ in module.named_parameters(recurse=False)}
        if names != {"gate_up_proj", "down_proj"} or getattr(module, "is_transposed", False):
            raise UsageError(
                f"the experts of {type(module).__name__} ({', '.join(sorted(names))}) can't be taken apart",
                where="--quant_method",
                fix="use a model whose experts are stored one by one",
            )
        owner, _, leaf = name.rpartition(".")
        setattr(layer.get_submodule(owner), leaf, Experts(module))
    return found


def put_back(layer: nn.Module, fused: dict[str, nn.Module]) -> None:
    for name, module in fused.items():
        owner, _, leaf = name.rpartition(".")
        setattr(layer.get_submodule(owner), leaf, module)


@dataclass
class Calls:
    """The hidden states [1, tokens, H] of every calibration row before the first layer, and each layer's other
    arguments.
    """

    hidden: list[torch.Tensor]
    positional: list[tuple] = field(default_factory=list)
    named: list[dict[str, Any]] = field(default_factory=list)

    def run(self, index: int, layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """The layer's output for one row; `index` says which layer it is."""
        device = hidden.device
        positional, named = to_device(self.positional[index], device), to_device(self.named[index], device)
        out = layer(hidden, *positional, **named)
        return out[0] if isinstance(out, tuple) else out


def to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(to_device(item, device) for item in value)
    if isinstance(value, dict):
        return {key: to_device(item, device) for key, item in value.items()}
    return value


@torch.no_grad()
def record(model: nn.Module, row: Row, samples: torch.Tensor) -> Calls:
    """Run the model without its layers on samples [rows, tokens] and note what every layer is called with."""
    for form in (lambda hidden: hidden, lambda hidden: (hidden,), lambda hidden: (hidden, None)):
        calls = Calls([])
        if _record(model, row, samples, calls, form):
            return calls
    raise UsageError(
        "this architecture's layers can't be run one by one",
        where=type(model).__name__,
        fix="--quant_method fp8 or bnb needs no calibration",
    )


def _record(
    model: nn.Module, row: Row, samples: torch.Tensor, calls: Calls, form: Callable[[torch.Tensor], Any]
) -> bool:
    shape = None

    def stub(index: int):
        def forward(*args: Any, **named: Any) -> Any:
            nonlocal shape
            hidden, *rest = args or (named.pop("hidden_states"),)
            if index == 0:
                calls.hidden.append(hidden.float())
                shape = hidden.shape
            elif hidden.shape != shape:
                raise _WrongForm
            if len(calls.named) == index:
                calls.positional.append(tuple(_floats(rest)))
                calls.named.append(_floats(named))
            return form(hidden)

        return forward

    originals = [layer.forward for layer in row.layers]
    try:
        for index, layer in enumerate(row.layers):
            layer.forward = stub(index)
        for sample in samples:
            model.get_decoder()(input_ids=sample[None], use_cache=False)
    except (_WrongForm, IndexError, ValueError):  # the decoder takes its layers' outputs apart in another way
        return False
    finally:
        for layer, forward in zip(row.layers, originals, strict=True):
            layer.forward = forward
    return len(calls.named) == len(row.layers) and calls.hidden[0].ndim == 3


class _WrongForm(Exception):
    """A layer got a part of the hidden states."""


def _floats(value: Any) -> Any:
    """Half-precision tensors as float32, in which the layers run."""
    if isinstance(value, torch.Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, (tuple, list)):
        return type(value)(_floats(item) for item in value)
    if isinstance(value, dict):
        return {key: _floats(item) for key, item in value.items()}
    return value


@dataclass
class Seen:
    """What one input of a layer's matrices looks like: second moments [n, n] and mean absolute values [n], summed over
    `tokens`.
    """

    moments: torch.Tensor
    magnitude: torch.Tensor
    tokens: int = 0

    def add(self, inputs: torch.Tensor) -> None:
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        self.moments.addmm_(flat.T, flat)
        self.magnitude += flat.abs().sum(0)
        self.tokens += len(flat)


@torch.no_grad()
def watch(
    layer: nn.Module, names: Sequence[str], rows: Sequence[torch.Tensor], run: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[dict[str, Seen], list[torch.Tensor]]:
    """(what these modules of the layer see, what `run(row)` gives) over the rows; a module that isn't reached is left
    out.
    """
    seen: dict[str, Seen] = {}
    hooks = []
    for name in names:

        def note(module: nn.Module, args: tuple, name: str = name) -> None:
            size = args[0].shape[-1]
            if name not in seen:
                device = args[0].device
                seen[name] = Seen(torch.zeros(size, size, device=device), torch.zeros(size, device=device))
            seen[name].add(args[0])

        hooks.append(layer.get_submodule(name).register_forward_pre_hook(note))
    try:
        outputs = [run(row) for row in rows]
    finally:
        for hook in hooks:
            hook.remove()
    return seen, outputs
