"""`--streaming true` and `--lazy_tokenize true`: training rows that are encoded while training goes on.

Promises: before weights are loaded a sample is encoded, shown and judged; the order of a stream is fixed by its files,
options and seed, so a run that was killed goes on with the rows that would have come; what became of every row is
counted and reported at the end. Rows to evaluate on are always encoded ahead.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from swift.chat import ChatEncoder, Encoded
from swift.config.commands import SftConfig
from swift.data import EncodedDataset, Prepared, encode_rows, load_rows, prepare
from swift.data.cache import encoder_facts
from swift.data.encoded import Builder
from swift.data.ondemand import Example, Lazy, Streamed, bins, examples
from swift.data.plain import PlainEncoder
from swift.data.prepare import encode_split, read_options
from swift.data.read import file_format
from swift.data.report import DataReport
from swift.data.row_cache import digest_of
from swift.data.rows import Rows
from swift.data.seen import SeenCounts
from swift.data.sources import Found
from swift.data.stream import RowStream
from swift.errors import UsageError
from swift.hub.cache import cache_dir
from swift.train.rowwatch import RowWatch

SAMPLE = 256  # rows that are encoded before training
_EDGE = 1 << 20  # bytes at both ends of a file that tell whether it is still the same
_COUNTED = ("jsonl", "ndjson", "txt")  # formats whose rows are lines


@dataclass(frozen=True, kw_only=True)
class OnDemand(Prepared):
    """`Prepared` whose `train` is a sample; `items` is what is trained on, `key` its fingerprint."""

    items: Streamed | Lazy
    watch: RowWatch
    key: str

    def final_report(self, saved: list[dict[str, Any]]) -> DataReport:
        """The report with the rows that were trained on in place of the sample; `saved`: each process's counts."""
        self.watch.restore(*saved)
        found, counts = self.watch.report(), len(self.watch.counts.datasets)
        datasets = [*found.datasets, *self.report.datasets[counts:]]
        remarks = [remark for remark in self.report.remarks if remark != _SAMPLE_REMARK]
        splits = self.report.splits | found.splits
        return dataclasses.replace(self.report, datasets=datasets, splits=splits, remarks=remarks)

    def counted(self) -> OnDemand:
        """All rows encoded, one after the other, and counted: what training would see of them."""
        for item in self.items:
            for example in [item] if isinstance(item, dict) else item:
                self.watch.counts.add(example["seen"])
        return dataclasses.replace(self, report=self.final_report([self.watch.to_json()]))


_SAMPLE_REMARK = f"rows are encoded as training asks for them: the figures are of a sample of {SAMPLE}; see the end"


def wanted(config: SftConfig) -> bool:
    return config.supply.streaming or config.supply.lazy_tokenize


def prepare_on_demand(
    config: SftConfig, encoder: ChatEncoder | PlainEncoder, world_size: int, check: bool
) -> tuple[SftConfig, OnDemand]:
    """The rows of a run, unread (a stream) or read and not encoded; the config with the number of steps."""
    if config.supply.streaming:
        return _stream(config, encoder, world_size, check)
    return config, _lazy(config, encoder, world_size, check)


def _lazy(config: SftConfig, encoder: ChatEncoder | PlainEncoder, world_size: int, check: bool) -> OnDemand:
    options, training = config.model, config.training
    data = read_options(config.data, training.seed)
    cache = cache_dir("rows") if config.encoding.load_from_cache_file else None
    loaded = load_rows(data, use_hf=options.use_hf, hub_token=options.hub_token, check=check, cache=cache)
    report, rows = loaded.report, loaded.train
    chosen = np.linspace(0, len(rows), min(SAMPLE, len(rows)), endpoint=False, dtype=np.int64)
    sample = encode_rows(Rows(rows.store, rows.indices[chosen]), encoder, report=report, num_proc=1)
    val = encode_split(loaded.val, encoder, config.encoding, report, "val") if len(loaded.val) else None
    report.remarks.append(_SAMPLE_REMARK)
    report.expect_steps(
        training.per_device_train_batch_size,
        training.gradient_accumulation_steps or 1,
        training.num_train_epochs,
        world_size,
        training.max_steps,
        len(rows),
    )
    key = digest_of([rows.digest(), encoder_facts(encoder)]).hexdigest()
    watch = RowWatch(SeenCounts(), config.data.strict, config.data.max_drop_ratio)
    return OnDemand(
        train=sample,
        val=val,
        val_rows=loaded.val,
        report=report,
        source=loaded.place,
        encoder=encoder,
        items=Lazy(rows, encoder),
        watch=watch,
        key=key,
    )


def _stream(
    config: SftConfig, encoder: ChatEncoder | PlainEncoder, world_size: int, check: bool
) -> tuple[SftConfig, OnDemand]:
    options, training = config.model, config.training
    data = read_options(config.data, training.seed)
    stream = RowStream(data, config.supply.shuffle_buffer_size, use_hf=options.use_hf, hub_token=options.hub_token)
    per_step = training.per_device_train_batch_size * (training.gradient_accumulation_steps or 1) * world_size
    config = _with_steps(config, stream.found, per_step)
    capacity, seed = training.packing_length, training.seed

    def items():
        found = examples(stream, encoder)
        return bins(found, int(capacity or 0), seed) if training.packing else found

    counts, sample = SeenCounts(stream.counts()), list(islice(examples(stream, encoder), SAMPLE))
    for example in sample:
        counts.add(example["seen"])
    report = RowWatch(counts).report()
    held = prepare(
        dataclasses.replace(data, dataset=(), interleave_prob=(), split_dataset_ratio=0.0),
        encoder,
        seed=training.seed,
        encoding=config.encoding,
        use_hf=options.use_hf,
        hub_token=options.hub_token,
        check=check,
    )
    report.datasets = [*report.datasets, *held.report.datasets]
    report.splits |= {name: split for name, split in held.report.splits.items() if name == "val"}
    rows = "packed rows" if training.packing else "examples"
    steps = config.training.max_steps
    report.remarks += [*held.report.remarks, _SAMPLE_REMARK]
    report.remarks.append(f"a stream: {steps} steps of {per_step} {rows}, drawn from a buffer of {stream.buffer} rows")
    return config, OnDemand(
        train=_encoded(sample),
        val=held.val,
        val_rows=held.val_rows,
        report=report,
        source=stream.place,
        encoder=encoder,
        items=Streamed(items, steps * per_step),
        watch=RowWatch(SeenCounts(stream.counts()), data.strict, data.max_drop_ratio),
        key=_stream_key(stream, encoder, capacity if training.packing else None, seed),
    )


def _encoded(sample: list[Example]) -> EncodedDataset:
    builder = Builder()
    for one in sample:
        encoded = Encoded.of(one["input_ids"], one["labels"], one.get("loss_scale"), media=one.get("media"))
        builder.add([one["row_id"]], [encoded])
    return builder.finish()


def _stream_key(stream: RowStream, encoder: Any, packed: int | None, seed: int) -> str:
    """Changes with the files, their order, and whatever the order and the ids depend on."""
    files = [_file_facts(path) for found in stream.found for path in found.files]
    rest = [(found.columns, found.rows, found.is_identity) for found in stream.found]
    order = [stream.seed, stream.buffer, stream.probabilities, stream.to_the_last, packed, seed if packed else None]
    names = [identity.given for identity in stream.identities]
    return digest_of([files, repr(rest), order, names, encoder_facts(encoder)]).hexdigest()


def _file_facts(path: Path) -> list[Any]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read(_EDGE))
        file.seek(max(0, size - _EDGE))
        digest.update(file.read())
    return [path.name, size, digest.hexdigest()]


def _with_steps(config: SftConfig, found: list[Found], per_step: int) -> SftConfig:
    """The number of steps, from the number of rows where that can be told; UsageError where it can't."""
    training = config.training
    if training.max_steps > 0:
        return config
    why = _uncountable(config, found)
    if why is not None:
        raise UsageError(
            f"how many steps a stream is worth can't be told: {why}", where="--streaming true", fix="add --max_steps N"
        )
    rows = sum(_rows_in(one) for one in found)
    steps = max(1, math.ceil(training.num_train_epochs * rows / per_step))
    return config.decide(f"{training.num_train_epochs:g} x {rows} rows, {per_step} a step", max_steps=steps)


def _uncountable(config: SftConfig, found: list[Found]) -> str | None:
    if config.training.packing:
        return "rows are packed"
    if config.chat.truncation_strategy == "split":
        return "long rows become several (--truncation_strategy split)"
    if config.data.interleave_prob:
        return "data sets are mixed by chance (--interleave_prob)"
    for one in found:
        if one.rows is None and one.own is not None and one.own.make is not None:
            return "a plugin makes the rows"
        for path in one.files if one.rows is None else ():
            kind = file_format(path)
            if kind != "parquet" and (kind not in _COUNTED or path.suffix[1:].lower() != kind):
                return f"{path.name} would have to be read through"
    return None


def _rows_in(found: Found) -> int:
    """The rows of a data set: those wanted, or those that its files hold, broken ones included."""
    if found.rows is not None:
        return found.rows
    return sum(_parquet_rows(path) if file_format(path) == "parquet" else _lines(path) for path in found.files)


def _parquet_rows(path: Path) -> int:
    import pyarrow.parquet

    return pyarrow.parquet.read_metadata(path).num_rows


def _lines(path: Path) -> int:
    with open(path, "rb") as file:
        return sum(not line.isspace() for line in file)
