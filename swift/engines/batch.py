"""The rows that a transformers model computes together: prefill, decode steps, joining and leaving.

Promises: a row's logits are those that `generate` computes for it, whatever rows are beside it (up to the rounding of
the arithmetic). Knows nothing of sampling, texts or threads.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin

from swift.engines import cache as rows_cache
from swift.engines.lora import Loras, groups
from swift.engines.sampling import scored
from swift.engines.sequence import GenerationState
from swift.engines.whole import moved

# Models without `position_ids` that find each token's place from the attention mask, so that padding doesn't shift it.
PLACED_BY_MASK = ("bloom", "mpt")
OWN_CACHE = ("minimax",)  # a cache class of the model's own, which no other can stand for


class CausalModel:
    """The forward pass of a decoder-only transformers model, called as `generate` calls it.

    `can_see`: prompts with images and the like: what they bring is needed for the prompt alone, and only the places of
    later tokens depend on it. `can_batch`: rows may stand beside others; `can_pad`: also their prompts, and in
    chunks. `can_step`: its cache is one that we know. A model that takes no positions would see its rows moved by
    padding on the left: it isn't stepped here.
    """

    def __init__(self, model: Any, loras: Loras | None = None):
        self.model, self.loras = model, loras or Loras(model)
        self.device = model.get_input_embeddings().weight.device
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._extra: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._cache_name = "past_key_values" if "past_key_values" in accepted else "cache_params"
        cache = DynamicCache(config=model.config)
        placed = self._takes_positions or model.config.model_type in PLACED_BY_MASK
        known = self._cache_name in accepted and model.config.model_type not in OWN_CACHE
        self.can_step = known and (placed or rows_cache.is_recurrent(cache))
        self.can_see = self.can_step and _forgets_inputs(model)
        self.can_batch = rows_cache.can_batch(cache) and self.can_step
        self.can_pad = rows_cache.can_pad(cache) and placed

    def new_cache(self) -> DynamicCache:
        return rows_cache.new_cache(self.model.config)

    def logits(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        cache: DynamicCache,
        first: bool,
        every: bool = False,
        positions: torch.Tensor | None = None,
        seen: Mapping[str, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """ids: int64 [rows, new columns]; mask: int64 [rows, all columns]; positions: of the new columns, [rows,
        columns] or [axes, rows, columns], None for those by the mask; `seen`: what a whole prompt's media are made of.
        Returns [rows, columns, vocabulary]: of the last column, or with `every` of all new ones.
        """
        inputs: dict[str, Any] = {} if every else dict(self._extra)
        inputs |= seen or {}
        if self._takes_positions:
            if positions is None:
                positions = _places(mask)[:, -ids.shape[1] :]
            inputs["position_ids"] = positions
        padded = not bool(mask.all())
        prepared = self.model.prepare_inputs_for_generation(
            ids,
            **{self._cache_name: cache},
            attention_mask=mask if padded else None,
            use_cache=True,
            is_first_iteration=first,
            **inputs,
        )
        if padded and self._takes_positions and prepared.get("position_ids") is None:
            prepared["position_ids"] = positions  # it would count them from the cache's columns, padding too
        return self.model(**prepared, return_dict=True).logits[:, slice(None) if every else slice(-1, None)]

    def positions(self, ids: torch.Tensor, mask: torch.Tensor, seen: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """Where `generate` places the tokens of a whole prompt with media."""
        if not self._takes_positions:
            return None
        return self.model._prepare_position_ids_for_generation(ids, {"attention_mask": mask, **seen})


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Every token's place in its row, 0 for padding. int64 [rows, columns]."""
    return (mask.cumsum(-1) - 1).masked_fill(mask == 0, 0)


def _forgets_inputs(model: Any) -> bool:
    """Whether `generate`, which must be the common one, takes nothing of a prompt's media on to the next step."""
    if type(model).generate is not GenerationMixin.generate:
        return False
    return type(model)._update_model_kwargs_for_generation is GenerationMixin._update_model_kwargs_for_generation


class Batch:
    """Rows with one cache. `states[i]` is row i; every row's last id is not in the cache yet. `offsets`: [axes, rows],
    how far a row's next token stands from its place in the row, in a model that places tokens in space.
    """

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
        self._seen = moved(states[0].inputs, model.device, model.model.dtype) if states[0].inputs is not None else None
        self._chunk = chunk if model.can_pad and self._seen is None else longest
        self.offsets: torch.Tensor | None = None
        self.mask = self._full_mask[:, :0]

    @property
    def columns(self) -> int:
        return self.mask.shape[1]

    def prefill(self) -> torch.Tensor | None:
        """Compute the next chunk of the prompts: the logits [rows, vocabulary] once it was the last, else None."""
        start, stop = self.columns, min(self.columns + self._chunk, self._ids.shape[1])
        self.mask = self._full_mask[:, :stop]
        scored_rows = [state for state in self.states if state.prompt_logprobs is not None]
        ids, seen, self._seen = self._ids[:, start:stop], self._seen, None
        positions = None if seen is None else self.model.positions(ids, self.mask, seen)
        if positions is not None and positions.ndim == 3:
            self.offsets = positions[..., -1] - _places(self.mask)[:, -1]
        every = bool(scored_rows)
        logits = self._logits(ids, self.mask, self.cache, start == 0, every, positions, seen)
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
        positions = None
        if self.offsets is not None:
            positions = _places(self.mask)[:, -1:] + self.offsets[..., None]
        return self._logits(ids, self.mask, self.cache, first=False, positions=positions)[:, -1]

    def _logits(self, ids: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        """With each row's adapter."""
        each = [state.adapter for state in self.states for _ in range(ids.shape[1])]
        with self.model.loras.using(groups(each, self.model.device)):
            return self.model.logits(ids, *given, **named)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all other rows, and the columns that only they used. The order of the rows may change."""
        if len(rows) == len(self.states):
            return
        order = rows_cache.closing_ranks(rows)
        self.states = [self.states[row] for row in order]
        if not rows:
            self.cache, self.offsets = self.model.new_cache(), None
            return
        if self.offsets is not None:
            self.offsets = self.offsets[:, order]
        mask = self.mask[order]
        columns = int(mask.sum(-1).max())
        rows_cache.keep(self.cache, order, columns)
        self.mask = mask[:, mask.shape[1] - columns :]

    def join(self, other: Batch) -> None:
        """Take over the rows of `other`."""
        columns = max(self.columns, other.columns)
        rows_cache.join(self.cache, other.cache, columns)
        self.mask = torch.cat([_pad_left(self.mask, columns), _pad_left(other.mask, columns)])
        if self.offsets is not None or other.offsets is not None:
            known = self.offsets if self.offsets is not None else other.offsets
            parts = [
                known.new_zeros(known.shape[0], len(b.states)) if b.offsets is None else b.offsets
                for b in (self, other)
            ]
            self.offsets = torch.cat(parts, dim=1)
        self.states += other.states


def _pad_left(mask: torch.Tensor, columns: int) -> torch.Tensor:
    return torch.nn.functional.pad(mask, (columns - mask.shape[1], 0))
