"""`swift export --to_cached_dataset true`: rows read, checked and encoded ahead, for `swift sft --cached_dataset DIR`.

Promises: the ids are those that `swift sft` with the same options would make; no weight is read; the directory is
complete or not there, and holds the data report.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from swift import runs
from swift.config.commands import ExportConfig
from swift.config.decide import decide_chat
from swift.config.record import explain, save_args
from swift.errors import UsageError
from swift.hub import check_model_files, resolve_options

if TYPE_CHECKING:
    from swift.data import Prepared

log = logging.getLogger("swift")

SEED = 42  # of `swift sft`, when neither says otherwise


def export_rows(config: ExportConfig) -> int:
    """Encode --dataset (and --val_dataset, or what --split_dataset_ratio holds out) into --output_dir."""
    config = _checked(config)
    options, data = config.model, config.data
    model = resolve_options(options)
    config = decide_chat(config, check_model_files(model.path).context)
    out = Path(str(config.export.output_dir)).expanduser()
    _check_output(out, config.export.exist_ok)
    if config.common.dry_run:
        print(explain(config))
        return 0
    from swift.data import make_encoder, prepare
    from swift.data.prepare import refuse_nothing, use_template
    from swift.models.gguf import as_directory
    from swift.models.load import load_tokenizer

    tokenizer = load_tokenizer(
        as_directory(model.path),
        trust_remote_code=options.trust_remote_code,
        new_special_tokens=options.new_special_tokens,
    )
    config, template = use_template(config, model, tokenizer)
    encoder = make_encoder(config.chat, tokenizer, template, model.directory)
    prepared = prepare(
        data, encoder, encoding=config.encoding, seed=SEED, use_hf=options.use_hf, hub_token=options.hub_token
    )
    log.info(prepared.report.to_text())
    prepared.report.check(strict=data.strict, max_drop_ratio=data.max_drop_ratio)
    refuse_nothing(prepared.report.split("train"), "train on", data.dataset)
    _write(out, config, prepared)
    log.info("cached data set: swift sft --model %s --cached_dataset %s", options.model, out)
    return 0


def _checked(config: ExportConfig) -> ExportConfig:
    for name, missing in (("model", config.model.model is None), ("dataset", not config.data.dataset)):
        if missing:
            fix = "swift export --to_cached_dataset true --model M --dataset D --output_dir DIR"
            raise UsageError(f"no --{name}", where="--to_cached_dataset", fix=fix)
    for name in ("adapters", "merge_lora"):
        if config.value(name):
            raise UsageError(f"--{name} has no meaning with it", where="--to_cached_dataset", fix=f"leave out --{name}")
    if config.export.output_dir is None:
        name = Path(config.data.dataset[0].partition("#")[0]).name.split(".")[0]
        config = config.decide("the data set's name", output_dir=f"./{name}-cached")
    return config


def _check_output(out: Path, exist_ok: bool) -> None:
    """UsageError for a path that can't become the cached data set."""
    from swift.data.cached import FACTS

    where = f"--output_dir {out}"
    if out.exists() and not out.is_dir():
        raise UsageError("is a file", where=where, fix="name a directory")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not exist_ok:
        fix = "choose another, or pass --exist_ok true to replace the data set in it"
        raise UsageError("the directory is not empty", where=where, fix=fix)
    if not (out / "train" / FACTS).is_file():
        what = "the directory holds something else than a cached data set"
        raise UsageError(what, where=where, fix="choose another one")


def _write(out: Path, config: ExportConfig, prepared: Prepared) -> None:
    """Write aside, then rename."""
    from swift.data import write_rows
    from swift.data.cache import encoder_facts
    from swift.data.cached import OPTIONS, save_split

    facts = encoder_facts(prepared.encoder)
    if facts is None:
        raise UsageError("a tokenizer without a Rust part can't be cached for", where=f"--model {config.model.model}")
    runs.ensure_writable_dir(out.parent)
    staging = out.with_name(f"{runs.STAGING_PREFIX}{out.name}")
    shutil.rmtree(staging, ignore_errors=True)
    options = {name: config.value(name) for name in OPTIONS}
    try:
        for split, encoded in (("train", prepared.train), ("val", prepared.val)):
            if encoded is not None:
                count = prepared.report.split(split)
                save_split(staging / split, encoded, count, facts, options, prepared.source)
        if len(prepared.val_rows):
            write_rows(staging / "val_dataset.jsonl", prepared.val_rows)
        runs.write_json(staging / "data_report.json", prepared.report.to_json())
        runs.write_text(staging / "data_report.html", prepared.report.to_html(prepared.shown()))
        save_args(staging, "export", config)
        runs.commit_dir(staging, out)
    except OSError as error:
        raise runs.disk_error(error, out) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
