"""The rows that quantization learns from and those it is judged by: chat rows through the encoding of the training.

Promises: a row that calibrates is never one that judges; without a row the answer is an error, not a quantization
without calibration.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from swift.chat import ChatEncoder
from swift.chat.processing import Processing
from swift.chat.template import check_variables, choose_template
from swift.config.commands import ExportConfig
from swift.errors import DataError, TemplateError, UsageError
from swift.export.texts import TEXTS
from swift.hub import LocalModel, ModelFiles

log = logging.getLogger("swift")

HELD_OUT_TOKENS, HELD_OUT_LENGTH = 2048, 512  # what models are compared on, in all and for one row at most
FEW_TOKENS = 512  # fewer than these are no measure: the built-in text is added


@dataclass(frozen=True)
class Rows:
    """`samples` [rows, tokens] calibrate (None where the method needs none), `held_out` are ids to compare on."""

    samples: torch.Tensor | None
    held_out: tuple[tuple[int, ...], ...]
    held_out_from: str


def gather(
    config: ExportConfig, model: LocalModel, files: ModelFiles, tokenizer: Any, needs_samples: bool, tokens: int
) -> Rows:
    """The rows of --dataset and --val_dataset, encoded; calibration rows are joined and cut to `tokens` each.

    UsageError or DataError when rows are needed and there are none.
    """
    data = config.data
    if needs_samples and not data.dataset:
        fix = "add --dataset FILE_OR_NAME#500, rows like those that the model will see"
        raise UsageError("no calibration rows", where="--dataset", fix=fix)
    encode = _encoder(config, model, files, tokenizer)
    train: list[list[int]] = []
    val: list[list[int]] = []
    if data.dataset or data.val_dataset:
        from swift.data.load import load_rows

        loaded = load_rows(data, use_hf=config.model.use_hf, hub_token=config.model.hub_token)
        wanted = (
            (config.export.quant_n_samples or 0) * tokens + 2 * HELD_OUT_TOKENS if needs_samples else HELD_OUT_TOKENS
        )
        train = list(_until(encode(loaded.train), wanted))
        val = list(_until(encode(loaded.val), HELD_OUT_TOKENS))
    samples = None
    if needs_samples:
        samples, used = _join(train, config.export.quant_n_samples, tokens)
        train = train[used:]
    held_out = val or train
    named = "--val_dataset" if val else "rows of --dataset that weren't calibrated on"
    if sum(map(len, held_out)) < FEW_TOKENS:
        named = f"{named} and the built-in text" if held_out else "the built-in text"
        held_out = held_out + [tokenizer(text)["input_ids"] for text in TEXTS]
    return Rows(samples, _cut(held_out), named)


def chat_encoder(
    config: ExportConfig, model: LocalModel, files: ModelFiles, tokenizer: Any, processor: Processing | None = None
) -> tuple[ChatEncoder, str | None]:
    """The encoder of the options, without a limit of length (`processor` is for rows with media), and the Jinja text of
    its template (None: the tokenizer's own)."""
    chat = config.chat
    family = model.entry.template if model.entry else None
    template = choose_template(chat.template, tokenizer.chat_template, family, files.path).text
    check_variables(chat, template or (tokenizer.get_chat_template() if tokenizer.chat_template else None))
    encoder = ChatEncoder(
        tokenizer,
        template=template,
        system=chat.system,
        enable_thinking=chat.enable_thinking,
        preserve_thinking=chat.preserve_thinking,
        template_kwargs=chat.template_kwargs,
        processor=processor,
    )
    return encoder, template


def _encoder(config: ExportConfig, model: LocalModel, files: ModelFiles, tokenizer: Any):
    """A function from rows to their ids, those left out that can't be encoded."""
    if not config.chat.use_chat_template:

        def plain(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[int]]:
            for row in rows:
                yield tokenizer("".join(str(message["content"]) for message in row["messages"]))["input_ids"]

        return plain
    encoder, _ = chat_encoder(config, model, files, tokenizer)

    def through_template(rows: Sequence[Mapping[str, Any]]) -> Iterator[list[int]]:
        for row in rows:
            try:
                for part in encoder.encode_parts(row):
                    yield part.input_ids
            except (TemplateError, DataError) as error:
                log.warning("a row is left out: %s", error.what)

    return through_template


def _until(encoded: Iterator[list[int]], tokens: int) -> Iterator[list[int]]:
    count = 0
    for ids in encoded:
        yield ids
        count += len(ids)
        if count >= tokens:
            return


def _join(rows: list[list[int]], count: int, tokens: int) -> tuple[torch.Tensor, int]:
    """(the rows one after the other, cut to [count, tokens]; how many rows that took).

    With fewer tokens than that there are fewer samples, and it is said.
    """
    joined: list[int] = []
    used = 0
    # rows to judge by come first when there are too few for both
    spare = 0 if len(rows) < 4 else max(1, len(rows) // 8)
    for ids in rows[: len(rows) - spare]:
        if len(joined) >= count * tokens:
            break
        joined += ids
        used += 1
    full = len(joined) // tokens
    if full == 0:
        if len(joined) < 16:
            raise DataError("too little text to calibrate on", where="--dataset", fix="add rows")
        log.warning("the rows give only %d tokens to calibrate on, %d were asked for", len(joined), count * tokens)
        return torch.tensor([joined]), used
    if full < count:
        log.warning("the rows give %d calibration samples of %d tokens, %d were asked for", full, tokens, count)
    full = min(full, count)
    return torch.tensor(joined[: full * tokens]).view(full, tokens), used


def _cut(rows: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    found: list[tuple[int, ...]] = []
    left = HELD_OUT_TOKENS
    for ids in rows:
        part = tuple(ids[: min(HELD_OUT_LENGTH, left)])
        if len(part) < 2:
            continue
        found.append(part)
        left -= len(part)
        if left < 2:
            break
    return tuple(found)
