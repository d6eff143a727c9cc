"""Packing: several examples in one row without padding, so that no computation is spent on padding.

Promises: every example is in exactly one bin, no bin holds more tokens than its capacity; a batch's position_ids start
at 0 with each example, which is how transformers (and flash attention, by cu_seq_lens) keeps examples from seeing each
other; no example is asked to predict the first token of the next. Knows nothing of models.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from swift.chat import IGNORED
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


class FlatCollator:
    """One row out of a whole batch, of examples (padding-free) or of bins of examples (packed).

    Returns input_ids, labels, position_ids: int64 [1, tokens]; loss_scale: float32 [1, tokens] when there are weights.
    No attention_mask: the resets of position_ids say where examples begin. With `flash`, also cu_seq_lens_q and _k:
    int32 [examples + 1], and max_length_q and _k: int. With `with_row_ids`, row_ids: list[int].
    """

    def __init__(self, *, flash: bool = False, with_row_ids: bool = False):
        self.flash, self.with_row_ids = flash, with_row_ids

    def __call__(self, batch: Sequence[Mapping[str, Any] | Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
        import torch

        examples = list(_flat(batch))
        sizes = [len(example["input_ids"]) for example in examples]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        labels = np.concatenate([example["labels"] for example in examples])
        labels[starts[:-1]] = IGNORED
        arrays = {
            "input_ids": np.concatenate([example["input_ids"] for example in examples]),
            "labels": labels,
            "position_ids": np.concatenate([np.arange(size) for size in sizes]),
        }
        if "loss_scale" in examples[0]:
            arrays["loss_scale"] = np.concatenate([example["loss_scale"] for example in examples])
        tensors: dict[str, Any] = {name: torch.from_numpy(values)[None] for name, values in arrays.items()}
        if self.flash:
            boundaries = torch.from_numpy(starts.astype(np.int32))
            tensors |= {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries}
            tensors |= {"max_length_q": max(sizes), "max_length_k": max(sizes)}
        if self.with_row_ids:
            tensors["row_ids"] = [example["row_id"] for example in examples]
        return tensors


def _flat(batch: Iterable[Any]) -> Iterable[Mapping[str, Any]]:
    for item in batch:
        if isinstance(item, Mapping):
            yield item
        else:
            yield from item
