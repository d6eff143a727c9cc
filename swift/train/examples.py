"""The rows of a run, encoded: from the options of data and chat to what the trainer reads.

Promises: every row is accounted for in the printed report before any weight is loaded; the fingerprint changes when a
token, a label or the order of the training rows does.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from swift import runs
from swift.chat.processing import Processing
from swift.config.commands import SftConfig
from swift.data import DataReport, EncodedDataset, PadCollator, Prepared, Rows, make_encoder, prepare, write_rows
from swift.data.heads import HeadCollator, HeadDataset
from swift.data.media_batch import MediaCollator
from swift.data.ondemand import Lazy, SeenCollator, Streamed
from swift.data.pack import OpenBins, PackedDataset
from swift.data.prepare import refuse_nothing, use_template
from swift.data.processors import find_processing
from swift.errors import DataError, MissingPackage, UsageError
from swift.hub import LocalModel
from swift.train import ondemand
from swift.train.head_rows import prepare_heads
from swift.train.ondemand import OnDemand

log = logging.getLogger("swift")


@dataclass(frozen=True)
class Examples:
    """`collate` makes batches of examples, `source(row_id)` is file:line. `val` is None without validation rows."""

    train: EncodedDataset | HeadDataset | PackedDataset | Streamed | Lazy
    val: EncodedDataset | HeadDataset | None
    collate: PadCollator | HeadCollator | MediaCollator | OpenBins
    fingerprint: str
    source: Callable[[int], str]
    prepared: Prepared
    longest: int = 0

    @property
    def report(self) -> DataReport:
        return self.prepared.report

    @property
    def val_rows(self) -> Rows:
        return self.prepared.val_rows

    @property
    def on_demand(self) -> OnDemand | None:
        """What encodes the training rows, where that isn't done ahead."""
        return self.prepared if isinstance(self.prepared, OnDemand) else None

    def lengths_known(self) -> list[int]:
        """Tokens of the training rows; of a sample of them and of the longest possible where they aren't known."""
        if self.train.lengths is not None:
            return self.train.lengths.tolist()
        sample = self.prepared.train.lengths
        rows = len(sample) if isinstance(self.train, Streamed) else len(self.train)
        return np.resize(sample, rows).tolist() + [self.longest]

    def save(self, run_dir: Path) -> None:
        """The report, and the rows that were held out, into the run directory."""
        save_report(run_dir, self.prepared)
        if len(self.val_rows):
            write_rows(run_dir / "val_dataset.jsonl", self.val_rows)


def save_report(directory: Path, prepared: Prepared, rows: int | None = None) -> None:
    """data_report.json and data_report.html, with the first `rows` examples and what is learned of them."""
    shown = prepared.shown() if rows is None else prepared.shown(rows)
    runs.write_json(directory / "data_report.json", prepared.report.to_json())
    runs.write_text(directory / "data_report.html", prepared.report.to_html(shown))


def prepare_rows(
    config: SftConfig, model: LocalModel, tokenizer: Any, world_size: int = 1, check: bool = True
) -> tuple[SftConfig, Prepared]:
    """Read, split and encode the rows and count the steps. `check` False leaves the thresholds to `check_rows`.

    Returns the config with the template that was chosen, so that the run's args.json holds it.
    """
    config, template = use_template(config, model, tokenizer)
    processing = None
    if config.head.task_type == "causal_lm":
        processing = find_processing(model.directory, config.media, config.model.trust_remote_code)
    encoder = make_encoder(config.chat, tokenizer, template, model.directory, processing)
    options, training = config.model, config.training
    if ondemand.wanted(config):
        return ondemand.prepare_on_demand(config, encoder, world_size, check)
    if config.head.task_type != "causal_lm":
        config, prepared = prepare_heads(config, encoder, check)
    else:
        prepared = prepare(
            config.data,
            encoder,
            encoding=config.encoding,
            supply=config.supply,
            seed=training.seed,
            use_hf=options.use_hf,
            hub_token=options.hub_token,
            check=check,
        )
    packed = _packed(config, prepared)
    if packed is not None:
        prepared.report.remarks.append(packed.describe())
        prepared = dataclasses.replace(prepared, packed=packed)
    prepared.report.expect_steps(
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps or 1,
        training.num_train_epochs,
        world_size,
        training.max_steps,
        None if packed is None else len(packed),
    )
    return config, prepared


def check_rows(config: SftConfig, prepared: Prepared) -> None:
    """DataError when too many rows are lost, or none is left to train or evaluate on."""
    report, data = prepared.report, config.data
    report.check(strict=data.strict, max_drop_ratio=data.max_drop_ratio)
    refuse_nothing(report.split("train"), "train on", _named(config, "dataset"))
    if prepared.val is not None:
        refuse_nothing(report.split("val"), "evaluate on", _named(config, "val_dataset") or _named(config, "dataset"))
    elif config.evaluation.eval_strategy != "no":
        raise DataError(
            f"no row is left to evaluate on: {data.split_dataset_ratio:g} of {report.rows_read} rows",
            fix="raise --split_dataset_ratio, or name rows with --val_dataset",
        )


def prepare_examples(
    config: SftConfig, model: LocalModel, tokenizer: Any, world_size: int = 1
) -> tuple[SftConfig, Examples]:
    """`prepare_rows`, shown and checked, for the trainer."""
    config, prepared = prepare_rows(config, model, tokenizer, world_size)
    log.info(prepared.report.to_text())
    check_rows(config, prepared)
    collate: Any = _collator(config, prepared, tokenizer)
    if isinstance(prepared, OnDemand):
        collate = OpenBins(SeenCollator(collate, takes_media=isinstance(collate, MediaCollator)))
        longest = config.training.packing_length if config.training.packing else config.chat.max_length
        return config, Examples(
            prepared.items, prepared.val, collate, prepared.key, prepared.source, prepared, int(longest or 0)
        )
    fingerprint, packed = prepared.train.fingerprint(), prepared.packed
    if packed is not None:
        collate = OpenBins(collate)
        fingerprint = f"{fingerprint}-packed-{packed.capacity}"
    train = prepared.train if packed is None else packed
    return config, Examples(train, prepared.val, collate, fingerprint, prepared.source, prepared)


def _packed(config: SftConfig, prepared: Prepared) -> PackedDataset | None:
    """The training rows in bins, with --packing."""
    training = config.training
    if not training.packing:
        return None
    return PackedDataset(prepared.train, int(training.packing_length or 0), training.seed)


def _collator(config: SftConfig, prepared: Prepared, tokenizer: Any) -> PadCollator | HeadCollator | MediaCollator:
    if config.head.task_type != "causal_lm":
        return HeadCollator(tokenizer.pad_token_id)
    pad = PadCollator(tokenizer.pad_token_id, padding_side=config.chat.padding_side, with_row_ids=True)
    processing = prepared.encoder.processor
    if processing is None:
        return pad
    if not (prepared.train.media or (prepared.val is not None and prepared.val.media)):
        try:
            processing.processor  # noqa: B018  rows of text don't need what only images need
        except MissingPackage:
            return pad
    several = 2 if config.training.packing else 1  # a bin holds several rows
    for split, size in (
        (prepared.train, config.training.per_device_train_batch_size * several),
        (prepared.val, config.evaluation.per_device_eval_batch_size),
    ):
        if split is not None and size > 1:
            _check_mixture(split, processing)
    return MediaCollator(pad, processing, config.model.torch_dtype)


def _check_mixture(split: EncodedDataset, processing: Processing) -> None:
    """UsageError for rows of text beside rows with images where the model can't have both in a batch; a warning for
    images beside videos where only the model's code knows whether it tells them apart (GLM-5 does, GLM-4V doesn't).
    """
    kinds = {tuple(sorted(name for name in row if row[name])): row for row in split.media.values()}
    if len(kinds) > 1 and not processing.tells_apart(list(kinds.values())):
        log.warning(
            "images and videos have the same placeholder in this model's text: if it says that features and tokens "
            "don't match, type --per_device_train_batch_size 1 --per_device_eval_batch_size 1, or train on one kind"
        )
    if not 0 < len(split.media) < len(split):
        return
    media = dict(next(iter(split.media.values())))
    if not processing.mixes(media.pop("text"), media):
        raise UsageError(
            "this model can't have rows of text beside rows with images in one batch",
            fix="--per_device_train_batch_size 1 --per_device_eval_batch_size 1, or give every row an image",
        )


def _named(config: SftConfig, option: str) -> tuple[str, ...]:
    """The data sets that an option and its cached sister name."""
    return (*config.value(option), *config.value(f"cached_{option}"))
