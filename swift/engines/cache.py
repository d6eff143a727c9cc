"""Many requests in one key/value cache of transformers: right-aligned, every row's newest token in the same column.

Rows of different length are padded on the left, as `generate` pads prompts, so the model builds its masks (causal,
sliding window, chunked, recurrent) itself, and what holds for a left-padded batch of `generate` holds here. Keys and
values stand in buffers with room to spare: a step writes its column, a row that joins or leaves moves itself and no
other. A "column" is a place in the sequence dimension. Knows nothing of models or requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

SPARE_COLUMNS = 128


class RowsLayer(DynamicLayer):
    """`keys` and `values` are views, [rows, heads, columns, width], of the last columns written in the buffers."""

    window: int | None = None  # a sliding layer keeps so many columns

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new columns [rows, heads, new, width]; returns the keys and values that these may attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._start(key_states, value_states)
        new = key_states.shape[2]
        if self._end + new > self._keys.shape[2]:
            self._move(self._keys.shape[0], self._live + new + max(SPARE_COLUMNS, self._live // 2), self._live)
        places = slice(self._end, self._end + new)
        self._keys[: self._rows, :, places] = key_states
        self._values[: self._rows, :, places] = value_states
        self._end += new
        self._live += new
        seen = self._view(self._live)
        if self.window is not None:
            self._live = min(self._live, self.window)
        self.keys, self.values = self._view(self._live)
        return seen

    def _start(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self._rows, self._end, self._live = key_states.shape[0], 0, 0
        columns = key_states.shape[2] + SPARE_COLUMNS
        self._keys, self._values = (
            s.new_zeros(s.shape[0], s.shape[1], columns, s.shape[3]) for s in (key_states, value_states)
        )

    def _view(self, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        places = slice(self._end - columns, self._end)
        return self._keys[: self._rows, :, places], self._values[: self._rows, :, places]

    def _move(self, rows: int, columns: int, end: int) -> None:
        """Into buffers of this size, with the newest column before `end`; what isn't written there is zero, which a
        mask can hide (0 x NaN is NaN).
        """
        old = self._view(self._live)
        self._keys, self._values = (s.new_zeros(rows, s.shape[1], columns, s.shape[3]) for s in old)
        self._end = end
        for place, states in zip(self._view(self._live), old, strict=True):
            place.copy_(states)

    def take(self, other: RowsLayer) -> None:
        """Append the rows of another layer."""
        rows, live = self._rows + other._rows, max(self._live, other._live)
        if rows > self._keys.shape[0] or live > self._end:
            spare = max(SPARE_COLUMNS, live // 2)
            room = max(rows, 2 * self._rows) if rows > self._keys.shape[0] else self._keys.shape[0]
            self._move(room, live + spare, live)
        else:
            for states in (self._keys, self._values):
                states[: self._rows, :, self._end - live : self._end - self._live] = 0
                states[self._rows : rows, :, self._end - live : self._end - other._live] = 0
        first, self._rows, self._live = self._rows, rows, live
        for states, more in zip((self._keys, self._values), other._view(other._live), strict=True):
            states[first:rows, :, self._end - other._live : self._end] = more
        self.keys, self.values = self._view(live)

    def leave(self, order: Sequence[int], columns: int) -> None:
        """Row i becomes what row order[i] was; the rest is dropped, as are all but the last columns."""
        self._live = min(self._live, columns)
        for place, row in enumerate(order):
            if place != row:
                for states in self._view(self._live):
                    states[place] = states[row]
        self._rows = len(order)
        if self._keys.shape[0] > 4 * self._rows:
            self._move(self._rows, self._live + SPARE_COLUMNS, self._live)
        self.keys, self.values = self._view(self._live)


class SlidingRowsLayer(RowsLayer, DynamicSlidingWindowLayer):
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.window = self.sliding_window - 1
        self.cumulative_length += key_states.shape[2]
        return RowsLayer.update(self, key_states, value_states)

    def seen(self, columns: int) -> None:
        self.cumulative_length = columns


class HybridRowsLayer(LinearAttentionAndFullAttentionLayer, RowsLayer):
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return RowsLayer.update(self, key_states, value_states)


class HybridSlidingRowsLayer(LinearAttentionAndSlidingWindowAttentionLayer, SlidingRowsLayer):
    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return SlidingRowsLayer.update(self, key_states, value_states)


# The layers of transformers whose whole state is keys and values by column, or a recurrent state by row: those can be
# moved by row. Exact types, as a subclass may hold more than we know to move.
OURS = {
    DynamicLayer: RowsLayer,
    DynamicSlidingWindowLayer: SlidingRowsLayer,
    LinearAttentionAndFullAttentionLayer: HybridRowsLayer,
    LinearAttentionAndSlidingWindowAttentionLayer: HybridSlidingRowsLayer,
    LinearAttentionLayer: LinearAttentionLayer,
    DummyLayer: DummyLayer,
}
BY_COLUMN = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)


def new_cache(config: object) -> DynamicCache:
    """The cache that transformers makes for a model, its layers replaced by ours where all of them are known."""
    cache = DynamicCache(config=config)
    if can_batch(cache):
        for layer in cache.layers:
            layer.__class__ = OURS[type(layer)]
    return cache


def can_batch(cache: Cache) -> bool:
    """Whether rows can join and leave the cache that transformers made."""
    return all(type(layer) in OURS for layer in cache.layers)


def can_pad(cache: Cache) -> bool:
    """Whether prompts can be prefilled side by side with padding, or in chunks: only when every state is by column."""
    return all(type(layer) in BY_COLUMN for layer in cache.layers)


def is_recurrent(cache: Cache) -> bool:
    """Whether no state is by column: then rows have no places that could be moved."""
    return all(type(layer) in (LinearAttentionLayer, DummyLayer) for layer in cache.layers)


def join(cache: Cache, other: Cache, columns: int) -> None:
    """Append the rows of `other` to `cache`, which then has seen `columns` columns."""
    for layer, newcomer in zip(cache.layers, other.layers, strict=True):
        if isinstance(layer, RowsLayer) and layer.is_initialized:
            layer.take(newcomer)
        if isinstance(layer, SlidingRowsLayer):
            layer.seen(columns)
        if isinstance(layer, LinearAttentionLayer):
            for states, more in (
                (layer.conv_states, newcomer.conv_states),
                (layer.recurrent_states, newcomer.recurrent_states),
            ):
                for i, state in states.items():
                    if state is not None:
                        states[i] = torch.cat([state, more[i]])


def keep(cache: Cache, order: Sequence[int], columns: int) -> None:
    """Row i becomes what row order[i] was; all others and all but the last `columns` columns are dropped."""
    for layer in cache.layers:
        if isinstance(layer, RowsLayer) and layer.is_initialized:
            layer.leave(order, columns)
        if isinstance(layer, SlidingRowsLayer):
            layer.seen(columns)
        if isinstance(layer, LinearAttentionLayer):
            for states in (layer.conv_states, layer.recurrent_states):
                for i, state in states.items():
                    if state is not None:
                        states[i] = state[list(order)]


def bytes_per_column(cache: Cache) -> int:
    """What one token of one row takes in layers that keep every column."""
    layers = [layer for layer in cache.layers if isinstance(layer, RowsLayer) and layer.is_initialized]
    full = [layer for layer in layers if layer.window is None]
    return sum(s.shape[1] * s.shape[3] * s.element_size() for layer in full for s in (layer.keys, layer.values))


def closing_ranks(kept: Sequence[int]) -> list[int]:
    """An order of the kept rows in which as few as possible change places: the last ones fill the gaps."""
    staying = {row for row in kept if row < len(kept)}
    movers = iter(row for row in kept if row >= len(kept))
    return [place if place in staying else next(movers) for place in range(len(kept))]
