"""From options to encoded rows: which encoder, which rows, and the report on both. Training, `swift data` and the
cached data sets of `swift export` all go this way, so that they see the same rows and ids.

Promises: every row is accounted for in the report; reads no weights; starts no process group.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from swift.chat import ChatEncoder
from swift.chat.processing import Processing
from swift.chat.template import check_variables, choose_template
from swift.config.chat import ChatOptions
from swift.config.commands import ExportConfig, SftConfig
from swift.config.data import DataOptions, EncodingOptions, SupplyOptions
from swift.data.cache import encode_cached, encoder_facts, encoder_key
from swift.data.cached import SPLITS, CachedSplit, check_facts, find_split, open_split
from swift.data.encode import encode_rows
from swift.data.encoded import EncodedDataset
from swift.data.load import Loaded, load_rows
from swift.data.mask_view import Shown, shown
from swift.data.pack import PackedDataset
from swift.data.plain import PlainEncoder
from swift.data.report import DataReport, SplitCount
from swift.data.rows import Rows
from swift.errors import DataError
from swift.hub import LocalModel
from swift.hub.cache import cache_dir
from swift.hub.files import read_json_object

C = TypeVar("C", SftConfig, ExportConfig)
NO_SUPPLY = SupplyOptions()
SHOWN = 3  # examples in a saved report


@dataclass(frozen=True)
class Prepared:
    """Encoded rows; `val` is None without validation rows. `val_rows`: those of them that were read in this run.
    `source(row_id)`: file:line of a training example's row. `packed`: the training examples in bins, with --packing.
    """

    train: EncodedDataset
    val: EncodedDataset | None
    val_rows: Rows
    report: DataReport
    source: Callable[[int], str]
    encoder: ChatEncoder | PlainEncoder
    packed: PackedDataset | None = None

    def shown(self, n: int = SHOWN) -> list[Shown]:
        """The first `n` training examples for the mask viewer."""
        return list(shown(self.train, n, self.encoder.decode, self.source))


def make_encoder(
    chat: ChatOptions,
    tokenizer: Any,
    template: str | None,
    directory: Path,
    processing: Processing | None = None,
) -> ChatEncoder | PlainEncoder:
    """The encoder of the options; `template`: Jinja, None for the tokenizer's own; `directory`: the model's;
    `processing`: what makes tensors of rows with media."""
    encoder = ChatEncoder(
        tokenizer,
        template=template,
        system=chat.system,
        enable_thinking=chat.enable_thinking,
        preserve_thinking=chat.preserve_thinking,
        add_non_thinking_prefix=chat.add_non_thinking_prefix,
        template_kwargs=chat.template_kwargs,
        loss_scale=chat.loss_scale,
        max_length=chat.max_length,
        truncation_strategy=chat.truncation_strategy,
        response_prefix=chat.response_prefix,
        stop_token_ids=_end_ids(directory),
        processor=processing,
    )
    if not chat.use_chat_template:
        return PlainEncoder(encoder, chat.system)
    check_variables(chat, template or (tokenizer.get_chat_template() if tokenizer.chat_template else None))
    return encoder


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
    encoding: EncodingOptions,
    supply: SupplyOptions = NO_SUPPLY,
    use_hf: bool = False,
    hub_token: str | None = None,
    check: bool = True,
) -> Prepared:
    """Read, split and encode the rows that the options name, behind those of cached data sets; `Prepared.report` says
    what became of each.

    DataError as `load_rows` raises it, with `check` also for the thresholds on dropped rows. Whether too many were lost
    in encoding is for the caller to check.
    """
    loaded = _nothing()
    if data.dataset or data.val_dataset:
        cache = cache_dir("rows") if encoding.load_from_cache_file else None
        options = read_options(data, seed)
        loaded = load_rows(options, use_hf=use_hf, hub_token=hub_token, check=check, cache=cache)
    report = loaded.report
    cached = {split: _cached(supply, split, encoder) for split in SPLITS}
    sources: list[tuple[int, Callable[[int], object]]] = []  # (first row id, its place)
    encoded = {}
    for split, rows in zip(SPLITS, (loaded.train, loaded.val), strict=True):
        parts, counts, offsets = [c.encoded for c in cached[split]], [c.count for c in cached[split]], [0]
        offsets += np.cumsum([c.rows for c in cached[split]]).tolist()
        if split == "train":
            sources = [(offset, c.source) for offset, c in zip(offsets, cached[split], strict=False)]
            sources.append((offsets[-1], loaded.source))
        if len(rows):
            parts.append(encode_split(rows, encoder, encoding, report, split))
            counts.append(report.split(split))
        if parts:
            encoded[split] = parts[0] if len(parts) == 1 else EncodedDataset.joined(parts, offsets)
            report.splits[split] = SplitCount.joined(split, counts)
        report.datasets += [c.dataset_count(as_val=split == "val") for c in cached[split]]

    def source(row_id: int) -> str:
        first, place = sources[bisect_right(sources, row_id, key=lambda pair: pair[0]) - 1]
        return str(place(row_id - first))

    train = encoded.get("train") or EncodedDataset.joined([], [])
    return Prepared(train, encoded.get("val"), loaded.val, report, source, encoder)


def _nothing() -> Loaded:
    return Loaded(Rows.of([]), Rows.of([]), DataReport())


def _cached(supply: SupplyOptions, split: str, encoder: ChatEncoder | PlainEncoder) -> list[CachedSplit]:
    """The cached data sets of a split, encoded as this run would."""
    found = []
    for name in supply.cached_dataset if split == "train" else supply.cached_val_dataset:
        directory = find_split(name, split)
        if directory is None:
            other = f"it holds no {split} rows"
            raise DataError(other, where=name, fix="leave it out, or export it with --split_dataset_ratio")
        found.append(open_split(directory, split))
        check_facts(found[-1], encoder_facts(encoder))
    return found


def encode_split(
    rows: Rows, encoder: ChatEncoder | PlainEncoder, options: EncodingOptions, report: DataReport, split: str
) -> EncodedDataset:
    """Encode the rows of one split, or read them from the cache; they are counted in `report.split(split)`."""
    # whether media can be read is seen anew in each run
    key = encoder_key(encoder) if options.load_from_cache_file and not rows.store.has_media else None
    if key is None:
        return encode_rows(rows, encoder, report=report, split=split, num_proc=options.dataset_num_proc)
    root = cache_dir("encoded")
    return encode_cached(rows, encoder, key, root, report=report, split=split, num_proc=options.dataset_num_proc)


def use_template(config: C, model: LocalModel, tokenizer: Any) -> tuple[C, str | None]:
    """The Jinja text to use, None for the tokenizer's own; a choice made here is kept in the config, and the text in
    the tokenizer, so that one saved with the weights carries what they were trained with."""
    if not config.chat.use_chat_template:
        return config, None
    family = model.entry.template if model.entry else None
    choice = choose_template(config.chat.template, tokenizer.chat_template, family, model.path)
    if choice.fallback is not None:
        config = config.decide(f"the model has no chat template: {choice.why}", template=choice.fallback)
    if choice.text is not None:
        tokenizer.chat_template = choice.text
    return config, choice.text


def refuse_nothing(count: SplitCount, purpose: str, datasets: tuple[str, ...]) -> None:
    """DataError when no example is left of a split."""
    if count.examples == 0:
        why = f": {count.drops.first()}" if count.drops.total else ""
        raise DataError(
            f"no row is left to {purpose}{why}",
            where=f"--dataset {' '.join(datasets)}",
            fix="look at the report above; --max_length, --template and --columns decide what can be used",
        )
