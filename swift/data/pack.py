"""Packing: several examples in one row without padding, so that every batch holds about as many tokens.

Promises: every example is in exactly one bin, whole; no bin holds more tokens than its capacity. Keeping a bin's
examples from seeing each other is the fast path's business (swift.train.lean), which lays a batch's rows one behind the
other anyway; where it is off, a bin is a padded batch of its examples. Knows nothing of models.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from swift.data.encoded import EncodedDataset
from swift.errors import DataError


def best_fit_bins(lengths: Sequence[int] | np.ndarray, capacity: int, seed: int = 0) -> list[list[int]]:
    """Best-fit decreasing: positions grouped so that each group's lengths add up to at most `capacity`.

    The longest first, each into the fullest bin that still has room. The seed decides among equals. DataError when a
    length is above the capacity.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > capacity:
        what = f"an example of {lengths.max()} tokens doesn't fit into packed rows of {capacity}"
        raise DataError(what, where="--packing_length", fix=f"set it to {lengths.max()}, or lower --max_length")
    mixed = np.random.RandomState(seed).permutation(len(lengths))
    order = mixed[np.argsort(-lengths[mixed], kind="stable")]
    bins: list[list[int]] = []
    rooms: list[int] = []  # the distinct free spaces, ascending
    with_room: dict[int, list[int]] = {}  # free space -> its bins
    for i in order.tolist():
        length = int(lengths[i])
        at = bisect_left(rooms, length)
        if at == len(rooms):
            number, room = len(bins), capacity
            bins.append([])
        else:
            room = rooms[at]
            number = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        bins[number].append(i)
        left = room - length
        if left:
            if left not in with_room:
                insort(rooms, left)
                with_room[left] = []
            with_room[left].append(number)
    return bins


class PackedDataset(Sequence[list[dict[str, Any]]]):
    """Bins of an encoded data set: item i is the list of bin i's examples. `lengths`: int64 [bins], tokens in each."""

    def __init__(self, encoded: EncodedDataset, capacity: int, seed: int = 0):
        self.encoded, self.capacity = encoded, capacity
        self.bins = best_fit_bins(encoded.lengths, capacity, seed)
        self.lengths: np.ndarray = np.array([encoded.lengths[group].sum() for group in self.bins], np.int64)

    def __len__(self) -> int:
        return len(self.bins)

    def __getitem__(self, i: int) -> list[dict[str, Any]]:
        return [self.encoded[j] for j in self.bins[i]]

    def describe(self) -> str:
        """One line for the data report."""
        tokens = int(self.lengths.sum())
        share = tokens / max(1, len(self) * self.capacity)
        return f"{len(self.encoded)} examples packed into {len(self)} rows of {self.capacity} tokens, {share:.1%} full"


class OpenBins:
    """`collate` for batches of bins: it gets their examples. An example that is in no bin passes (validation rows)."""

    def __init__(self, collate: Callable[[list[Any]], dict[str, Any]]):
        self.collate = collate

    def __call__(self, batch: Sequence[Mapping[str, Any] | Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        return self.collate([example for item in batch for example in examples_of(item)])


def examples_of(item: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The examples of a bin, or the one that it is itself."""
    return [item] if isinstance(item, Mapping) else item
