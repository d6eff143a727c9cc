"""Choosing the next token from logits: greedy, or drawn after penalties, bias, temperature, top-k, top-p and min-p.

Promises: each row is treated by its own settings and its own random numbers, so a choice doesn't depend on what else
is in the batch; the order and meaning of the filters are those of transformers' `generate`. Knows nothing of text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from swift.engines.grammar import GrammarState
from swift.engines.protocol import RequestError, Sampling

MOST_LOGPROBS = 20  # alternatives per token, as in the OpenAI API
TINY = torch.finfo(torch.float32).tiny
NUCLEUS_FIRST_TRY = 1024  # a sort of the whole vocabulary is only needed when this many tokens don't hold top_p


@dataclass(frozen=True)
class TokenChoice:
    """A chosen token; with logprobs asked for: its own, and the likeliest tokens as (id, logprob), best first."""

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class SamplingRule:
    """A request's settings with nothing left open. temperature 0: greedy; top_k 0, top_p 1, min_p 0, penalty 1: off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    min_new_tokens: int = 0
    logprobs: bool = False
    top_logprobs: int = 0

    @classmethod
    def of(cls, sampling: Sampling, generation_config: Any) -> SamplingRule:
        """Fill what the request leaves open from the model's generation settings; RequestError on impossible values.

        A request that names top_k, top_p or min_p but no temperature wants sampling: at the model's temperature, else
        1.
        """
        model = generation_config
        filters_asked = any(v is not None for v in (sampling.top_k, sampling.top_p, sampling.min_p))
        if sampling.temperature is not None:
            temperature = sampling.temperature
        elif model.do_sample or filters_asked:
            temperature = _first(model.temperature, 1.0)
        else:
            temperature = 0.0
        rule = cls(
            temperature=temperature,
            top_k=max(_first(sampling.top_k, model.top_k, 0), 0),
            top_p=_first(sampling.top_p, model.top_p, 1.0),
            min_p=_first(sampling.min_p, model.min_p, 0.0),
            repetition_penalty=_first(sampling.repetition_penalty, model.repetition_penalty, 1.0),
            presence_penalty=sampling.presence_penalty,
            frequency_penalty=sampling.frequency_penalty,
            logit_bias=sampling.logit_bias,
            min_new_tokens=sampling.min_new_tokens,
            logprobs=sampling.logprobs,
            top_logprobs=sampling.top_logprobs,
        )
        rule.check()
        return rule

    def check(self) -> None:
        bounds = {
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "min_p": (0 <= self.min_p <= 1, "between 0 and 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "presence_penalty": (-2 <= self.presence_penalty <= 2, "between -2 and 2"),
            "frequency_penalty": (-2 <= self.frequency_penalty <= 2, "between -2 and 2"),
            "min_new_tokens": (self.min_new_tokens >= 0, "0 or more"),
            "top_logprobs": (0 <= self.top_logprobs <= MOST_LOGPROBS, f"between 0 and {MOST_LOGPROBS}"),
        }
        for name, (fine, wanted) in bounds.items():
            if not fine:
                raise RequestError(f"{name} must be {wanted}, not {getattr(self, name)}", param=name)
        if any(not -100 <= bias <= 100 for bias in self.logit_bias.values()):
            raise RequestError("every logit_bias must be between -100 and 100", param="logit_bias")


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


class Sampler:
    """One request's rule, its random numbers and the tokens it has seen (for the penalties).

    `end_ids` are the tokens that `min_new_tokens` holds back; `grammar` says which tokens may come next.
    """

    def __init__(
        self,
        rule: SamplingRule,
        seed: int | None,
        prompt_ids: Sequence[int],
        end_ids: Iterable[int] = frozenset(),
        grammar: GrammarState | None = None,
    ):
        self.rule, self.seed, self._grammar = rule, seed, grammar
        self._noise: torch.Generator | None = None
        self._seen = set(prompt_ids) if rule.repetition_penalty != 1 else None
        self._counts: Counter[int] | None = None
        if rule.presence_penalty or rule.frequency_penalty:
            self._counts = Counter()
        self._end_ids, self._generated = sorted(end_ids), 0

    def see(self, token_id: int) -> None:
        self._generated += 1
        if self._grammar is not None:
            self._grammar.accept(token_id)
        if self._seen is not None:
            self._seen.add(token_id)
        if self._counts is not None:
            self._counts[token_id] += 1

    @property
    def changes_logits(self) -> bool:
        counting = self._seen is not None or self._counts is not None
        holds_end = self._generated < self.rule.min_new_tokens
        return counting or holds_end or bool(self.rule.logit_bias) or self._grammar is not None

    @property
    def plain_greedy(self) -> bool:
        return self.rule.temperature == 0 and not self.changes_logits

    def choose(self, logits: torch.Tensor) -> int:
        """logits: float32 [vocabulary] of this row; not changed."""
        if self.changes_logits:
            logits = self._changed(logits)
        if self.rule.temperature == 0:
            return int(logits.argmax())
        scores = logits / self.rule.temperature
        keys = scores - self._exponential(scores).log()
        rule = self.rule
        if rule.top_k or rule.top_p < 1 or rule.min_p:
            kept = self._filtered(scores)
            return int(kept[keys[kept].argmax()])
        return int(keys.argmax())

    def _exponential(self, scores: torch.Tensor) -> torch.Tensor:
        """One random number per token of the vocabulary, for the Gumbel-max choice.

        The largest of score + noise is a draw from the softmax; a rounding error in the scores changes it only where
        two tokens are that close, whereas a running sum over the vocabulary carries every error into all later tokens.
        """
        if self._noise is None:
            self._noise = torch.Generator(scores.device)
            if self.seed is None:
                self._noise.seed()
            else:
                self._noise.manual_seed(self.seed)
        return torch.empty_like(scores).exponential_(generator=self._noise).clamp_min_(TINY)

    def _changed(self, logits: torch.Tensor) -> torch.Tensor:
        """A copy with penalties and bias applied; at -inf: end tokens while the answer is too short, and what the
        grammar forbids.
        """
        logits, rule = logits.clone(), self.rule
        if self._seen:
            seen = torch.tensor(sorted(self._seen), device=logits.device)
            values, penalty = logits[seen], rule.repetition_penalty
            logits[seen] = torch.where(values < 0, values * penalty, values / penalty)
        if self._counts:
            ids = torch.tensor(list(self._counts), device=logits.device)
            counts = torch.tensor(list(self._counts.values()), dtype=logits.dtype, device=logits.device)
            logits[ids] -= rule.presence_penalty + rule.frequency_penalty * counts
        if rule.logit_bias:
            ids = torch.tensor(list(rule.logit_bias), device=logits.device)
            logits[ids] += torch.tensor(list(rule.logit_bias.values()), dtype=logits.dtype, device=logits.device)
        if self._generated < rule.min_new_tokens:
            logits[self._end_ids] = -torch.inf
        if self._grammar is not None:
            logits[~self._grammar.allowed(logits.device)] = -torch.inf
        return logits

    def _filtered(self, scores: torch.Tensor) -> torch.Tensor:
        """The ids that top-k, top-p and min-p leave, as `generate` applies them: int64 [kept]."""
        rule = self.rule
        size = scores.shape[-1]
        top, ids = torch.topk(scores, min(rule.top_k or NUCLEUS_FIRST_TRY, size))
        if rule.top_k:
            probabilities = top.softmax(-1)
        else:
            probabilities = (top - scores.logsumexp(-1)).exp()
            if not self._enough(probabilities):
                top, ids = torch.sort(scores, descending=True)
                probabilities = top.softmax(-1)
        keep = torch.ones_like(top, dtype=torch.bool)
        if rule.top_p < 1:
            keep &= probabilities.cumsum(-1) - probabilities < rule.top_p
        if rule.min_p:
            keep &= probabilities >= rule.min_p * probabilities[0]
        keep[0] = True
        return ids[keep]

    def _enough(self, probabilities: torch.Tensor) -> bool:
        """Whether every token that the filters keep is among these likeliest ones."""
        by_mass = self.rule.top_p < 1 and bool(probabilities.sum() >= self.rule.top_p)
        by_ratio = self.rule.min_p > 0 and bool(probabilities[-1] < self.rule.min_p * probabilities[0])
        return by_mass or by_ratio


def choose(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[TokenChoice | Exception]:
    """One choice per row. logits: [rows, vocabulary]. A row whose choice fails gets its exception; the others their
    token.
    """
    logits = logits.float()
    greedy = logits.argmax(-1).tolist()
    choices: list[TokenChoice | Exception] = []
    for row, sampler in enumerate(samplers):
        try:
            token_id = greedy[row] if sampler.plain_greedy else sampler.choose(logits[row])
            sampler.see(token_id)
            choices.append(_with_logprobs(token_id, logits[row], sampler.rule))
        except Exception as error:
            choices.append(error)
    return choices


def _with_logprobs(token_id: int, logits: torch.Tensor, rule: SamplingRule) -> TokenChoice:
    if not rule.logprobs:
        return TokenChoice(token_id)
    return scored(logits[None], [token_id], rule.top_logprobs)[0]


def scored(logits: torch.Tensor, token_ids: Sequence[int], top: int) -> list[TokenChoice]:
    """Given tokens with their log-probabilities and `top` alternatives each. logits: [tokens, vocabulary]."""
    logprobs = logits.float().log_softmax(-1)
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    if not top:
        return [TokenChoice(i, p) for i, p in zip(token_ids, chosen, strict=True)]
    values, ids = torch.topk(logprobs, min(top, logprobs.shape[-1]))
    return [
        TokenChoice(i, p, tuple(zip(best, best_values, strict=True)))
        for i, p, best, best_values in zip(token_ids, chosen, ids.tolist(), values.tolist(), strict=True)
    ]
