"""The rows of a run that classifies, embeds or ranks: read, split, encoded and counted as those of other runs are.

Promises: what the labels mean, and the options that follow from them, is decided here from all rows, and said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swift.config.commands import SftConfig
from swift.data.heads import HeadDataset, HeadEncoder, Labels, encode_heads, labels_of
from swift.data.load import load_rows
from swift.data.mask_view import Shown
from swift.data.prepare import Prepared, read_options
from swift.errors import UsageError


@dataclass(frozen=True)
class HeadPrepared(Prepared):
    """`Prepared` whose examples are groups of texts, all of them read and none learned."""

    def shown(self, n: int = 3) -> list[Shown]:
        found = []
        for i in range(min(n, len(self.train))):
            example = self.train[i]
            texts = tuple((self.encoder.decode(ids.tolist()) + "\n", False) for ids in example["texts"])
            tokens = sum(len(ids) for ids in example["texts"])
            label = () if example["label"] is None else ((f"-> {example['label']}", True),)
            found.append(Shown(self.source(example["row_id"]), tokens, 1, (*texts, *label)))
        return found


def prepare_heads(config: SftConfig, encoder: Any, check: bool) -> tuple[SftConfig, HeadPrepared]:
    """Read, split and encode the rows; the config with what their labels decide."""
    options = config.model
    data = read_options(config.data, config.training.seed)
    loaded = load_rows(data, use_hf=options.use_hf, hub_token=options.hub_token, need_response=False, check=check)
    labels = None
    if config.head.task_type == "seq_cls":
        head = config.head
        labels = labels_of(loaded.train, head.num_labels, head.problem_type, head.label_names)
        config = _with_labels(config, labels)
    head_encoder = HeadEncoder(
        encoder,
        config.head.task_type,
        labels=labels,
        loss=config.head.loss_type,
        max_length=config.chat.max_length,
        strategy=config.chat.truncation_strategy,
    )
    train = encode_heads(loaded.train, head_encoder, loaded.report, "train")
    val = encode_heads(loaded.val, head_encoder, loaded.report, "val") if len(loaded.val) else None
    _check_batches(config, train)
    prepared = HeadPrepared(train, val, loaded.val, loaded.report, loaded.place, head_encoder)
    return config, prepared


def _with_labels(config: SftConfig, labels: Labels) -> SftConfig:
    decided = {"num_labels": labels.count, "problem_type": labels.problem, "label_names": labels.names}
    decided = {name: value for name, value in decided.items() if config.value(name) != value}
    return config.decide("the rows' labels", **decided) if decided else config


def _check_batches(config: SftConfig, train: HeadDataset) -> None:
    """A query alone in its batch, without negatives, has nothing to be told from: its loss is 0 whatever it learns."""
    alone = config.training.per_device_train_batch_size == 1 and config.head.loss_type == "infonce"
    if alone and len(train) and not train.has_negatives:
        raise UsageError(
            "infonce sets each positive against the others of its batch, and a batch of 1 without negatives has none",
            where="--per_device_train_batch_size 1",
            fix="--per_device_train_batch_size 8 or more, or rows with negatives",
        )
