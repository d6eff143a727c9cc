"""The rows of a run, encoded: from the options of data and chat to what the trainer reads.

Promises: every row is accounted for in the printed report before any weight is loaded; the fingerprint changes when a token, a
label or the order of the training rows does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.config.commands import SftConfig
from swift.hub import LocalModel

log = logging.getLogger("swift")

OWN_TEMPLATE = "chatml"


@dataclass(frozen=True)
class Examples:
    """`train` and `val` are sequences of encoded rows, `collate` makes batches of them, `lengths` counts tokens per training
    row, `source(row_id)` is file:line."""

    train: Sequence[Any]
    val: Sequence[Any] | None
    collate: Callable[[list[Any]], dict[str, Any]]
    lengths: Sequence[int]
    fingerprint: str
    source: Callable[[int], str]
    save: Callable[[Path], None]


def prepare_examples(config: SftConfig, model: LocalModel, tokenizer: Any) -> tuple[SftConfig, Examples]:
    """Read, split and encode the rows; print what became of each. DataError when the report fails or nothing is left.

    Returns the config with the template that was chosen, so that the run's args.json holds it.
    """
    from swift.chat import ChatEncoder
    from swift.data import PadCollator, encode_rows, load_rows

    config, template = _template(config, model, tokenizer)
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
    )
    loaded = load_rows(config.data)
    raise NotImplementedError(encoder, loaded, PadCollator, encode_rows)


def _template(config: SftConfig, model: LocalModel, tokenizer: Any) -> tuple[SftConfig, str | None]:
    """The Jinja text to use, None for the tokenizer's own; a choice made here is said and kept in the config."""
    return config, None
