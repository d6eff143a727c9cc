"""From options to encoded rows: which encoder, which rows, and the report on both. Training, `swift data` and the
cached data sets of `swift export` all go this way, so that they see the same rows and ids.

Promises: every row is accounted for in the report; reads no weights; starts no process group.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.chat import ChatEncoder
from swift.config.chat import ChatOptions
from swift.config.data import DataOptions
from swift.data.cache import encode_cached, encoder_key
from swift.data.encode import encode_rows
from swift.data.encoded import EncodedDataset
from swift.data.load import Loaded, load_rows
from swift.data.mask_view import Shown, shown
from swift.data.plain import PlainEncoder
from swift.data.report import DataReport, SplitCount
from swift.data.rows import Rows
from swift.errors import DataError
from swift.hub.cache import cache_dir
from swift.hub.files import read_json_object

SHOWN = 3  # examples in a saved report


@dataclass(frozen=True)
class Prepared:
    """Rows and what they are encoded to; `val` is None without validation rows."""

    train: EncodedDataset
    val: EncodedDataset | None
    loaded: Loaded
    encoder: ChatEncoder | PlainEncoder

    @property
    def report(self) -> DataReport:
        return self.loaded.report

    @property
    def val_rows(self) -> Rows:
        return self.loaded.val

    def source(self, row_id: int) -> str:
        """file:line of an example's row."""
        return str(self.loaded.source(row_id))

    def shown(self, n: int = SHOWN) -> list[Shown]:
        """The first `n` training examples for the mask viewer."""
        return list(shown(self.train, n, self.encoder.decode, self.source))


def make_encoder(
    chat: ChatOptions, tokenizer: Any, template: str | None, directory: Path
) -> ChatEncoder | PlainEncoder:
    """The encoder of the options; `template`: Jinja, None for the tokenizer's own; `directory`: the model's."""
    encoder = ChatEncoder(
        tokenizer,
        template=template,
        system=chat.system,
        enable_thinking=chat.enable_thinking,
        loss_scale=chat.loss_scale,
        max_length=chat.max_length,
        truncation_strategy=chat.truncation_strategy,
        response_prefix=chat.response_prefix,
        stop_token_ids=_end_ids(directory),
    )
    return encoder if chat.use_chat_template else PlainEncoder(encoder, chat.system)


def _end_ids(directory: Path) -> list[int]:
    """The ids that end a reply, as generation_config.json has them."""
    path = directory / "generation_config.json"
    ids = read_json_object(path).get("eos_token_id") if path.is_file() else None
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def read_options(data: DataOptions, seed: int) -> DataOptions:
    """The options with `seed` as the seed of the data when they have none of their own."""
    return data if data.data_seed is not None else dataclasses.replace(data, data_seed=seed)


def prepare(
    data: DataOptions,
    encoder: ChatEncoder | PlainEncoder,
    *,
    seed: int,
    use_hf: bool = False,
    hub_token: str | None = None,
    check: bool = True,
) -> Prepared:
    """Read, split and encode the rows that the options name; `Prepared.report` says what became of each.

    DataError as `load_rows` raises it, with `check` also for the thresholds on dropped rows. Whether too many were lost
    in encoding is for the caller to check.
    """
    loaded = load_rows(read_options(data, seed), use_hf=use_hf, hub_token=hub_token, check=check)
    train = _encode(loaded.train, encoder, data, loaded.report, "train")
    val = _encode(loaded.val, encoder, data, loaded.report, "val") if len(loaded.val) else None
    return Prepared(train, val, loaded, encoder)


def _encode(
    rows: Rows, encoder: ChatEncoder | PlainEncoder, data: DataOptions, report: DataReport, split: str
) -> EncodedDataset:
    key = encoder_key(encoder) if data.load_from_cache_file else None
    if key is None:
        return encode_rows(rows, encoder, report=report, split=split, num_proc=data.dataset_num_proc)
    root = cache_dir("encoded")
    return encode_cached(rows, encoder, key, root, report=report, split=split, num_proc=data.dataset_num_proc)


def refuse_nothing(count: SplitCount, purpose: str, datasets: tuple[str, ...]) -> None:
    """DataError when no example is left of a split."""
    if count.examples == 0:
        why = f": {count.drops.first()}" if count.drops.total else ""
        raise DataError(
            f"no row is left to {purpose}{why}",
            where=f"--dataset {' '.join(datasets)}",
            fix="look at the report above; --max_length, --template and --columns decide what can be used",
        )
