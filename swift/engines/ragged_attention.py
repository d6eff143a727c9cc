"""Attention of many rows of different length whose new tokens stand side by side in one row of a transformers model.

The model calls it as it calls `sdpa`; the keys and values of each row lie in `Strip`s and `Pool`s. Promises: every row
attends to its own tokens and nothing else; scores and sums are accumulated in float32. Rows that add one token each
are computed together by size, the query heads of a key head side by side, so that no key is repeated or copied.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache

NAME = "swift_ragged"
Layers = dict[int, tuple[torch.Tensor, torch.Tensor]]


class NotRagged(Exception):
    """The model does something in its attention that isn't known here."""


class Strip:
    """Keys and values of one row: per layer [heads, columns, width]. The first `done` columns are written."""

    def __init__(self, columns: int):
        self.columns, self.done = columns, 0
        self.layers: Layers = {}

    def write(self, layer: int, start: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        if layer not in self.layers:
            self.layers[layer] = _empty(keys, self.columns), _empty(values, self.columns)
        for states, new in zip(self.layers[layer], (keys, values), strict=True):
            states[:, start : start + new.shape[1]] = new

    def take(self, other: Strip, columns: int) -> None:
        """Begin with the first `columns` of another strip."""
        for layer, (keys, values) in other.layers.items():
            self.write(layer, 0, keys[:, :columns], values[:, :columns])
        self.done = columns


def _empty(like: torch.Tensor, columns: int) -> torch.Tensor:
    return like.new_zeros(like.shape[0], columns, like.shape[2])


class Pool:
    """Keys and values of rows that add a token at every step: per layer [rows, heads, columns, width]. Row i belongs to
    the i-th member; whoever keeps the members calls `insert` and `remove` accordingly. On a CPU they are float32
    whatever the model's type: that is faster there than bfloat16, and exact.
    """

    def __init__(self, columns: int):
        self.columns, self.rows = columns, 0
        self.layers: Layers = {}

    def insert(self, layers: Layers, done: int) -> None:
        """Append a row with these keys and values, [heads, columns, width] each; `done` columns count."""
        for layer, pair in layers.items():
            if layer not in self.layers:
                self.layers[layer] = _rows(pair[0], 0, self.columns), _rows(pair[1], 0, self.columns)
            if self.rows == self.layers[layer][0].shape[0]:
                self.layers[layer] = _grown(self.layers[layer][0]), _grown(self.layers[layer][1])
            for states, new in zip(self.layers[layer], pair, strict=True):
                states[self.rows, :, :done] = new[:, :done]
                states[self.rows, :, done:] = 0  # what stood here may not be a number, which no mask hides
        self.rows += 1

    def remove(self, row: int) -> None:
        """The last row takes the place of this one."""
        last = self.rows - 1
        for pair in self.layers.values():
            for states in pair:
                if row != last:
                    states[row] = states[last]
        self.rows = last
        if self.layers and self.rows * 4 < next(iter(self.layers.values()))[0].shape[0]:
            self.layers = {i: (k[: 2 * last].clone(), v[: 2 * last].clone()) for i, (k, v) in self.layers.items()}

    def row(self, row: int) -> Layers:
        return {layer: (keys[row], values[row]) for layer, (keys, values) in self.layers.items()}


def _rows(like: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    dtype = torch.float32 if like.device.type == "cpu" else like.dtype
    return like.new_zeros(rows, like.shape[0], columns, like.shape[2], dtype=dtype)


def _grown(states: torch.Tensor) -> torch.Tensor:
    more = max(2, states.shape[0])
    return torch.cat([states, states.new_zeros(more, *states.shape[1:])])


@dataclass
class Steps:
    """The rows of a pool: one new token each, in the columns `places`, from token `begin` of the model's row on."""

    pool: Pool
    begin: int
    places: torch.Tensor
    shortest: int
    longest: int
    masks: dict[Any, torch.Tensor | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.index = torch.arange(self.pool.rows, device=self.places.device)

    def mask(self, window: int | None, first: int, like: torch.Tensor) -> torch.Tensor | None:
        """Additive, [rows, 1, 1, columns from `first` on]; None where every column counts for every row."""
        key = (window, like.dtype)
        if key not in self.masks:
            columns = torch.arange(first, self.longest + 1, device=like.device)
            hidden = columns[None] > self.places[:, None]
            if window is not None:
                hidden |= columns[None] <= self.places[:, None] - window
            if bool(hidden.any()):
                mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
                self.masks[key] = mask.masked_fill_(hidden, -torch.inf)[:, None, None]
            else:
                self.masks[key] = None
        return self.masks[key]


@dataclass
class Piece:
    """A piece of a prompt: `count` tokens from `begin` on, which are the columns of `strip` from `start` on."""

    strip: Strip
    begin: int
    start: int
    count: int


class RaggedCache(Cache):
    """What the model takes for its cache during one forward pass. What is filed, by row, are the keys and values that
    its attention gets afterwards: those of multi-head latent attention come to the cache compressed.
    """

    def __init__(self, steps: Sequence[Steps], pieces: Sequence[Piece], windows: Sequence[int | None]):
        super().__init__(layers=[])
        self.steps, self.pieces, self.windows = steps, pieces, windows
        self.layer: int | None = None  # whose keys came last

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.layer = layer_idx
        return key_states, value_states

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """keys, values: [tokens, heads, width]"""
        for part in self.steps:
            rows = slice(part.begin, part.begin + part.pool.rows)
            for states, new in zip(part.pool.layers[layer], (keys, values), strict=True):
                states[part.index, :, part.places] = new[rows].to(states.dtype)
        for piece in self.pieces:
            part = slice(piece.begin, piece.begin + piece.count)
            piece.strip.write(layer, piece.start, keys[part].transpose(0, 1), values[part].transpose(0, 1))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def attend(
        self, layer: int, query: torch.Tensor, scale: float, softcap: Any, sinks: Any, window: int | None
    ) -> torch.Tensor:
        """query: [tokens, heads, width]; returns [tokens, heads, value width]."""
        if window != self.windows[layer]:
            raise NotRagged("attention with another window than its cache")
        places = [slice(part.begin, part.begin + part.pool.rows) for part in self.steps]
        found = [
            self._step(part, layer, query[rows], scale, softcap, sinks, window)
            for part, rows in zip(self.steps, places, strict=True)
        ]
        for piece in self.pieces:
            places.append(slice(piece.begin, piece.begin + piece.count))
            found.append(self._piece(piece, layer, query[places[-1]], scale, softcap, sinks, window))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _step(self, part: Steps, layer: int, query: Any, scale: Any, softcap: Any, sinks: Any, window: Any) -> Any:
        """query: [rows, heads, width], as the result."""
        rows = part.pool.rows
        keys, values = part.pool.layers[layer]
        first = 0 if window is None else max(0, part.shortest - window + 1)
        keys, values = (s[:rows, :, first : part.longest + 1] for s in (keys, values))
        grouped = query.to(keys.dtype).reshape(rows, keys.shape[1], -1, query.shape[-1])  # by key head
        mask = part.mask(window, first, keys)
        if softcap is None and sinks is None:
            found = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=scale)
        else:
            if sinks is not None:
                sinks = sinks.view(1, keys.shape[1], -1, 1)
            found = _by_hand(grouped, keys, values, mask, scale, softcap, sinks)
        return found.reshape(rows, query.shape[1], -1).to(query.dtype)

    def _piece(self, piece: Piece, layer: int, query: Any, scale: Any, softcap: Any, sinks: Any, window: Any) -> Any:
        """query: [tokens, heads, width], as the result."""
        stop = piece.start + piece.count
        first = 0 if window is None else max(0, piece.start - window + 1)
        keys, values = (s[None, :, first:stop] for s in piece.strip.layers[layer])
        own = query.transpose(0, 1)[None]
        plain = softcap is None and sinks is None
        if plain and piece.start == 0 and (window is None or stop <= window):
            found = scaled_dot_product_attention(own, keys, values, is_causal=True, scale=scale, enable_gqa=True)
            return found[0].transpose(0, 1)
        places = torch.arange(piece.start, stop, device=query.device)[:, None]
        columns = torch.arange(first, stop, device=query.device)[None]
        hidden = columns > places if window is None else (columns > places) | (columns <= places - window)
        mask = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill_(hidden, -torch.inf)
        if plain:
            found = scaled_dot_product_attention(own, keys, values, attn_mask=mask, scale=scale, enable_gqa=True)
            return found[0].transpose(0, 1)
        group = own.shape[1] // keys.shape[1]
        keys, values = (s.repeat_interleave(group, 1) for s in (keys, values))
        sinks = None if sinks is None else sinks.view(1, -1, 1, 1)
        return _by_hand(own, keys, values, mask, scale, softcap, sinks)[0].transpose(0, 1)


def _by_hand(query: Any, keys: Any, values: Any, mask: Any, scale: float, softcap: Any, sinks: Any) -> torch.Tensor:
    """With a cap on the scores, or with a score (`sinks`) that takes weight and gives nothing."""
    scores = torch.matmul(query, keys.transpose(-1, -2)).float() * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        scores = torch.cat([scores, sinks.float().expand(*scores.shape[:-1], 1)], dim=-1)
    weights = scores.softmax(-1)
    return torch.matmul(weights[..., : keys.shape[-2]].to(values.dtype), values)


_KNOWN = {"sliding_window", "softcap", "s_aux", "dropout", "scaling"}
_HARMLESS = {"position_ids", "use_cache", "is_causal", "cache_position", "position_embeddings", "logits_to_keep"}
now = threading.local()


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **given: Any
) -> tuple[torch.Tensor, None]:
    strange = {name for name, v in given.items() if v is not None and v is not False} - _KNOWN - _HARMLESS
    if strange or attention_mask is not None:
        raise NotRagged(f"attention with {', '.join(sorted(strange)) or 'a mask'}")
    scale = given.get("scaling")
    if scale is None:
        scale = query.shape[-1] ** -0.5
    cache: RaggedCache = now.cache
    layer, cache.layer = cache.layer, None
    if layer is None:
        raise NotRagged("attention without keys of its own")
    query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
    cache.store(layer, key, value)
    found = cache.attend(layer, query, scale, given.get("softcap"), given.get("s_aux"), given.get("sliding_window"))
    return found[None], None


AttentionInterface.register(NAME, _attention)
