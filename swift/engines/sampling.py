"""Choosing the next token from logits: greedy, or drawn after penalties, bias, temperature, top-k, top-p and min-p.

Promises: each row is treated by its own settings and its own random numbers, so a choice doesn't depend on what else
is in the batch; the order and meaning of the filters are those of transformers' `generate`. Knows nothing of text.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from swift.engines.grammar import GrammarState
from swift.engines.protocol import RequestError, Sampling

MOST_LOGPROBS = 20  # alternatives per token, as in the OpenAI API
MASK32, MASK64 = 2**32 - 1, 2**64 - 1
GOLDEN32 = 0x9E3779B9 - 2**32
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

    `end_ids` are the tokens that `min_new_tokens` holds back; `grammar` says which tokens may come next. `seen` and
    `counts`: the tokens that penalties are for, None without those penalties.
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
        self._key = random.getrandbits(64) if seed is None else seed
        self.seen: set[int] | None = set(prompt_ids) if rule.repetition_penalty != 1 else None
        self.counts: Counter[int] | None = None
        if rule.presence_penalty or rule.frequency_penalty:
            self.counts = Counter()
        self._end_ids, self._generated = sorted(end_ids), 0

    def see(self, token_id: int) -> None:
        self._generated += 1
        if self._grammar is not None:
            self._grammar.accept(token_id)
        if self.seen is not None:
            self.seen.add(token_id)
        if self.counts is not None:
            self.counts[token_id] += 1

    @property
    def changes_logits(self) -> bool:
        counting = self.seen is not None or self.counts is not None
        holds_end = self._generated < self.rule.min_new_tokens
        return counting or holds_end or bool(self.rule.logit_bias) or self._grammar is not None

    def change(self, logits: torch.Tensor) -> None:
        """Apply what isn't a penalty to this row, float32 [vocabulary], in place: the bias, and -inf for end tokens
        while the answer is too short and for what the grammar forbids.
        """
        rule = self.rule
        if rule.logit_bias:
            ids = torch.tensor(list(rule.logit_bias), device=logits.device)
            logits[ids] += torch.tensor(list(rule.logit_bias.values()), dtype=logits.dtype, device=logits.device)
        if self._generated < rule.min_new_tokens:
            logits[self._end_ids] = -torch.inf
        if self._grammar is not None:
            logits[~self._grammar.allowed(logits.device)] = -torch.inf

    def noise_keys(self) -> tuple[int, int]:
        """Two int32 that are this request's alone for the token to come."""
        mixed = _mix64(_mix64(self._key) + self._generated)
        return (mixed & MASK32) - 2**31, (mixed >> 32) - 2**31


def _mix64(value: int) -> int:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014)."""
    value = (value + 0x9E3779B97F4A7C15) & MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)


def exponentials(ids: torch.Tensor, keys: Sequence[tuple[int, int]]) -> torch.Tensor:
    """A random number of the exponential distribution, float32, for each token id of each row, int32 [rows, n]: a hash
    of the row's keys and the id, so that it doesn't depend on where the id stands or on other rows.

    The hash is lowbias32 (Wellons), twice with a key before each.
    """
    first, second = torch.tensor(keys, dtype=torch.int32, device=ids.device).T[:, :, None]
    x = ids * GOLDEN32 + first
    for key in (second, None):
        x ^= (x >> 16) & 0xFFFF
        x *= 0x7FEB352D
        x ^= (x >> 15) & 0x1FFFF
        x *= 0x846CA68B - 2**32
        x ^= (x >> 16) & 0xFFFF
        if key is not None:
            x += key
    uniform = x.float().add_(2.0**31 + 0.5).mul_(2.0**-32)
    return uniform.neg_().log1p_().neg_().clamp_min_(TINY)


def choose(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[TokenChoice | Exception]:
    """One choice per row, computed side by side. logits: [rows, vocabulary], not changed. A row whose choice fails gets
    its exception; the others their token.
    """
    logits = logits.float()
    found: list[TokenChoice | Exception] = []
    for token_id, row, sampler in zip(_picked(logits, samplers), logits, samplers, strict=True):
        if isinstance(token_id, Exception):
            found.append(token_id)
            continue
        try:
            choice = _with_logprobs(token_id, row, sampler.rule)
            sampler.see(token_id)
            found.append(choice)
        except Exception as error:
            found.append(error)
    return found


def _picked(logits: torch.Tensor, samplers: Sequence[Sampler]) -> Sequence[int | Exception]:
    """The rows together; where that fails each by itself, so that only the one at fault fails."""
    try:
        return pick(logits, samplers)
    except Exception as error:
        if len(samplers) == 1:
            return [error]
    return [_picked(logits[row : row + 1], [sampler])[0] for row, sampler in enumerate(samplers)]


def pick(logits: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The token of each row. logits: float32 [rows, vocabulary], not changed."""
    changing = [row for row, sampler in enumerate(samplers) if sampler.changes_logits]
    if changing:
        logits = logits.clone()
        _penalize(logits, samplers)
        for row in changing:
            samplers[row].change(logits[row])
    tokens = logits.argmax(-1).tolist()
    groups: dict[int, list[int]] = {}
    for row, sampler in enumerate(samplers):
        if sampler.rule.temperature > 0:
            groups.setdefault(_width(sampler.rule, logits.shape[-1]), []).append(row)
    for width, rows in groups.items():
        chosen = [samplers[row] for row in rows]
        warmth = torch.tensor([[s.rule.temperature] for s in chosen], device=logits.device)
        scores = logits[rows] / warmth if len(rows) < len(samplers) else logits / warmth
        drawn = _drawn_of_all(scores, chosen) if width == 0 else _drawn_of_likely(scores, chosen, width)
        for row, token_id in zip(rows, drawn, strict=True):
            tokens[row] = token_id
    return tokens


def _penalize(logits: torch.Tensor, samplers: Sequence[Sampler]) -> None:
    """Apply the penalties of all rows in place."""
    rows: list[int] = []
    ids: list[int] = []
    factors: list[float] = []
    for row, sampler in enumerate(samplers):
        if sampler.seen:
            rows += [row] * len(sampler.seen)
            ids += sampler.seen
            factors += [sampler.rule.repetition_penalty] * len(sampler.seen)
    if rows:
        at = (torch.tensor(rows, device=logits.device), torch.tensor(ids, device=logits.device))
        values, penalty = logits[at], torch.tensor(factors, device=logits.device)
        logits[at] = torch.where(values < 0, values * penalty, values / penalty)
    rows, ids, factors = [], [], []
    for row, sampler in enumerate(samplers):
        if sampler.counts:
            rows += [row] * len(sampler.counts)
            ids += sampler.counts
            presence, frequency = sampler.rule.presence_penalty, sampler.rule.frequency_penalty
            factors += [presence + frequency * count for count in sampler.counts.values()]
    if rows:
        at = (torch.tensor(rows, device=logits.device), torch.tensor(ids, device=logits.device))
        logits[at] -= torch.tensor(factors, device=logits.device)


def _width(rule: SamplingRule, vocabulary: int) -> int:
    """How many likeliest tokens are looked at first; 0: all of them, no filter is on. A power of two, so that a row is
    computed alike whatever the others ask.
    """
    if not (rule.top_k or rule.top_p < 1 or rule.min_p):
        return 0
    return min(1 << (rule.top_k - 1).bit_length() if rule.top_k else NUCLEUS_FIRST_TRY, vocabulary)


def _drawn_of_all(scores: torch.Tensor, samplers: Sequence[Sampler]) -> list[int]:
    """The largest of score + Gumbel noise is a draw from the softmax; a rounding error in the scores changes it only
    where two tokens are that close, whereas a running sum over the vocabulary carries every error into all later ones.
    """
    ids = torch.arange(scores.shape[-1], dtype=torch.int32, device=scores.device).expand(scores.shape)
    noise = exponentials(ids, [sampler.noise_keys() for sampler in samplers])
    return (scores - noise.log_()).argmax(-1).tolist()


def _drawn_of_likely(scores: torch.Tensor, samplers: Sequence[Sampler], width: int) -> list[int]:
    """The same among the tokens that top-k, top-p and min-p leave, as `generate` applies them."""
    rules = [sampler.rule for sampler in samplers]
    vocabulary = scores.shape[-1]
    top, ids = torch.topk(scores, width)
    by_rank = any(rule.top_k for rule in rules)  # all of them, or none: see _width
    if by_rank:
        most = _column([min(rule.top_k, vocabulary) for rule in rules], scores)
        top = top.masked_fill(torch.arange(width, device=scores.device) >= most, -torch.inf)
        probabilities = top.softmax(-1)
    else:
        probabilities = (top - scores.logsumexp(-1, keepdim=True)).exp()
    likely, least = _column([rule.top_p for rule in rules], scores), _column([rule.min_p for rule in rules], scores)
    bound = least * probabilities[:, :1]
    drawn: list[int | None] = [None] * len(rules)
    if not by_rank and width < vocabulary:  # do these hold every token that the filters keep?
        enough = ((likely < 1) & (probabilities.sum(-1, True) >= likely)) | (
            (least > 0) & (probabilities[:, -1:] < bound)
        )
        for row in (~enough[:, 0]).nonzero()[:, 0].tolist():
            drawn[row] = _drawn_of_likely(scores[row : row + 1], samplers[row : row + 1], vocabulary)[0]
    keep = (probabilities.cumsum(-1) - probabilities < likely) | (likely >= 1)
    keep &= probabilities >= bound
    keep[:, 0] = True
    noise = exponentials(ids.int(), [sampler.noise_keys() for sampler in samplers])
    best = (top - noise.log_()).masked_fill(~keep, -torch.inf).argmax(-1, keepdim=True)
    found = ids.gather(1, best)[:, 0].tolist()
    return [token_id if other is None else other for token_id, other in zip(found, drawn, strict=True)]


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=like.device)[:, None]


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
