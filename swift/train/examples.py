"""The rows of a run, encoded: from the options of data and chat to what the trainer reads.

Promises: every row is accounted for in the printed report before any weight is loaded; the fingerprint changes when a
token, a label or the order of the training rows does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift import runs
from swift.chat import ChatEncoder
from swift.chat.template import choose_template
from swift.config.commands import SftConfig
from swift.data import DataReport, EncodedDataset, PadCollator, Rows, encode_rows, load_rows, write_rows
from swift.errors import DataError
from swift.hub import LocalModel
from swift.hub.files import read_json_object
from swift.train.plain import PlainEncoder

log = logging.getLogger("swift")


@dataclass(frozen=True)
class Examples:
    """`collate` makes batches of examples, `source(row_id)` is file:line. `val` is None without validation rows."""

    train: EncodedDataset
    val: EncodedDataset | None
    collate: PadCollator
    fingerprint: str
    source: Callable[[int], str]
    report: DataReport
    val_rows: Rows

    def save(self, run_dir: Path) -> None:
        """The report, and the rows that were held out, into the run directory."""
        runs.write_json(run_dir / "data_report.json", self.report.to_json())
        runs.write_text(run_dir / "data_report.html", self.report.to_html())
        if len(self.val_rows):
            write_rows(run_dir / "val_dataset.jsonl", self.val_rows)


def prepare_examples(
    config: SftConfig, model: LocalModel, tokenizer: Any, world_size: int = 1
) -> tuple[SftConfig, Examples]:
    """Read, split and encode the rows and show what became of each. DataError when too many are lost or none is left.

    Returns the config with the template that was chosen, so that the run's args.json holds it.
    """
    config, template = _template(config, model, tokenizer)
    if template is not None:
        tokenizer.chat_template = template  # a tokenizer saved with the weights carries what they were trained with
    loaded = load_rows(config.data, use_hf=config.model.use_hf, hub_token=config.model.hub_token)
    encoder = _encoder(config, model, tokenizer, template)
    report = loaded.report
    train = encode_rows(loaded.train, encoder, report=report)
    val = encode_rows(loaded.val, encoder, report=report, split="val") if len(loaded.val) else None
    training = config.training
    report.expect_steps(
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps or 1,
        training.num_train_epochs,
        world_size,
        training.max_steps,
    )
    log.info(report.to_text())
    report.check(strict=config.data.strict, max_drop_ratio=config.data.max_drop_ratio)
    _refuse_nothing(train, report.split("train"), "train on", config.data.dataset)
    if val is not None:
        _refuse_nothing(val, report.split("val"), "evaluate on", config.data.val_dataset or config.data.dataset)
    elif config.evaluation.eval_strategy != "no":
        raise DataError(
            f"no row is left to evaluate on: {config.data.split_dataset_ratio:g} of {report.rows_read} rows",
            fix="raise --split_dataset_ratio, or name rows with --val_dataset",
        )
    collate = PadCollator(tokenizer.pad_token_id, padding_side=config.chat.padding_side, with_row_ids=True)
    examples = Examples(
        train, val, collate, train.fingerprint(), lambda row: str(loaded.source(row)), report, loaded.val
    )
    return config, examples


def _refuse_nothing(encoded: EncodedDataset, count: Any, purpose: str, datasets: tuple[str, ...]) -> None:
    if len(encoded) == 0:
        why = f": {count.drops.first()}" if count.drops.total else ""
        raise DataError(
            f"no row is left to {purpose}{why}",
            where=f"--dataset {' '.join(datasets)}",
            fix="look at the report above; --max_length, --template and --columns decide what can be used",
        )


def _encoder(config: SftConfig, model: LocalModel, tokenizer: Any, template: str | None) -> ChatEncoder | PlainEncoder:
    chat = config.chat
    encoder = ChatEncoder(
        tokenizer,
        template=template,
        system=chat.system,
        enable_thinking=chat.enable_thinking,
        loss_scale=chat.loss_scale,
        max_length=chat.max_length,
        truncation_strategy=chat.truncation_strategy,
        response_prefix=chat.response_prefix,
        stop_token_ids=_end_ids(model.directory),
    )
    return encoder if chat.use_chat_template else PlainEncoder(encoder, chat.system)


def _end_ids(directory: Path) -> list[int]:
    """The ids that end a reply, as generation_config.json has them."""
    path = directory / "generation_config.json"
    ids = read_json_object(path).get("eos_token_id") if path.is_file() else None
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _template(config: SftConfig, model: LocalModel, tokenizer: Any) -> tuple[SftConfig, str | None]:
    """The Jinja text to use, None for the tokenizer's own; a choice made here is kept in the config."""
    if not config.chat.use_chat_template:
        return config, None
    family = model.entry.template if model.entry else None
    choice = choose_template(config.chat.template, tokenizer.chat_template, family, model.path)
    if choice.fallback is not None:
        config = config.decide(f"the model has no chat template: {choice.why}", template=choice.fallback)
    return config, choice.text
