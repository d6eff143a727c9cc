"""Many requests in one key/value cache of transformers: right-aligned, every row's newest token in the same column.

Rows of different length are padded on the left, as `generate` pads prompts, so the model builds its masks (causal,
sliding window, chunked, recurrent) itself, and what holds for a left-padded batch of `generate` holds here. Rows join
and leave between steps. A "column" is a place in the sequence dimension; `columns` is how many the cache has seen.
Knows nothing of models or requests.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

# The layers whose whole state is keys and values by column, or a recurrent state by row: those can be cut and joined
# by row.
ATTENTION = (DynamicLayer, DynamicSlidingWindowLayer)
HYBRID = (LinearAttentionAndFullAttentionLayer, LinearAttentionAndSlidingWindowAttentionLayer)
BY_ROW = (*ATTENTION, *HYBRID, LinearAttentionLayer, DummyLayer)


def can_batch(cache: Cache) -> bool:
    """Whether rows can join and leave this cache: exact types, as a subclass may hold more than we know to move."""
    return all(type(layer) in BY_ROW for layer in cache.layers)


def can_pad(cache: Cache) -> bool:
    """Whether prompts can be prefilled side by side with padding, or in chunks: only when every state is by column."""
    return all(type(layer) in (*ATTENTION, DummyLayer) for layer in cache.layers)


def is_recurrent(cache: Cache) -> bool:
    """Whether no state is by column: then rows have no places that could be moved."""
    return all(type(layer) in (LinearAttentionLayer, DummyLayer) for layer in cache.layers)


def join(cache: Cache, other: Cache, columns: int, other_columns: int) -> None:
    """Append the rows of `other` to `cache`, which then has the larger number of columns."""
    most = max(columns, other_columns)
    for layer, newcomer in zip(cache.layers, other.layers, strict=True):
        if isinstance(layer, DynamicLayer) and layer.is_initialized:
            kept = _kept_columns(layer, most)
            layer.keys = torch.cat([_align(layer.keys, kept), _align(newcomer.keys, kept)])
            layer.values = torch.cat([_align(layer.values, kept), _align(newcomer.values, kept)])
            _set_columns(layer, most)
        if isinstance(layer, LinearAttentionLayer):
            for states, more in (
                (layer.conv_states, newcomer.conv_states),
                (layer.recurrent_states, newcomer.recurrent_states),
            ):
                for i, state in states.items():
                    if state is not None:
                        states[i] = torch.cat([state, more[i]])


def keep(cache: Cache, rows: torch.Tensor, columns: int) -> None:
    """Keep only these rows (int64 [n]) and the last `columns` columns."""
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer) and layer.is_initialized:
            kept = _kept_columns(layer, columns)
            layer.keys = layer.keys[:, :, max(layer.keys.shape[2] - kept, 0) :].index_select(0, rows)
            layer.values = layer.values[:, :, max(layer.values.shape[2] - kept, 0) :].index_select(0, rows)
            _set_columns(layer, columns)
        if isinstance(layer, LinearAttentionLayer):
            for states in (layer.conv_states, layer.recurrent_states):
                for i, state in states.items():
                    if state is not None:
                        states[i] = state.index_select(0, rows)


def _kept_columns(layer: DynamicLayer, columns: int) -> int:
    if isinstance(layer, DynamicSlidingWindowLayer):
        return min(columns, layer.sliding_window - 1)
    return columns


def _set_columns(layer: DynamicLayer, columns: int) -> None:
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length = columns


def _align(states: torch.Tensor, columns: int) -> torch.Tensor:
    """[rows, heads, columns, width] cut or zero-padded on the left to so many columns."""
    missing = columns - states.shape[2]
    return F.pad(states, (0, 0, missing, 0)) if missing >= 0 else states[:, :, -missing:]
