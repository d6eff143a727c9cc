"""Adapters merged into their base: a plain transformers directory that is proven before it gets its name.

Promises: the change is added to plain weights (the full-precision base's, or, when asked, those that a quantized base
stands for) in float32 and rounded once; the directory appears whole, with tokenizer, chat template, generation config
and processor, or not at all.
"""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from swift import runs
from swift.errors import ExportError, ModelFileError, ResourceError, UsageError
from swift.export.bases import load_plain
from swift.export.proof import (
    MergeProof,
    OtherBase,
    Prompt,
    answerable,
    largest_difference,
    logits_of,
    other_base,
    top1_agreement,
)
from swift.export.writing import written_aside
from swift.hub.files import ADAPTER_CONFIG, ModelFiles
from swift.hub.resources import check_disk, human_bytes
from swift.models.adapters import load_adapters
from swift.models.load import auto_class, check_loading_info, load_config, load_model
from swift.models.plan import ITEM_BYTES, LoadPlan, true_parameters
from swift.models.quiet import quiet

log = logging.getLogger("swift")

# files of a base directory that don't belong in the merged one: weights, what is written anew, what describes the
# base alone
LEFT_BEHIND = (".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx", ".index.json", ".lock")
WRITTEN_ANEW = ("config.json", "README.md", "args.json", "manifest.json", "converted_from.json", "export_report.json")


@dataclass(frozen=True)
class MergeJob:
    """What to merge. `base` is a model directory, `plan` loads it in the dtype to save (what bitsandbytes quantizes is
    dequantized); `prompts` are compared on; `other` is a base to compare with: its words, directory and plan.
    """

    base: Path
    files: ModelFiles
    adapters: tuple[Path, ...]
    output_dir: Path
    plan: LoadPlan
    prompts: Sequence[Prompt]
    max_shard_size: str = "5GB"
    exist_ok: bool = False
    other: tuple[str, Path, LoadPlan] | None = None


def check_output(output_dir: Path, exist_ok: bool, sources: Sequence[Path]) -> None:
    """UsageError for a directory that can't be the result: one that is used, or that holds what is merged."""
    where = f"--output_dir {output_dir}"
    resolved = output_dir.resolve()
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError("is a file", where=where, fix="name a directory")
    for source in sources:
        if source.resolve() == resolved or resolved in source.resolve().parents:
            raise UsageError(f"holds {source}, which is merged", where=where, fix="choose another directory")
    if not output_dir.is_dir() or not any(output_dir.iterdir()):
        return
    if not exist_ok:
        raise UsageError(
            "the directory is not empty",
            where=where,
            fix="choose another, or pass --exist_ok true to replace the model in it",
        )
    if not any((output_dir / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
        raise UsageError("the directory holds something else than a model", where=where, fix="choose another one")


def merge(job: MergeJob, complete: Callable[[Path, MergeProof], None]) -> MergeProof:
    """Write the merged model to job.output_dir and return its proof.

    `complete(directory, proof)` adds what else belongs into the directory before it is committed (tokenizer, card
    ...). ExportError when the proof fails; nothing is left behind then.
    """
    out = job.output_dir
    check_output(out, job.exist_ok, (job.base, *job.adapters))
    runs.ensure_writable_dir(out.absolute().parent)
    needed = true_parameters(job.files) * ITEM_BYTES[job.plan.dtype]
    check_disk(out, int(needed * 1.05), "the merged model")
    with written_aside(out) as staging:
        proof = _merge_into(staging, job)
        for line in proof.lines():
            log.info(line)
        proof.check()
        if warning := proof.warning():
            log.warning(warning)
        copy_companions(job.base, staging)
        complete(staging, proof)
        runs.write_json(staging / "export_report.json", {"kind": "merge", **proof.to_json()})
        runs.commit_dir(staging, out.absolute(), kind="merged_model")
    return proof


def _merge_into(staging: Path, job: MergeJob) -> MergeProof:
    """Merge, save to `staging`, read that back; one model in memory at a time."""
    model = load_plain(job.base, job.plan)
    compute = compute_dtype(job, model)
    saved_as = {name: p.dtype for name, p in model.named_parameters()}
    before = {name: bits(p) for name, p in model.named_parameters()}
    own_template_of_weights = model._weight_conversions
    model.to(compute)
    job = replace(job, prompts=answerable(model, job.prompts))
    base = logits_of(model, job.prompts)
    tuned = load_adapters(model, job.adapters)
    reference = logits_of(tuned, job.prompts)
    with quiet():
        model = tuned.merge_and_unload()
    del tuned
    merged = logits_of(model, job.prompts)
    _round(model, saved_as, default=getattr(torch, job.plan.dtype))
    after = {name: bits(p) for name, p in model.named_parameters()}
    model._weight_conversions = own_template_of_weights
    log.info("writing %s in %s", human_bytes(sum(p.nbytes for p in model.parameters())), job.plan.dtype)
    with quiet():
        model.save_pretrained(staging, max_shard_size=job.max_shard_size)
    model.to(compute)
    rounded = logits_of(model, job.prompts)
    del model
    gc.collect()
    reloaded = logits_of(plain_load(staging, job, compute), job.prompts)
    gc.collect()
    return MergeProof(
        prompts=len(job.prompts),
        positions=sum(map(len, job.prompts)),
        computed_in=str(compute).removeprefix("torch."),
        largest_logit=max(a.abs().max().item() for a in reference),
        adapter_effect=_effect(base, reference),
        merge_difference=largest_difference(reference, merged),
        rounding=largest_difference(merged, rounded),
        difference=largest_difference(reference, reloaded),
        reload_difference=largest_difference(rounded, reloaded),
        agreement=top1_agreement(reference, reloaded),
        changed_tensors=sum(before.get(name) != mark for name, mark in after.items()),
        tensors=len(after),
        other=_on_the_other_base(job, compute, reloaded),
    )


def _on_the_other_base(job: MergeJob, compute: torch.dtype, merged: list[torch.Tensor]) -> OtherBase | None:
    """The adapter's answers on the base that it isn't merged onto, as it was trained on it or would be merged."""
    if job.other is None:
        return None
    words, base, plan = job.other
    try:
        model = load_model(base, replace(plan, dtype=str(compute).removeprefix("torch.")))
    except (ResourceError, ModelFileError) as error:
        log.warning("not compared with the adapter on %s: %s", words, error.what)
        return None
    return other_base(words, logits_of(load_adapters(model, job.adapters), job.prompts), merged)


def _effect(base: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """The adapter's change of the logits; of the old tokens where the vocabulary has grown."""
    size = min(base[0].shape[-1], reference[0].shape[-1])
    return largest_difference([a[:, :size] for a in base], [a[:, :size] for a in reference])


def compute_dtype(job: MergeJob, model) -> torch.dtype:
    """float32 when the model fits in it, else the dtype it is in; said."""
    dtype = getattr(torch, job.plan.dtype)
    free, wide = job.plan.device.free_memory(), sum(p.numel() for p in model.parameters()) * 4
    if dtype == torch.float32 or free is None or wide * 1.1 < free:
        return torch.float32
    log.warning(
        "merging and comparing in %s: float32 needs %s, %s are free",
        job.plan.dtype,
        human_bytes(wide),
        human_bytes(free),
    )
    return dtype


def bits(parameter: torch.Tensor) -> int:
    """A number that changes when a bit of the tensor does (with near certainty): the wrapped sum of its words,
    weighted by place.
    """
    words = (
        parameter.detach().contiguous().view(torch.int32 if parameter.element_size() == 4 else torch.int16).flatten()
    )
    places = torch.arange(1, words.numel() + 1, device=words.device, dtype=torch.int32) | 1
    return int((words.to(torch.int32) * places).sum(dtype=torch.int64).item())


@torch.no_grad()
def _round(model, saved_as: dict[str, torch.dtype], default: torch.dtype) -> None:
    """Every parameter in the dtype it had when it was loaded (some stay float32 in a bfloat16 model)."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(saved_as.get(name, default))


def plain_load(directory: Path, job: MergeJob, compute: torch.dtype):
    """What transformers makes of the written directory, without any option of ours."""
    trust = job.plan.trust_remote_code
    if trust:
        for file in job.base.glob("*.py"):
            shutil.copy2(file, directory / file.name)
    auto = auto_class(load_config(directory, trust_remote_code=trust), directory, trust)
    with quiet():
        model, info = auto.from_pretrained(
            directory, dtype="auto", local_files_only=True, trust_remote_code=trust, output_loading_info=True,
            device_map=job.plan.device_map, max_memory=job.plan.max_memory,
        )  # fmt: skip
    check_loading_info(directory, info)
    if getattr(model.config, "quantization_config", None) is not None:
        raise ExportError("the merged model's config.json still names a quantization", where=str(directory))
    return model.to(compute)


def copy_companions(base: Path, directory: Path) -> None:
    """Copy the base's tokenizer, processor, generation config, code and licence files."""
    for file in sorted(base.iterdir()):
        if (
            file.is_file()
            and not file.name.endswith(LEFT_BEHIND)
            and file.name not in WRITTEN_ANEW
            and not file.name.startswith(".")
        ):
            shutil.copy2(file, directory / file.name)


def refuse_quantized(plan: LoadPlan) -> None:
    """Weights that are packed in the checkpoint itself, and that nothing here unpacks, can't be merged onto."""
    if plan.quantized and plan.quant is None and plan.source_quant != "bitsandbytes":
        what = f"the base is quantized with {plan.source_quant}: merging would round the adapter away"
        raise UsageError(what, where="--merge_lora", fix="pass the unquantized base with --model")
