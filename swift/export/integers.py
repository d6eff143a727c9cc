"""AWQ and GPTQ checkpoints: which matrices are rounded, the layers' files, and the directory that other engines read.

Both come from the same pieces (swift.export.layerwise). AWQ: scales and ranges are searched, rounding is to the
nearest. GPTQ: ranges are searched, rounding makes up for its errors. --quant_search true gives either both.
Embeddings, the output head, norms, routers, and matrices whose sizes don't fit the layout stay as they are.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file, save_file
from torch import nn

from swift import runs
from swift.export.layers import Row, find_layers, is_fused
from swift.export.layerwise import Clock, LayerJob, Recipe, hub_names, open_work, quantize_layers
from swift.export.merge import copy_companions
from swift.export.quantize import QuantJob, check_shares
from swift.models.targets import survey

log = logging.getLogger("swift")

VLLM_BITS = (4, 8)  # of GPTQ files, which vLLM takes with the zero point in the middle only
WORD = 8  # outputs packed into one word: their number must be a multiple


def recipe_of(job: QuantJob) -> Recipe:
    """What the method does. The choices are measured (benchmarks/RESULTS.md): more forms of scales, finer ranges and
    weaker damping fit the calibration rows better and other text worse.
    """
    awq, search = job.method == "awq", job.config.export.quant_search
    return Recipe(
        layout=job.method,
        bits=job.bits,
        group=job.config.export.group_size,
        symmetric=not awq and job.bits in VLLM_BITS,
        scales=awq or search,
        gptq=not awq or search,
        damping=0.1 if search else 0.01,
        source_inputs=awq and not search,
    )


def matrices_of(model: nn.Module, row: Row) -> dict[str, int]:
    """Name and inputs of every matrix in the layers that AWQ and GPTQ round; `model` may be on the meta device."""
    skipped = _skipped(model)
    found = {}
    for name, module in model.named_modules():
        if not name.startswith(f"{row.name}."):
            continue
        if isinstance(module, nn.Linear) and name not in skipped and module.out_features % WORD == 0:
            found[name] = module.in_features
        elif is_fused(module):
            found |= {f"{name}.{part}": p.shape[-1] for part, p in module.named_parameters(recurse=False)}
    return found


def _skipped(model: nn.Module) -> set[str]:
    """Routers, and a state-space mixer's small projections and those whose weight its kernels read by themselves."""
    layers = survey(model)
    mixers = {name.rpartition(".")[0] for name, _ in model.named_parameters() if name.endswith(".A_log")}
    inner = {
        name
        for name in layers.linear
        if name.rpartition(".")[0] in mixers and not name.endswith((".in_proj", "_proj_qkvz"))
    }
    return {*layers.routers, *layers.unreachable, *inner}


def write(job: QuantJob, model: Any, staging: Path) -> float:
    """Write the quantized directory; the share of the weights that were rounded. Uses up `model`."""
    recipe, row = recipe_of(job), find_layers(model)
    total = sum(p.numel() for p in model.parameters())
    allowed = {name for name, size in matrices_of(model, row).items() if size % recipe.group == 0}
    count, tokens = job.rows.samples.shape
    log.info("%s, groups of %d, calibrating on %d samples of %d tokens", job.method, recipe.group, count, tokens)
    files = layer_files(job, model, row, recipe, allowed, stored_dtype(job))
    staging.mkdir(parents=True)
    copy_companions(job.base, staging)
    packed, kept = _assemble(job, model, row, files, staging)
    _write_config(job, recipe, kept, staging)
    return check_shares(packed, total, "no layer's sizes fit the layout")


def layer_files(
    job: QuantJob,
    model: Any,
    row: Row,
    recipe: Recipe,
    allowed: set[str],
    dtype: torch.dtype,
    kind_of: Callable[[str, tuple[int, ...]], Type] | None = None,
) -> list[Path]:
    """The files of the quantized layers, those of a run that was cut among them. `allowed`: the matrices to round;
    `dtype`: of the others. Moves the layers of `model` away.
    """
    done = open_work(job.work, _facts(job, recipe))
    if done:
        log.info("going on behind layer %d of a run that was cut", done)
    clock = Clock(done)
    layer_job = LayerJob(
        model=model,
        row=row,
        samples=job.rows.samples,
        recipe=recipe,
        wanted=_within(row, allowed),
        hub_names=hub_names(model, row),
        work=job.work,
        device=torch.device(job.plan.device.torch_name),
        dtype=dtype,
        kind_of=kind_of,
    )
    return quantize_layers(layer_job, lambda at, of: log.info(clock.line(at, of)) if at > done else None)


def _within(row: Row, allowed: set[str]):
    """`wanted(name, linear)` for names inside a layer: every layer has the same ones, or leaves some out."""
    inside = {re.sub(rf"^{re.escape(row.name)}\.\d+\.", "", name) for name in allowed}

    def wanted(name: str, linear: nn.Linear) -> bool:
        owner, expert, part = name.rpartition(".experts.")
        if expert and ".experts" in f".{owner}":
            fused = "down_proj" if part.endswith("down_proj") else "gate_up_proj"
            return f"{owner}.{fused}" in inside and linear.out_features % WORD == 0
        return name in inside

    return wanted


def _facts(job: QuantJob, recipe: Recipe) -> dict[str, Any]:
    """What a cut run must have in common with this one for its layers to be taken."""
    weights = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in job.files.weight_files]
    samples = int((job.rows.samples * torch.arange(1, job.rows.samples.numel() + 1).view_as(job.rows.samples)).sum())
    facts = {"weights": weights, "samples": samples, "recipe": vars(recipe), "dtype": str(stored_dtype(job))}
    return facts | ({"kind": job.config.export.gguf_type} if recipe.layout == "gguf" else {})


def stored_dtype(job: QuantJob) -> torch.dtype:
    """The dtype of what stays unquantized: the source's."""
    from swift.export.export import base_dtype

    name = job.config.model.torch_dtype if job.config.given("torch_dtype") else None
    return getattr(torch, name or base_dtype(job.files)[0])


def _assemble(job: QuantJob, model: Any, row: Row, files: list[Path], staging: Path) -> tuple[int, list[str]]:
    """The layers' tensors and the rest of the model's in one checkpoint; (weights packed, matrices left plain)."""
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    dtype = stored_dtype(job)
    rest = {n: t for n, t in model.state_dict().items() if not n.startswith(f"{row.name}.")}
    rest = revert_weight_conversion(model, remove_tied_weights_from_state_dict(rest, model))
    rest = {n: (t.to(dtype) if t.is_floating_point() else t).contiguous() for n, t in rest.items()}
    packed, kept = 0, []
    shards = Shards(staging, job.config.export.max_shard_size)
    shards.add(rest)
    for file in files:
        tensors = load_file(file)
        packed += sum(t.numel() * 32 // job.bits for n, t in tensors.items() if n.endswith(".qweight"))
        kept += [n.removesuffix(".weight") for n, t in tensors.items() if n.endswith(".weight") and t.ndim == 2]
        shards.add(tensors)
    shards.finish()
    return packed, kept


class Shards:
    """Writes tensors to `model.safetensors`, or to numbered files with an index when they are larger than one holds."""

    def __init__(self, directory: Path, max_shard_size: str):
        from huggingface_hub.serialization._base import parse_size_to_int

        self.directory, self.most = directory, parse_size_to_int(max_shard_size)
        self.pending: dict[str, torch.Tensor] = {}
        self.files: list[list[str]] = []
        self.total = 0

    def add(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if self.pending and sum(t.nbytes for t in self.pending.values()) + tensor.nbytes > self.most:
                self._flush()
            self.pending[name] = tensor
            self.total += tensor.nbytes

    def _flush(self) -> None:
        save_file(self.pending, self._part(len(self.files)), metadata={"format": "pt"})
        self.files.append(list(self.pending))
        self.pending = {}

    def _part(self, index: int) -> Path:
        return self.directory / f"part-{index:05d}.safetensors"

    def finish(self) -> None:
        self._flush()
        if len(self.files) == 1:
            self._part(0).rename(self.directory / "model.safetensors")
            return
        weight_map = {}
        for index, names in enumerate(self.files):
            name = f"model-{index + 1:05d}-of-{len(self.files):05d}.safetensors"
            self._part(index).rename(self.directory / name)
            weight_map |= dict.fromkeys(names, name)
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(weight_map.items()))}
        runs.write_json(self.directory / "model.safetensors.index.json", index)


def _write_config(job: QuantJob, recipe: Recipe, kept: list[str], staging: Path) -> None:
    """config.json: the source's, with what was done to the weights. `kept`: matrices in the layers that stay plain."""
    config = json.loads((job.base / "config.json").read_text(encoding="utf-8"))
    for part in (config, config.get("text_config") or {}):
        part.pop("quantization_config", None)
    plain = sorted({re.sub(r"^.*\.\d+\.(?!\d)", "", name) for name in kept})
    if recipe.layout == "awq":
        quantization: dict[str, Any] = {
            "quant_method": "awq",
            "bits": 4,
            "group_size": recipe.group,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": plain or None,
        }
    else:
        quantization = {
            "quant_method": "gptq",
            "bits": recipe.bits,
            "group_size": recipe.group,
            "sym": recipe.symmetric,
            "desc_act": False,
            "checkpoint_format": "gptq",
            "lm_head": False,
            "dynamic": {rf"-:.*\.{re.escape(name)}$": {} for name in plain},
        }
    config["quantization_config"] = quantization
    config.pop("torch_dtype", None)
    config["dtype"] = str(stored_dtype(job)).removeprefix("torch.")
    runs.write_json(staging / "config.json", config)
