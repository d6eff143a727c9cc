"""Quantizes a decoder layer by layer: scales, ranges, rounding, one file of packed tensors for each layer.

Promises: one layer at a time is in the device's memory and in float32; a layer's file is whole or not there, and a run
that was killed goes on behind the last one, with the very numbers of an undisturbed run.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file
from torch import nn

from swift import runs
from swift.export.gguf_blocks import FORMS, decode, encode
from swift.export.layers import Calls, Experts, Row, Seen, put_back, record, take_apart, watch
from swift.export.rounding import (
    Codes,
    Grid,
    output_error,
    round_gptq,
    round_nearest,
    search_ranges,
)
from swift.export.scaling import ScaleSet, apply_scales, blended, explore, search_scales, shared_over_heads
from swift.models.packing import pack_awq, pack_gptq, unpack_awq, unpack_gptq

log = logging.getLogger("swift")


@dataclass(frozen=True)
class Recipe:
    """`layout`: awq, gptq or gguf. `scales`: AWQ's search, `steps` exponents. `gptq`: GPTQ's rounding instead of the
    nearest. `damping`: GPTQ's. `source_inputs`: a layer is calibrated on what the source's layers
    before it give (as in AWQ), else on what the quantized ones give (as in GPTQ).
    """

    layout: str
    bits: int
    group: int
    symmetric: bool
    scales: bool
    gptq: bool
    steps: int = 20
    damping: float = 0.01
    source_inputs: bool = False

    @property
    def grid(self) -> Grid:
        if self.layout == "gguf":
            return next(form.grid for form in FORMS.values() if (form.bits, form.group) == (self.bits, self.group))
        return Grid(self.bits, self.group, self.symmetric, lowest_zero=1 if self.layout == "gptq" else 0)


@dataclass(frozen=True)
class LayerJob:
    """`wanted(name, linear)` says which matrices of a layer are rounded; `hub_names` maps a parameter's name, with
    experts apart, to its name in the checkpoint; `work` keeps the layers' files. `kind_of` gives the GGUF type of a
    matrix by its name in the checkpoint and its shape, in the layout gguf.
    """

    model: nn.Module
    row: Row
    samples: torch.Tensor
    recipe: Recipe
    wanted: Callable[[str, nn.Linear], bool]
    hub_names: Mapping[str, str]
    work: Path
    device: torch.device
    dtype: torch.dtype
    kind_of: Callable[[str, tuple[int, ...]], Type] | None = None


def quantize_layers(job: LayerJob, progress: Callable[[int, int], None]) -> list[Path]:
    """The files of the layers, in order. `progress(done, all)` is called after each."""
    calls = record(job.model, job.row, job.samples)
    hidden = [rows.to(job.device) for rows in calls.hidden]
    files = []
    with torch.no_grad():
        for index, layer in enumerate(job.row.layers):
            file = job.work / f"layer-{index:05d}.safetensors"
            layer.float().to(job.device)
            apart = take_apart(layer)
            outputs: list[torch.Tensor] | None = None
            if not file.is_file():
                tensors, outputs = _quantize_layer(job, layer, index, calls, hidden)
                aside = file.with_suffix(".part")
                save_file(tensors, aside, metadata={"format": "pt"})
                aside.replace(file)
            elif not job.recipe.source_inputs:
                _restore(job, layer, index, file)
            if outputs is None or not job.recipe.source_inputs:
                outputs = [calls.run(index, layer, rows) for rows in hidden]
            hidden = outputs
            put_back(layer, apart)
            layer.to("meta")
            files.append(file)
            progress(index + 1, len(job.row.layers))
    return files


def _quantize_layer(
    job: LayerJob, layer: nn.Module, index: int, calls: Calls, hidden: list[torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """(the layer's tensors, its outputs before quantization)."""

    def run(rows: torch.Tensor = hidden[0]) -> torch.Tensor:
        return calls.run(index, layer, rows)

    recipe = job.recipe
    found = explore(layer, run, job.wanted)
    watched = {group[0] for group in found.inputs}
    watched |= {name for name, module in layer.named_modules() if isinstance(module, Experts)}
    seen, outputs = watch(layer, sorted(watched), hidden, run)
    moments, magnitude = _per_matrix(layer, found.inputs, seen)
    if recipe.scales:
        for one in found.sets:
            _scale(layer, one, recipe, moments, magnitude, run, found.output)
    packed: dict[str, dict[str, torch.Tensor]] = {}
    for name in [name for group in found.inputs for name in group]:
        weight = layer.get_submodule(name).weight.data
        if recipe.layout == "gguf":
            kind = job.kind_of(job.hub_names[f"{job.row.name}.{index}.{name}.weight"], tuple(weight.shape))
            blocks = encode(weight, kind, moments[name], recipe.damping if recipe.gptq else None).cpu()
            packed[name] = {kind.name: blocks}
            weight.copy_(decode(blocks, kind))
        else:
            codes = round_matrix(weight, moments[name], recipe)
            packed[name] = _packed(codes, recipe)
            weight.copy_(codes.weight())
    return _tensors(job, layer, index, packed), outputs


def _per_matrix(
    layer: nn.Module, inputs: tuple[tuple[str, ...], ...], seen: Mapping[str, Seen]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Mean second moments and mean magnitudes of the input of every matrix. An expert that few tokens chose borrows
    from what all tokens look like.
    """
    moments, magnitude = {}, {}
    for group in inputs:
        own, everyone = seen.get(group[0]), _before_routing(group[0], seen)
        size = layer.get_submodule(group[0]).in_features
        if own is None:
            device = next(layer.parameters()).device
            own = everyone or Seen(torch.eye(size, device=device), torch.ones(size, device=device), 1)
        square, mean = blended(own, everyone), own.magnitude / max(own.tokens, 1)
        for name in group:
            moments[name], magnitude[name] = square, mean
    return moments, magnitude


def _before_routing(name: str, seen: Mapping[str, Seen]) -> Seen | None:
    if ".experts." not in name or name.endswith("down_proj"):
        return None
    return seen.get(name.rpartition(".experts.")[0])


def _scale(
    layer: nn.Module,
    one: ScaleSet,
    recipe: Recipe,
    moments: dict[str, torch.Tensor],
    magnitude: dict[str, torch.Tensor],
    run: Callable[[], torch.Tensor],
    before: torch.Tensor,
) -> None:
    weights = [layer.get_submodule(name).weight.data for name in one.matrices]
    squares = [moments[name] for name in one.matrices]
    mean = torch.stack([magnitude[name] for name in one.matrices]).mean(0)
    scale = search_scales(weights, squares, mean, recipe.grid, recipe.steps, shared_over_heads(one))
    if not apply_scales(layer, one, scale, run, before):
        return
    for square in {id(s): s for s in squares}.values():
        square.div_(scale[:, None]).div_(scale[None])
    for value in {id(magnitude[name]): magnitude[name] for name in one.matrices}.values():
        value.div_(scale)


def round_matrix(weight: torch.Tensor, moments: torch.Tensor, recipe: Recipe) -> Codes:
    """The integers of one matrix [rows, columns], float32."""
    grid = recipe.grid
    scales, zeros = search_ranges(weight, moments, grid)
    plain = round_nearest(weight, scales, zeros, grid)
    if not recipe.gptq:
        return plain
    better = round_gptq(weight, moments, scales, zeros, grid, recipe.damping)
    errors = [output_error(c.weight() - weight, moments) for c in (plain, better)]
    return better if errors[1] < errors[0] else plain


def _tensors(
    job: LayerJob, layer: nn.Module, index: int, packed: Mapping[str, Mapping[str, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Every parameter of the layer under its name in the checkpoint, the rounded ones packed."""
    tensors = {}
    prefix = f"{job.row.name}.{index}."
    for name, parameter in layer.named_parameters():
        hub = job.hub_names[prefix + name]
        owner, _, leaf = name.rpartition(".")
        if owner in packed and leaf == "weight":
            layer_name = hub.removesuffix(".weight")
            for part, tensor in packed[owner].items():
                tensors[f"{layer_name}.{part}"] = tensor.cpu().contiguous()
        else:
            tensors[hub] = parameter.data.to(job.dtype).cpu().contiguous()
    return tensors


def _packed(codes: Codes, recipe: Recipe) -> dict[str, torch.Tensor]:
    if recipe.layout == "awq":
        return pack_awq(codes.codes, codes.scales, codes.zeros)
    return pack_gptq(codes.codes, codes.scales, codes.zeros, recipe.bits, recipe.group)


def _restore(job: LayerJob, layer: nn.Module, index: int, file: Path) -> None:
    """Give the layer the values of its file."""
    tensors = load_file(file)
    prefix = f"{job.row.name}.{index}."
    for name, parameter in layer.named_parameters():
        hub = job.hub_names[prefix + name]
        if hub in tensors:
            parameter.data.copy_(tensors[hub])
            continue
        stem = hub.removesuffix(".weight")
        if job.recipe.layout == "gguf":
            kind = next(kind for kind in Type if f"{stem}.{kind.name}" in tensors)
            parameter.data.copy_(decode(tensors[f"{stem}.{kind.name}"], kind))
            continue
        parts = {p: tensors[f"{stem}.{p}"] for p in ("qweight", "qzeros", "scales")}
        if job.recipe.layout == "awq":
            parameter.data.copy_(unpack_awq(parts, torch.float32))
        else:
            parameter.data.copy_(unpack_gptq(parts, torch.float32, job.recipe.bits))


def open_work(work: Path, facts: Mapping[str, Any]) -> int:
    """Make the directory of the layers' files ready; how many layers are in it from a run that was cut, whose facts
    (model, rows, recipe) are the same. Files of another run are removed.
    """
    file = work / "job.json"
    work.mkdir(parents=True, exist_ok=True)
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) == dict(facts):
        return len(list(work.glob("layer-*.safetensors")))
    for old in work.glob("layer-*"):
        old.unlink()
    runs.write_json(file, dict(facts))
    return 0


class Clock:
    """Says how far it is, and the time left, from the layers done in this run."""

    def __init__(self, done_before: int):
        self.start, self.before = time.monotonic(), done_before

    def line(self, done: int, total: int) -> str:
        spent, here = time.monotonic() - self.start, done - self.before
        left = spent / max(here, 1) * (total - done)
        return f"layer {done} of {total}, {spent:.0f} s, {left:.0f} s left"


def hub_names(model: nn.Module, row: Row) -> dict[str, str]:
    """The checkpoint's name of every parameter in the layers. Fused experts count as apart (`Experts`)."""
    names: dict[str, str] = {}
    inside = [name for name, _ in model.named_parameters() if name.startswith(f"{row.name}.")]
    fused = {
        name: p for name, p in model.named_parameters() if name in set(inside) and p.ndim == 3 and ".experts." in name
    }
    for name in inside:
        if name not in fused:
            names[name] = _one_name(model, name)
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in fused):
        names |= _expert_names(model, owner, len(fused[f"{owner}.down_proj"]))
    return names


def _one_name(model: nn.Module, name: str) -> str:
    from transformers.core_model_loading import revert_weight_conversion

    (found,) = revert_weight_conversion(model, {name: torch.empty(1)})
    return found


def _expert_names(model: nn.Module, owner: str, count: int) -> dict[str, str]:
    """Which names the fused tensors of `owner` split into, found by splitting small ones whose values say where they
    come from.
    """
    from transformers.core_model_loading import revert_weight_conversion

    marks = torch.arange(3 * count, dtype=torch.float32).view(count, 3, 1)
    small = {f"{owner}.gate_up_proj": marks[:, :2], f"{owner}.down_proj": marks[:, 2:]}
    names = {}
    for hub, mark in revert_weight_conversion(model, small).items():
        expert, part = divmod(int(mark.item()), 3)
        names[f"{owner}.experts.{expert}.{('gate_proj', 'up_proj', 'down_proj')[part]}.weight"] = hub
    return names
