"""`swift data`: what a command line of `swift sft` makes of its data, without training.

Promises: the rows, ids, labels and counts are those that `swift sft` with the same options would train on; no weight
is read; nothing is written but the cache and, with --output_dir, the report. Without --model rows are only read and
counted, not encoded.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path

from swift import runs
from swift.config.commands import DataConfig
from swift.config.record import explain
from swift.errors import UsageError
from swift.say import speak
from swift.train.sft import prepare

# options outside the sections of model, chat and data that the report depends on
USED = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_steps",
    "seed",
    "eval_strategy",
    "output_dir",
    "log_level",
)
SECTIONS = ("model", "chat", "data", "encoding", "supply", "preview", "common")

log = logging.getLogger("swift")


def main(config: DataConfig) -> int:
    """Print the report and the first rows; 0, or the error that a threshold of the user's makes of it."""
    speak(config.logging.log_level, stream="stderr" if config.preview.json else "stdout")
    if not config.data.dataset and not config.supply.cached_dataset:
        raise UsageError("no data", fix="--dataset FILE_OR_NAME ..., see swift list-datasets")
    aside = [
        f"--{name}" for name, spec in config.specs().items() if config.given(name) and not _counts(name, spec.section)
    ]
    if aside:
        log.info("these concern the training, not its data: %s", " ".join(aside))
    if config.model.model is None and not config.model.adapters and not config.supply.cached_dataset:
        return _rows_only(config)
    setup = prepare(config)
    config = setup.config
    if config.common.dry_run:
        print(explain(config))
        return 0
    from swift.models.gguf import as_directory
    from swift.models.load import load_tokenizer
    from swift.train.examples import check_rows, prepare_rows, save_report
    from swift.train.ondemand import OnDemand

    options = config.model
    tokenizer = load_tokenizer(
        as_directory(setup.model.path),
        trust_remote_code=options.trust_remote_code,
        new_special_tokens=options.new_special_tokens,
    )
    config, prepared = prepare_rows(config, setup.model, tokenizer, setup.world_size, check=False)
    if isinstance(prepared, OnDemand):
        prepared = prepared.counted()
    count = config.preview.show_rows
    if config.preview.json:
        print(json.dumps(prepared.report.to_json(), ensure_ascii=False, indent=2))
    else:
        from swift.data.mask_view import mask_text

        print(prepared.report.to_text())
        print(mask_text(prepared.shown(count), colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    directory = _report_dir(config)
    if directory is not None:
        save_report(directory, prepared, count)
    check_rows(config, prepared)
    return 0


def _counts(name: str, section: str) -> bool:
    return section in SECTIONS or name in USED


def _report_dir(config: DataConfig) -> Path | None:
    """Where the report is saved: only where the user says so."""
    if not config.given("output_dir"):
        return None
    directory = runs.ensure_writable_dir(Path(str(config.saving.output_dir)).expanduser())
    log.info("report: %s", directory / "data_report.html")
    return directory


def _rows_only(config: DataConfig) -> int:
    """The report of reading alone."""
    from swift.data import load_rows
    from swift.data.prepare import read_options

    if config.given("show_rows"):
        raise UsageError("without a model nothing is encoded, so there is nothing to show", fix="add --model NAME")
    if config.common.dry_run:
        print(explain(config))
        return 0
    options, data = config.model, read_options(config.data, config.training.seed)
    report = load_rows(data, use_hf=options.use_hf, hub_token=options.hub_token, check=False).report
    report.remarks.append("no --model: the rows were read and counted, not encoded")
    print(json.dumps(report.to_json(), ensure_ascii=False, indent=2) if config.preview.json else report.to_text())
    directory = _report_dir(config)
    if directory is not None:
        runs.write_json(directory / "data_report.json", report.to_json())
        runs.write_text(directory / "data_report.html", report.to_html())
    report.check(strict=data.strict, max_drop_ratio=data.max_drop_ratio)
    return 0
