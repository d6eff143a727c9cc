"""The order of the rows in an epoch, and equal shares of it for several processes: rows that fill up the last batches
and count for nothing.

Promises: every row is computed once, by one process, and a step over several processes has the loss of one process
with the same rows. (accelerate would repeat rows instead, which then weigh twice.) A filler is a real row none of whose
tokens is a label, so a model sees only shapes that data has. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from swift.train.losses import IGNORED


class EpochOrder(Sampler[int]):
    """The rows' order in each epoch, from the seed and the epoch's number alone.

    Random order is the same as that of a plain Trainer with this seed. Grouping puts rows of like length (`lengths`,
    tokens) into one batch. Behind the rows come the numbers up to `places`: fillers.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        shuffle: bool,
        lengths: Sequence[int] | None = None,
        group: int = 1,
        places: int | None = None,
    ):
        self.count, self.seed, self.shuffle, self.lengths, self.group = count, seed, shuffle, lengths, group
        self.places = count if places is None else places
        self.epoch = 0

    def __len__(self) -> int:
        return self.places

    def __iter__(self) -> Iterator[int]:
        return chain(self._rows(), range(self.count, self.places))

    def _rows(self) -> Iterator[int]:
        if not self.shuffle:
            return iter(range(self.count))
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.lengths is not None:
            return iter(get_length_grouped_indices(self.lengths, self.group, generator=generator))
        return iter(torch.randperm(self.count, generator=generator).tolist())


class Filler(NamedTuple):
    """A row without labels, in place of one that isn't there."""

    row: Any


class Filled(Sequence[Any]):
    """`rows` (examples, or bins of examples), then fillers up to a whole multiple of `multiple`."""

    def __init__(self, rows: Sequence[Any], multiple: int):
        self.rows = rows
        self.places = -(-len(rows) // multiple) * multiple

    def __len__(self) -> int:
        return self.places

    def __getitem__(self, place: int) -> Any:
        if place < len(self.rows):
            return self.rows[place]
        if place >= self.places:
            raise IndexError(place)
        row = self.rows[_short(self.rows)]
        example = row if isinstance(row, Mapping) else row[0]
        example = {name: value for name, value in example.items() if name != "seen"}  # told with the row itself
        unlearned = {**example, "labels": [IGNORED] * len(example["labels"])} if "labels" in example else example
        return Filler(unlearned if isinstance(row, Mapping) else [unlearned])


def _short(rows: Sequence[Any]) -> int:
    """A short row, where lengths are known: a filler costs as much as it is long."""
    lengths = getattr(rows, "lengths", None)
    return 0 if lengths is None else int(np.argmin(lengths))


class WithoutFillers:
    """`collate` for batches with fillers: they are left out; of a batch of nothing else one stays, without row ids."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]):
        self.collate = collate

    def __call__(self, batch: list[Any]) -> dict[str, Any]:
        real = [row for row in batch if not isinstance(row, Filler)]
        if real:
            return self.collate(real)
        return {**self.collate([batch[0].row]), "row_ids": []}
