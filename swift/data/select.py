"""Which rows: samples, splits, repeats and order, all functions of a seed.

Promises: the same seed and numbers give the same choice on every machine (the generator is NumPy's frozen MT19937).
A row is never both trained on and evaluated on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Selection:
    """int64 arrays of positions below `size`: `train` may repeat rows, `val` never does."""

    train: np.ndarray
    val: np.ndarray

    @property
    def distinct(self) -> int:
        return len(np.unique(self.train)) + len(self.val)


def select(size: int, rows: int | None, val_ratio: float, shuffle: bool, rng: np.random.RandomState) -> Selection:
    """Choose `rows` of `size` (all when None; a sample, or the first ones without `shuffle`) and split off `val_ratio`.

    More rows than there are: every row once per full copy, and a sample for the rest. With a ratio above 0 at least one
    of two rows is split off.
    """
    wanted = size if rows is None else rows
    distinct = min(wanted, size)
    chosen = np.sort(rng.permutation(size)[:distinct]) if shuffle and distinct < size else np.arange(distinct)
    val_size = min(distinct, max(1, round(distinct * val_ratio))) if val_ratio > 0 and distinct > 1 else 0
    order = rng.permutation(distinct) if val_size else np.arange(distinct)
    val, base = np.sort(chosen[order[:val_size]]), np.sort(chosen[order[val_size:]])
    return Selection(_repeated(base, wanted - val_size, shuffle, rng), val)


def _repeated(base: np.ndarray, wanted: int, shuffle: bool, rng: np.random.RandomState) -> np.ndarray:
    if len(base) == 0 or wanted <= len(base):
        return base[: max(wanted, 0)]
    copies, rest = divmod(wanted, len(base))
    extra = base[np.sort(rng.permutation(len(base))[:rest])] if shuffle else base[:rest]
    return np.concatenate([base] * copies + [extra])


def interleave(
    parts: Sequence[np.ndarray], probabilities: Sequence[float], all_exhausted: bool, rng: np.random.RandomState
) -> list[np.ndarray]:
    """Draw rows from `parts` (none empty) by chance, each in its own order: [rows in order of use, the part of each].

    It ends when the part drawn has no row left; with `all_exhausted`, parts start again until each has been used up.
    """
    rows, origin = [], []
    taken = [0] * len(parts)
    left = set(range(len(parts)))
    while True:
        for k in rng.choice(len(parts), size=1024, p=probabilities).tolist():
            if taken[k] == len(parts[k]) and not all_exhausted:
                return [np.array(rows, np.int64), np.array(origin, np.int64)]
            rows.append(int(parts[k][taken[k] % len(parts[k])]))
            origin.append(k)
            taken[k] += 1
            if taken[k] == len(parts[k]):
                left.discard(k)
                if not left:
                    return [np.array(rows, np.int64), np.array(origin, np.int64)]
