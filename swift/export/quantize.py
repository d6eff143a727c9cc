"""`swift export --quant_method ...`: a model becomes a smaller one, which is read back and compared before it gets its
name.

Promises: what can't work (a method, bits, a group size, no rows, a quantized source, a full disk) is refused before any
weight is read; adapters are merged first, in full precision; a directory under --output_dir is complete and passed its
proof, or isn't there. A run that was cut goes on where it was (awq, gptq).
"""

from __future__ import annotations

import gc
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from swift import runs
from swift.config.commands import ExportConfig
from swift.config.record import explain, save_args
from swift.errors import ExportError, MissingPackage, UsageError
from swift.export.gguf_types import SEARCHED, decide_type
from swift.export.writing import written_aside
from swift.hub import LocalModel, ModelFiles, check_model_files
from swift.hub.resources import check_disk, human_bytes

log = logging.getLogger("swift")

CALIBRATED = ("awq", "gptq")
# method -> (bits it has, the default)
BITS: dict[str, tuple[tuple[int, ...], int]] = {
    "awq": ((4,), 4),
    "gptq": ((2, 4, 8), 4),
    "bnb": ((4, 8), 4),
    "fp8": ((8,), 8),
    "torchao": ((8,), 8),
}
REFUSED = {
    "hqq": "transformers 5 has no HQQ: --quant_method awq, or gptq with --quant_bits 2, 4 or 8",
    "eetq": "EETQ needs its CUDA kernels to write a model: --quant_method bnb --quant_bits 8 is the same precision",
    "quanto": "transformers can't load a saved quanto model: --quant_method bnb --quant_bits 8, or awq",
    "gptq_v2": "--quant_method gptq writes the layout that every engine reads",
}
SOURCES = ("fp8", "mxfp4", "compressed-tensors")  # quantized checkpoints that are dequantized first
WITHOUT_EXPERTS = ("bnb", "torchao")  # have no file format for the experts of a layer in one tensor
GROUPS = (128, 64, 32)


@dataclass(frozen=True)
class QuantJob:
    """What a method's `write(job, staging)` gets. `base` is a directory of plain (or dequantizable) weights; `plan`
    loads it in the dtype of its unquantized parts; `work` is kept between runs that were cut.
    """

    config: ExportConfig
    base: Path
    files: ModelFiles
    plan: Any  # swift.models.plan.LoadPlan
    rows: Any  # swift.export.calibration.Rows
    tokenizer: Any
    template: str | None
    work: Path

    @property
    def method(self) -> str:
        return self.config.quantization.quant_method

    @property
    def bits(self) -> int:
        return self.config.quantization.quant_bits


def calibrates(config: ExportConfig) -> bool:
    """Whether rows decide how the weights are rounded: always with awq and gptq, where there are rows with GGUF."""
    if config.quantization.quant_method == "gguf":
        return bool(config.data.dataset) and config.export.gguf_type in SEARCHED
    return config.quantization.quant_method in CALIBRATED


def decide_method(config: ExportConfig) -> ExportConfig:
    """Method and bits, or UsageError for what doesn't exist."""
    options = config.quantization
    if options.quant_method == "gguf":
        return decide_type(config)
    if config.given("gguf_type"):
        raise UsageError("only GGUF files have it", where="--gguf_type", fix="--quant_method gguf")
    if options.quant_method is None:
        raise UsageError("--quant_bits needs --quant_method", fix=f"--quant_method {' | '.join((*BITS, 'gguf'))}")
    if options.quant_method in REFUSED:
        what = f"{options.quant_method} can't be exported"
        raise UsageError(what, where="--quant_method", fix=REFUSED[options.quant_method])
    known, default = BITS[options.quant_method]
    if options.quant_bits is None:
        return config.decide(f"the usual for {options.quant_method}", quant_bits=default)
    if options.quant_bits not in known:
        have = " or ".join(str(bits) for bits in known if bits)
        what = f"{options.quant_method} has no {options.quant_bits} bits"
        if options.quant_method == "torchao":
            what += " here (its packed int4 needs the CUDA package mslk, its plain one is as large as int8)"
            have += ", or --quant_method awq"
        raise UsageError(what, where="--quant_bits", fix=f"--quant_bits {have}")
    return config


def run(config: ExportConfig, find: Callable[[ExportConfig], tuple[ExportConfig, LocalModel, tuple[Path, ...]]]) -> int:
    """Check, quantize, prove; 0 or an error. `find` gives the base model and the adapters."""
    config = decide_method(config)
    if config.quantization.quant_method in CALIBRATED and not config.data.dataset:
        fix = "add --dataset FILE_OR_NAME#500, rows like those that the model will see"
        raise UsageError("no calibration rows", where="--dataset", fix=fix)
    if config.export.quant_search and not calibrates(config):
        fix = "add --dataset FILE_OR_NAME#500" if config.export.gguf_type in SEARCHED else "leave it out"
        raise UsageError("nothing is searched without rows to calibrate on", where="--quant_search", fix=fix)
    config, model, adapters = find(config)
    files = check_model_files(model.path)
    _refuse_quantized(files, config.quantization.quant_method, bool(adapters))
    _check_packages(config.quantization.quant_method)
    if config.quantization.quant_method == "gguf":
        _check_gguf(model, adapters, files)
    elif config.quantization.quant_method in WITHOUT_EXPERTS:
        _check_experts(config.quantization.quant_method, files)
    config = _decide_output(config, model, adapters)
    out = Path(config.export.output_dir).expanduser()
    from swift.export.merge import check_output

    check_output(out, config.export.exist_ok, (model.path, *adapters))
    config = _decide_rows(config)
    config = _decide_groups(config, files)
    if config.common.dry_run:
        print(explain(config))
        return 0
    runs.ensure_writable_dir(out.absolute().parent)
    needed = files.parameters * 2 if files.parameters else files.total_bytes
    check_disk(out, int(needed * (1.2 if not adapters else 2.4)), "the quantized model and the work on it")
    _quantize(config, model, files, adapters, out)
    return 0


def _refuse_quantized(files: ModelFiles, method: str, merges: bool) -> None:
    """An FP8 source becomes FP8 again only with adapters merged in; bitsandbytes quantizes plain weights only."""
    source = (files.quantization or {}).get("quant_method")
    again = method in (source, "bnb") and not merges
    if files.quantization and not files.is_gguf and (again or source not in SOURCES):
        what = f"the source is already quantized ({source or 'bitsandbytes'})"
        raise UsageError(what, where=f"--model {files.path}", fix="pass the unquantized model")


def _check_gguf(model: LocalModel, adapters: tuple[Path, ...], files: ModelFiles) -> None:
    from swift.export.gguf import check_source
    from swift.models.gguf import as_directory

    directory = as_directory(files.path)
    check_source(directory, check_model_files(directory).config, adapters)


def _check_experts(method: str, files: ModelFiles) -> None:
    from swift.export.layers import is_fused

    if any(is_fused(module) for module in _empty(files).modules()):
        what = f"{method} has no file format for the experts of this model"
        raise UsageError(what, where="--quant_method", fix="--quant_method awq, gptq or fp8")


def _check_packages(method: str) -> None:
    from importlib.util import find_spec

    if method == "torchao" and find_spec("torchao") is None:
        raise MissingPackage("--quant_method torchao needs torchao", fix="pip install 'torchao>=0.18'")
    if method == "bnb" and find_spec("bitsandbytes") is None:
        raise MissingPackage("--quant_method bnb needs bitsandbytes", fix="pip install bitsandbytes")


def _decide_output(config: ExportConfig, model: LocalModel, adapters: tuple[Path, ...]) -> ExportConfig:
    if config.export.output_dir is not None:
        return config
    bits = config.quantization.quant_bits
    ending = f"{config.quantization.quant_method}-int{bits}"
    if config.export.gguf_type:
        ending = config.export.gguf_type
    home = adapters[0] if adapters else Path(model.path.name)
    return config.decide("the model's name, the method and the bits", output_dir=f"{home}-{ending}")


def _decide_rows(config: ExportConfig) -> ExportConfig:
    """How much to calibrate on: less on a processor than on a GPU."""
    if not calibrates(config):
        return config
    from swift.models.device import pick_device

    small = pick_device().kind == "cpu"
    if config.export.quant_n_samples is None:
        config = config.decide("enough for a cpu" if small else "as usual", quant_n_samples=64 if small else 128)
    if config.chat.max_length is None:
        config = config.decide("enough for a cpu" if small else "as usual", max_length=256 if small else 1024)
    return config


def _decide_groups(config: ExportConfig, files: ModelFiles) -> ExportConfig:
    """A group size that divides the model's layers; UsageError for one given that doesn't."""
    if config.quantization.quant_method not in CALIBRATED:
        if config.given("group_size"):
            what = f"{config.quantization.quant_method} has no group size"
            raise UsageError(what, where="--group_size", fix="leave it out")
        return config
    sizes = input_sizes(files)
    if not sizes:
        what = "none of this model's layers fits the layout (it has no plain linear layers)"
        raise UsageError(
            what, where=f"--quant_method {config.quantization.quant_method}", fix="--quant_method bnb or fp8"
        )
    given = config.export.group_size
    if given is not None:
        odd = next((item for item in sizes.items() if item[1] % given), None)
        if odd is not None:
            fitting = [str(group) for group in GROUPS if not any(size % group for size in sizes.values())]
            fix = f"--group_size {' or '.join(fitting)}" if fitting else "--quant_method fp8 or bnb"
            what = f"{odd[0]} has {odd[1]} inputs, which {given} doesn't divide"
            raise UsageError(what, where=f"--group_size {given}", fix=fix)
        return config
    for group in GROUPS:
        odd = [name for name, size in sizes.items() if size % group]
        if not odd:
            return config.decide("the largest that divides every layer", group_size=group)
    for group in GROUPS[::-1]:
        fitting = sum(size % group == 0 for size in sizes.values())
        if fitting * 2 >= len(sizes):
            why = f"it divides {fitting} of {len(sizes)} layers; the others stay unquantized"
            return config.decide(why, group_size=group)
    name, size = next(iter(sizes.items()))
    what = f"no group size fits this model's layers ({name} has {size} inputs)"
    raise UsageError(what, where="--quant_method", fix="--quant_method fp8 or bnb")


def input_sizes(files: ModelFiles) -> dict[str, int]:
    """The inputs of every matrix that would be rounded, by its name in the model, without reading a weight."""
    from swift.export.integers import matrices_of
    from swift.export.layers import find_layers

    model = _empty(files)
    return dict(matrices_of(model, find_layers(model)))


def _empty(files: ModelFiles) -> Any:
    """The model without weights, with plain layers where the source's are quantized."""
    import torch

    from swift.models.gguf import as_directory
    from swift.models.load import auto_class, load_config

    path = as_directory(files.path)
    config = load_config(path)
    for part in (config, getattr(config, "text_config", None)):
        if getattr(part, "quantization_config", None) is not None:
            del part.quantization_config
    with torch.device("meta"):
        return auto_class(config, path).from_config(config)


def _quantize(
    config: ExportConfig, model: LocalModel, files: ModelFiles, adapters: tuple[Path, ...], out: Path
) -> None:
    from swift.export.calibration import gather
    from swift.models.device import pick_device
    from swift.models.gguf import as_directory
    from swift.models.load import load_tokenizer
    from swift.models.plan import plan_loading

    start = time.monotonic()
    work = out.absolute().with_name(f"{runs.STAGING_PREFIX}{out.name}-work")
    base = as_directory(model.path) if not adapters else _merged(config, model, files, adapters, work / "merged")
    files = check_model_files(base)
    # GGUF can hold every stored value as it is
    options = replace(config.model, torch_dtype=stored_as(files) if config.export.gguf_type else None)
    plain = replace(config.quantization, quant_method=None, quant_bits=None)
    plan = plan_loading(options, plain, files, pick_device(), training=True)
    tokenizer = load_tokenizer(base, trust_remote_code=plan.trust_remote_code)
    rows = gather(config, model, files, tokenizer, calibrates(config), config.chat.max_length or 0)
    job = QuantJob(config, base, files, plan, rows, tokenizer, tokenizer.chat_template, work)
    with written_aside(out) as staging:
        report = _prove(job, staging, start)
        (staging / "README.md").write_text(card(job, model, adapters, report), encoding="utf-8")
        runs.write_json(staging / "quantization_report.json", report.to_json())
        save_args(staging, "export", _absorbed(config), quantized_from=lineage(model, adapters))
        runs.commit_dir(staging, out.absolute(), kind="quantized_model", **lineage(model, adapters))
    shutil.rmtree(work, ignore_errors=True)
    log.info("quantized model: %s", out)
    runs.announce(model=out)


def stored_as(files: ModelFiles) -> str:
    """The dtype of most of the source's values."""
    from swift.export.export import base_dtype

    return base_dtype(files)[0]


def _merged(
    config: ExportConfig, model: LocalModel, files: ModelFiles, adapters: tuple[Path, ...], directory: Path
) -> Path:
    """The base with its adapters merged in, kept until the quantization is done."""
    from swift.export.export import base_dtype, merge_adapters

    if directory.is_dir() and not runs.verify_dir(directory, hashes=False):
        log.info("taking the merged model of the run that was cut")
        return directory
    dtype = config.export.merge_dtype or base_dtype(files)[0]
    merging = config.replace({"output_dir": str(directory), "merge_dtype": dtype}, "decided", "before quantizing")
    return merge_adapters(merging, model, files, adapters)


def _prove(job: QuantJob, staging: Path, start: float) -> Any:
    """Measure the source, write the quantized model to `staging`, measure that; the report, checked."""
    from swift.export.report import Report, divergence, measure, weight_file_bytes
    from swift.models.load import load_model

    source_model = load_model(job.base, job.plan)
    source = measure(source_model, job.rows.held_out, weight_file_bytes(job.base))
    log.info("source: perplexity %.3f on %s", source.perplexity, job.rows.held_out_from)
    share = writer(job.method)(job, source_model, staging)
    del source_model
    gc.collect()
    quantized = measure(reload(job, staging), job.rows.held_out, weight_file_bytes(staging))
    far, same = divergence(source.logits, quantized.logits)
    report = Report(
        method=job.method,
        bits=job.bits,
        kind=job.config.export.gguf_type,
        group_size=job.config.export.group_size if job.method in CALIBRATED else None,
        quantized_share=share,
        held_out=job.rows.held_out_from,
        positions=sum(map(len, job.rows.held_out)),
        perplexity=quantized.perplexity,
        source_perplexity=source.perplexity,
        divergence=far,
        agreement=same,
        disk=quantized.disk,
        source_disk=source.disk,
        memory=quantized.memory,
        source_memory=source.memory,
        speed=quantized.speed,
        source_speed=source.speed,
        loaded_as=quantized.loaded_as,
        source_loaded_as=source.loaded_as,
        seconds=time.monotonic() - start,
    )
    for line in report.lines():
        log.info(line)
    report.check(job.config.export.max_ppl_increase)
    return report


def writer(method: str) -> Callable[[QuantJob, Any, Path], float]:
    """The method's function: writes a whole model directory, uses up the model, returns the quantized share."""
    if method in CALIBRATED:
        from swift.export.integers import write
    elif method == "gguf":
        from swift.export.gguf import write
    elif method == "torchao":
        from swift.export.torchao import write
    elif method == "fp8":
        from swift.export.fp8 import write
    else:
        from swift.export.onload import write
    return write


def reload(job: QuantJob, directory: Path) -> Any:
    """The written model as every other command would load it. ExportError when it can't be."""
    from swift.errors import SwiftError
    from swift.models.device import pick_device
    from swift.models.gguf import as_directory
    from swift.models.load import load_model
    from swift.models.plan import plan_loading

    try:
        if job.method == "gguf":
            from swift.export.gguf_back import reload as read_back

            return read_back(job, directory)
        files = check_model_files(directory)
        options = replace(job.config.model, torch_dtype=job.plan.dtype)
        plain = replace(job.config.quantization, quant_method=None, quant_bits=None)
        plan = plan_loading(options, plain, files, pick_device(), training=False)
        return load_model(as_directory(files.path), plan)
    except SwiftError as error:
        raise ExportError(f"the quantized model can't be loaded: {error.what}", where=error.where) from error


def lineage(model: LocalModel, adapters: tuple[Path, ...]) -> dict[str, Any]:
    """What the model is made from, for manifest.json: the base and the adapters with the runs that trained them."""
    found: dict[str, Any] = {"base": str(model.path)}
    if adapters:
        found["adapters"] = [str(path) for path in adapters]
        found["trained_with"] = [(runs.read_args(path) or {}).get("options", {}).get("dataset") for path in adapters]
    return found


def _absorbed(config: ExportConfig) -> ExportConfig:
    from swift.export.export import ABSORBED

    gone = {name: value for name, value in ABSORBED.items() if name in config.specs()}
    return config.replace(gone, "decided", "quantized")


def card(job: QuantJob, model: LocalModel, adapters: tuple[Path, ...], report: Any) -> str:
    """README.md: what the model is made from, how, and the table of its proof."""
    named = job.config.model.model or str(model.path)
    tags = "".join(f"- {tag}\n" for tag in (job.method, job.config.export.gguf_type or f"{job.bits}-bit"))
    head = f"---\nlibrary_name: transformers\nbase_model: {named}\nbase_model_relation: quantized\ntags:\n{tags}---\n\n"
    made = f"`{named}`"
    if adapters:
        made += f" with the adapters {', '.join(path.name for path in adapters)} merged in (full precision)"
    made += f", quantized with {report.name()}"
    if job.rows.samples is not None:
        count, tokens = job.rows.samples.shape
        data = ", ".join(job.config.data.dataset)
        made += f", calibrated on {count} samples of {tokens} tokens of {data}"
    compared = f"Compared with its source on {report.positions} positions ({report.held_out}):"
    title = Path(job.config.export.output_dir).name
    return f"{head}# {title}\n\n{made}.\n\n{compared}\n\n{report.markdown()}"


def check_shares(quantized: int, total: int, what: str) -> float:
    """The share of the weights that were quantized; ExportError when there are none."""
    if quantized == 0:
        raise ExportError(f"no weight was quantized: {what}", fix="choose another --quant_method")
    log.info("converted %.0f %% of the weights (%s)", 100 * quantized / total, human_bytes(total * 2) + " in bfloat16")
    return quantized / total
