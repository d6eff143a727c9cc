"""AWQ's scales (Lin et al. 2023, arXiv:2306.00978): channels that carry large inputs are made larger before rounding,
and what feeds them smaller by as much, so that the layer stays the same and its important weights round finer.

Which matrices share an input, and what feeds them, is found by watching one run of the layer, not from a list of
architectures: a norm's weight, the rows of a value or up projection. Every change is checked on that run: a layer whose
output moves by more than rounding noise gets its weights back (a norm that adds one to its weight, a product in between
that isn't per channel).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from swift.export.layers import Experts, Seen
from swift.export.rounding import Grid, nearest, ranges

STEPS = 20  # exponents tried between 0 and 1
TOLERANCE = 1e-3  # of the output's largest value, for a change that must be exact


@dataclass(frozen=True)
class ScaleSet:
    """Matrices with one input: `matrices` and `followers` (scaled too, but not rounded) are names in the layer;
    `feeder` is what gives the input its scale: a norm, or a linear layer whose rows are `repeat` times shared among the
    columns."""

    feeder: str
    matrices: tuple[str, ...]
    followers: tuple[str, ...] = ()
    heads: tuple[int, int] | None = None  # (key heads, head size) where the feeder's rows serve several query heads


@dataclass(frozen=True)
class Found:
    """What a run of the layer showed. `inputs`: the matrices by the input they share."""

    sets: tuple[ScaleSet, ...]
    inputs: tuple[tuple[str, ...], ...]
    output: torch.Tensor


@torch.no_grad()
def explore(layer: nn.Module, run: Callable[[], torch.Tensor], wanted: Callable[[str, nn.Linear], bool]) -> Found:
    """Watch one run. `wanted(name, linear)` says which matrices will be rounded."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    hooks = []
    for name, module in layer.named_modules():

        def note(module: nn.Module, args: tuple, out: object, name: str = name) -> None:
            if args and isinstance(args[0], torch.Tensor):
                inputs[name] = args[0]
            if isinstance(out, torch.Tensor):
                outputs[name] = out

        hooks.append(module.register_forward_hook(note))
    try:
        output = run()
    finally:
        for hook in hooks:
            hook.remove()
    modules = dict(layer.named_modules())
    apart = [name for name, module in modules.items() if isinstance(module, Experts)]
    outside = [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear) and name in inputs and wanted(name, module) and not _inside(name, apart)
    ]
    groups: dict[int, list[str]] = {}
    for name in outside:
        groups.setdefault(inputs[name].data_ptr(), []).append(name)
    experts = [f"{name}.experts.{i}" for name in apart for i in range(len(modules[name].experts))]
    experts = [name for name in experts if wanted(f"{name}.up_proj", modules[f"{name}.up_proj"])]
    every = [*map(tuple, groups.values())]
    every += [group for e in experts for group in ((f"{e}.gate_proj", f"{e}.up_proj"), (f"{e}.down_proj",))]
    norms = {out.data_ptr(): name for name, out in outputs.items() if _is_norm(modules[name])}
    sets = [
        found
        for place, feeder in norms.items()
        if (found := _behind_norm(place, feeder, modules, inputs, outside, experts)) is not None
    ]
    sets += _behind_linear(modules, [group[0] for group in groups.values() if len(group) == 1])
    sets += [ScaleSet(f"{name}.up_proj", (f"{name}.down_proj",)) for name in experts]
    return Found(tuple(sets), tuple(every), output)


def _inside(name: str, owners: Sequence[str]) -> bool:
    return any(name.startswith(f"{owner}.") for owner in owners)


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 1 and not list(module.children())


def _behind_norm(
    place: int,
    feeder: str,
    modules: dict[str, nn.Module],
    inputs: dict[str, torch.Tensor],
    outside: Sequence[str],
    experts: Sequence[str],
) -> ScaleSet | None:
    """Everything that reads the norm's output; None when no matrix does."""
    size = modules[feeder].weight.shape[0]
    taken: list[str] = []
    followers: list[str] = []
    for name, value in inputs.items():
        if value.data_ptr() != place or value.shape[-1] != size:
            continue
        module = modules[name]
        if isinstance(module, Experts):
            inner = [
                f"{name}.experts.{i}.{part}" for i in range(len(module.experts)) for part in ("gate_proj", "up_proj")
            ]
            (taken if f"{name}.experts.0" in experts else followers).extend(inner)
        elif name in outside:
            taken.append(name)
        elif isinstance(getattr(module, "weight", None), nn.Parameter) and module.weight.shape[1:] == (size,):
            followers.append(name)
    return ScaleSet(feeder, tuple(taken), tuple(followers)) if taken else None


def _behind_linear(modules: dict[str, nn.Module], alone: Sequence[str]) -> list[ScaleSet]:
    """down_proj behind up_proj, o_proj behind v_proj, and their like: matrices alone with their input, which has the
    size of the output of a matrix in the same module.
    """
    sets = []
    for name in alone:
        owner, _, leaf = name.rpartition(".")
        size = modules[name].in_features
        for feeder_leaf in ("up_proj", "v_proj"):
            feeder = f"{owner}.{feeder_leaf}" if owner else feeder_leaf
            module = modules.get(feeder)
            if leaf == feeder_leaf or not isinstance(module, nn.Linear):
                continue
            head = getattr(modules[owner], "head_dim", None)
            if module.out_features == size:
                sets.append(ScaleSet(feeder, (name,)))
            elif head and module.out_features % head == 0 and size % module.out_features == 0:
                sets.append(ScaleSet(feeder, (name,), heads=(module.out_features // head, head)))
    return sets


def search_scales(
    weights: Sequence[torch.Tensor],
    moments: Sequence[torch.Tensor],
    magnitude: torch.Tensor,
    grid: Grid,
    steps: int = STEPS,
    share: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """The scale of every column, [columns], under which rounding to nearest changes the outputs least.

    Tried: magnitude ** a for a from 0 to 1. `share` makes columns equal that have to be.
    """
    magnitude = (magnitude / magnitude.mean().clamp(min=1e-8)).clamp(min=1e-4)
    best, best_error = torch.ones_like(magnitude), None
    for power in (i / steps for i in range(steps + 1)):
        scale = magnitude.pow(power)
        scale = scale if share is None else share(scale)
        scale = scale / (scale.max() * scale.min()).sqrt()
        error = sum(scaled_error(w, m, scale, grid) for w, m in zip(weights, moments, strict=True))
        if best_error is None or error < best_error:
            best, best_error = scale, error
    return best


def scaled_error(weight: torch.Tensor, moments: torch.Tensor, scale: torch.Tensor, grid: Grid) -> float:
    scaled = weight * scale
    off = nearest(scaled, *ranges(scaled, grid), grid) / scale - weight
    return torch.einsum("ij,ij->", off @ moments, off).item()


@torch.no_grad()
def apply_scales(
    layer: nn.Module, found: ScaleSet, scale: torch.Tensor, run: Callable[[], torch.Tensor], before: torch.Tensor
) -> bool:
    """Multiply the readers' columns by `scale` [columns] and divide the feeder by it; False, with all weights as they
    were, when the layer's output isn't `before` any more.
    """
    feeder = layer.get_submodule(found.feeder)
    readers = [layer.get_submodule(name).weight for name in (*found.matrices, *found.followers)]
    saved = [(p, p.data.clone()) for p in [feeder.weight, *readers]]
    bias = getattr(feeder, "bias", None)
    if bias is not None:
        saved.append((bias, bias.data.clone()))
    inverse = 1 / (scale if found.heads is None else scale.view(found.heads[0], -1, found.heads[1])[:, 0].reshape(-1))
    limit = TOLERANCE * before.abs().max()
    for plus_one in (False, True) if feeder.weight.ndim == 1 else (False,):
        for reader in readers:
            reader.data.mul_(scale)
        if feeder.weight.ndim > 1:
            feeder.weight.data.mul_(inverse[:, None])
        elif plus_one:  # Gemma's norms multiply by 1 + weight
            feeder.weight.data.add_(1).mul_(inverse).sub_(1)
        else:
            feeder.weight.data.mul_(inverse)
        if bias is not None:
            bias.data.mul_(inverse)
        if (run() - before).abs().max() <= limit:
            return True
        for parameter, values in saved:
            parameter.data.copy_(values)
    return False


def shared_over_heads(found: ScaleSet) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The mean over the query heads that read one value head, for every channel of it."""
    if found.heads is None:
        return None
    heads, size = found.heads

    def share(scale: torch.Tensor) -> torch.Tensor:
        parts = scale.view(heads, -1, size)
        return parts.mean(1, keepdim=True).expand_as(parts).reshape(-1)

    return share


def blended(seen: Seen, everyone: Seen | None, few: int = 64) -> torch.Tensor:
    """Mean second moments; where few tokens came by (a rarely chosen expert), mixed with those of all tokens."""
    own = seen.moments / max(seen.tokens, 1)
    if everyone is None or seen.tokens >= 8 * few:
        return own
    share = few / (few + seen.tokens)
    return (1 - share) * own + share * everyone.moments / max(everyone.tokens, 1)
