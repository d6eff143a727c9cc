"""`swift export --model M --output_dir D [--torch_dtype T] [--max_shard_size S]`: the same model in another dtype, in
shards of another size, or as plain weights (a GGUF file, an FP8, AWQ, GPTQ or bitsandbytes checkpoint).

Promises: the directory is read back by plain transformers and gives the logits of what was written; what rounding to
the new dtype changes is measured and shown; the directory appears whole or not at all.
"""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from swift import runs
from swift.config.commands import ExportConfig
from swift.config.record import explain, save_args
from swift.errors import ExportError, UsageError
from swift.export.writing import written_aside
from swift.hub import LocalModel, ModelFiles, check_model_files
from swift.hub.resources import check_disk
from swift.models.plan import ITEM_BYTES, true_parameters

log = logging.getLogger("swift")


def run(config: ExportConfig, find: Callable[[ExportConfig], tuple[ExportConfig, LocalModel, tuple[Path, ...]]]) -> int:
    """Check, convert, prove; 0 or an error."""
    from swift.export.export import base_dtype
    from swift.export.merge import check_output
    from swift.models.device import pick_device
    from swift.models.gguf import as_directory
    from swift.models.plan import plan_loading

    asked = config.model.torch_dtype if config.given("torch_dtype") else None
    config, model, _ = find(config)
    out = Path(str(config.export.output_dir)).expanduser()
    check_output(out, config.export.exist_ok, (model.path,))
    base = as_directory(model.path)
    files = check_model_files(base)
    stored = base_dtype(files)[0]
    dtype = asked or stored
    plain = dataclasses.replace(config.quantization, quant_method=None, quant_bits=None)
    options = dataclasses.replace(config.model, torch_dtype=stored)
    plan = plan_loading(options, plain, files, pick_device(), training=True)
    if plan.quantized and plan.source_quant != "bitsandbytes":
        what = f"the model's {plan.source_quant} weights can't be made plain"
        raise UsageError(what, where=f"--model {model.path}", fix="pass the unquantized model")
    if config.common.dry_run:
        print(explain(config))
        return 0
    runs.ensure_writable_dir(out.absolute().parent)
    check_disk(out, int(true_parameters(files) * ITEM_BYTES[dtype] * 1.05), "the converted model")
    _convert(config, model, files, base, plan, dtype, out)
    return 0


def _convert(
    config: ExportConfig, model: LocalModel, files: ModelFiles, base: Path, plan: Any, dtype: str, out: Path
) -> None:
    from swift.export.merge import MergeJob
    from swift.models.load import load_tokenizer

    tokenizer = load_tokenizer(base, trust_remote_code=plan.trust_remote_code)
    from swift.export.export import MOST_TOKENS, PROMPTS
    from swift.export.proof import Prompt

    prompts = [Prompt(tokenizer(text)["input_ids"][:MOST_TOKENS]) for text in PROMPTS]
    job = MergeJob(base, files, (), out, dataclasses.replace(plan, dtype=dtype), prompts, config.export.max_shard_size)
    with written_aside(out) as staging:
        report = _write(config, job, plan, staging)
        facts = {"base": str(model.path), "dtype": dtype, "source_dtype": plan.dtype}
        (staging / "README.md").write_text(_card(config, dtype, report), encoding="utf-8")
        runs.write_json(staging / "export_report.json", {"kind": "convert", **facts, **report})
        gone = {name: None for name in ("model", "torch_dtype", "model_revision")}
        save_args(staging, "export", config.replace(gone, "decided", "converted"), converted_from=facts)
        runs.commit_dir(staging, out.absolute(), kind="converted_model", **facts)
    log.info("converted model: %s", out)
    runs.announce(model=out)


def _write(config: ExportConfig, job: Any, plan: Any, staging: Path) -> dict[str, Any]:
    """Write into `staging`, read that back; the figures, checked."""
    from swift.export.bases import load_plain
    from swift.export.merge import compute_dtype, copy_companions, plain_load
    from swift.export.proof import NOISE, largest_difference, logits_of, top1_agreement
    from swift.models.quiet import quiet

    model = load_plain(job.base, plan)
    compute = compute_dtype(job, model)
    target = getattr(torch, job.plan.dtype)
    own = model._weight_conversions
    kept = {name for name, p in model.named_parameters() if p.dtype != getattr(torch, plan.dtype)}
    source = logits_of(model.to(compute), job.prompts)
    for name, parameter in model.named_parameters():
        if name not in kept:  # some stay float32 in a half-precision model
            parameter.data = parameter.data.to(target)
    model.config.dtype = target
    model._weight_conversions = own
    with quiet():
        model.save_pretrained(staging, max_shard_size=job.max_shard_size)
    rounded = logits_of(model.to(compute), job.prompts)
    del model
    gc.collect()
    copy_companions(job.base, staging)
    reloaded = logits_of(plain_load(staging, job, compute), job.prompts)
    off = largest_difference(rounded, reloaded)
    if off > NOISE[compute] * max(1.0, max(a.abs().max().item() for a in source)):
        raise ExportError(f"the saved model isn't the converted one: logits differ {off:.4g}")
    report = {
        "rounding": largest_difference(source, rounded),
        "reload_difference": off,
        "agreement": top1_agreement(source, reloaded),
        "weight_files": len(list(staging.glob("*.safetensors"))),
    }
    log.info("rounding %s to %s changes the logits by up to %.4g", plan.dtype, job.plan.dtype, report["rounding"])
    log.info("the most likely token is the same at %.2f %% of the positions", 100 * report["agreement"])
    log.info("read back: differs by up to %.4g, %d weight files", off, report["weight_files"])
    return report


def _card(config: ExportConfig, dtype: str, report: dict[str, Any]) -> str:
    base = config.model.model
    head = (
        f"---\nlibrary_name: transformers\nbase_model: {base}\n---\n\n# {Path(str(config.export.output_dir)).name}\n\n"
    )
    same = f"the most likely token is the same at {100 * report['agreement']:.2f} % of the compared positions"
    return f"{head}`{base}` as plain {dtype} weights; {same}.\n"
