"""The rows that a transformers model computes together: prefill, decode steps, joining and leaving.

Promises: a row's logits are those that `generate` computes for it, whatever rows are beside it (up to the rounding of
the arithmetic). Knows nothing of sampling, texts or threads.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from swift.engines import cache as rows_cache
from swift.engines.sampling import scored
from swift.engines.sequence import GenerationState

# Models without `position_ids` that find each token's place from the attention mask, so that padding doesn't shift it.
PLACED_BY_MASK = ("bloom", "mpt")
OWN_CACHE = ("minimax",)  # a cache class of the model's own, which no other can stand for


class CausalModel:
    """The forward pass of a decoder-only transformers model, called as `generate` calls it.

    `can_batch`: rows may stand beside others; `can_pad`: also their prompts, and in chunks. `can_step`: its cache
    is one that we know. A model that takes no positions would see its rows moved by padding on the left: it isn't
    stepped here.
    """

    def __init__(self, model: Any):
        self.model = model
        self.device = model.get_input_embeddings().weight.device
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._extra: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._cache_name = "past_key_values" if "past_key_values" in accepted else "cache_params"
        cache = DynamicCache(config=model.config)
        placed = self._takes_positions or model.config.model_type in PLACED_BY_MASK
        known = self._cache_name in accepted and model.config.model_type not in OWN_CACHE
        self.can_step = known and (placed or rows_cache.is_recurrent(cache))
        self.can_batch = rows_cache.can_batch(cache) and self.can_step
        self.can_pad = rows_cache.can_pad(cache) and placed

    def new_cache(self) -> DynamicCache:
        return rows_cache.new_cache(self.model.config)

    def logits(
        self, ids: torch.Tensor, mask: torch.Tensor, cache: DynamicCache, first: bool, every: bool = False
    ) -> torch.Tensor:
        """ids: int64 [rows, new columns]; mask: int64 [rows, all columns]. Returns [rows, columns, vocabulary]: of the
        last column, or with `every` of all new ones.
        """
        inputs: dict[str, Any] = {} if every else dict(self._extra)
        if self._takes_positions:
            positions = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)
            inputs["position_ids"] = positions[:, -ids.shape[1] :]
        prepared = self.model.prepare_inputs_for_generation(
            ids,
            **{self._cache_name: cache},
            attention_mask=None if bool(mask.all()) else mask,
            use_cache=True,
            is_first_iteration=first,
            **inputs,
        )
        return self.model(**prepared, return_dict=True).logits[:, slice(None) if every else slice(-1, None)]


class Batch:
    """Rows with one cache. `states[i]` is row i; every row's last id is not in the cache yet."""

    def __init__(self, model: CausalModel, states: Sequence[GenerationState], chunk: int):
        self.model, self.states = model, list(states)
        self.cache = model.new_cache()
        longest = max(len(state.ids) for state in states)
        self._ids = torch.zeros(len(states), longest, dtype=torch.long)
        self._full_mask = torch.zeros(len(states), longest, dtype=torch.long)
        for row, state in enumerate(states):
            self._ids[row, longest - len(state.ids) :] = torch.tensor(state.ids)
            self._full_mask[row, longest - len(state.ids) :] = 1
        self._ids, self._full_mask = self._ids.to(model.device), self._full_mask.to(model.device)
        self._chunk = chunk if model.can_pad else longest
        self.mask = self._full_mask[:, :0]

    @property
    def columns(self) -> int:
        return self.mask.shape[1]

    def prefill(self) -> torch.Tensor | None:
        """Compute the next chunk of the prompts: the logits [rows, vocabulary] once it was the last, else None."""
        start, stop = self.columns, min(self.columns + self._chunk, self._ids.shape[1])
        self.mask = self._full_mask[:, :stop]
        scored_rows = [state for state in self.states if state.prompt_logprobs is not None]
        logits = self.model.logits(
            self._ids[:, start:stop], self.mask, self.cache, first=start == 0, every=bool(scored_rows)
        )
        for state in scored_rows:
            self._score(state, logits[self.states.index(state)], start)
        return logits[:, -1] if stop == self._ids.shape[1] else None

    def _score(self, state: GenerationState, logits: torch.Tensor, start: int) -> None:
        """Note what the model thinks of a row's prompt. logits: [columns from `start` on, vocabulary]."""
        padding = self._ids.shape[1] - len(state.ids)
        first = max(start - padding, 0)  # the place in the row's ids of the first column here that is its own
        logits = logits[max(padding - start, 0) :]
        wanted = state.ids[first + 1 : min(first + 1 + logits.shape[0], state.prompt_length)]
        if wanted:
            state.prompt_scores += scored(logits[: len(wanted)], wanted, state.prompt_logprobs or 0)

    def step(self) -> torch.Tensor:
        """Compute every row's last id: logits [rows, vocabulary]."""
        ids = torch.tensor([[state.ids[-1]] for state in self.states], device=self.model.device)
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.states), 1)], dim=1)
        return self.model.logits(ids, self.mask, self.cache, first=False)[:, -1]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and the columns that only they used. The order of the rows may change."""
        if len(rows) == len(self.states):
            return
        order = rows_cache.closing_ranks(rows)
        self.states = [self.states[row] for row in order]
        if not rows:
            self.cache = self.model.new_cache()
            return
        mask = self.mask[order]
        columns = int(mask.sum(-1).max())
        rows_cache.keep(self.cache, order, columns)
        self.mask = mask[:, mask.shape[1] - columns :]

    def join(self, other: Batch) -> None:
        """Take over the rows of `other`."""
        columns = max(self.columns, other.columns)
        rows_cache.join(self.cache, other.cache, columns)
        self.mask = torch.cat([_pad_left(self.mask, columns), _pad_left(other.mask, columns)])
        self.states += other.states


def _pad_left(mask: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.nn.functional.pad(mask, (columns - mask.shape[1], 0))
