"""Answers by transformers' own `generate`, one request at a time, that appear as a whole: beam search, and models whose
rows can't be computed step by step here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from swift.engines.sampling import TokenChoice
from swift.engines.sequence import GenerationState


class _Cancelled(StoppingCriteria):
    def __init__(self, state: GenerationState):
        self._state = state

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._state.cancelled, device=input_ids.device)


def moved(inputs: Mapping[str, torch.Tensor], device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A prompt's tensors where the model is, numbers with a fraction in its dtype."""
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in inputs.items()}


def generate_whole(model: Any, state: GenerationState) -> None:
    """Generate the whole answer and hand it to the state's reader. Sampling between beams uses a random state of its
    own.
    """
    rule = state.sampler.rule
    settings: dict[str, Any] = {"do_sample": rule.temperature > 0, "repetition_penalty": rule.repetition_penalty}
    if rule.temperature > 0:
        settings |= {
            "temperature": rule.temperature,
            "top_k": rule.top_k,
            "top_p": rule.top_p,
            "min_p": rule.min_p or None,
        }
    ids = torch.tensor([state.ids], device=model.get_input_embeddings().weight.device)
    settings |= moved(state.inputs or {}, ids.device, model.dtype)
    with torch.random.fork_rng(enabled=rule.temperature > 0):
        if state.sampler.seed is not None:
            torch.manual_seed(state.sampler.seed)
        output = model.generate(
            input_ids=ids,  # by name: some models (BLIP-2, Kosmos-2) take pixel_values first
            attention_mask=torch.ones_like(ids),
            num_beams=state.num_beams,
            max_new_tokens=state.limit,
            eos_token_id=sorted(state.end_ids) or None,
            pad_token_id=next(iter(sorted(state.end_ids)), 0),
            stopping_criteria=StoppingCriteriaList([_Cancelled(state)]),
            **settings,
        )
    if state.cancelled:
        state.finish_cancelled()
        return
    for token_id in output[0, ids.shape[1] :].tolist():
        if state.accept(TokenChoice(token_id)):
            return
    state.finish_cancelled()
