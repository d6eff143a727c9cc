"""Log-likelihoods of continuations on a loaded model: what multiple-choice benchmarks ask, computed once per distinct
token.

All sequences that are scored together form one tree of tokens: a shared context, a common beginning of two options or
the examples of a few-shot prompt stand in it once. The tree is one row of the forward pass, each token attending to
its ancestors alone and standing at the position of its depth, so nothing is padded; the language-model head runs only
where a continuation is predicted, and a one-token continuation costs no token of its own. A beginning that many trees
share is computed once and kept as a key/value cache. (Tree attention: Miao et al., SpecInfer, 2305.09781, section 4.)

Promises: log-probabilities are those of a plain forward pass of context and continuation, up to the rounding of the
arithmetic; the first tree is checked against plain passes, and a model for which they differ, or whose state isn't
keys and values by column, is scored sequence by sequence, said aloud. Knows nothing of text.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicSlidingWindowLayer

from swift.engines import cache as rows_cache

log = logging.getLogger("swift")

TREE_TOKENS = {"cpu": 384}  # tokens of one pass; matrix products on a CPU gain nothing from more
ACCELERATOR_TREE_TOKENS = 4096
LEAST_PREFIX = 64  # a common beginning of fewer tokens isn't worth a cache of its own
MASKS = {"full_attention", "sliding_attention"}  # kinds of layers whose mask we can write
PLAIN_ROWS = 8
CHECKED_SEQUENCES = 2
TOLERANCE = {torch.float32: 1e-3}
HALF_TOLERANCE = 0.25  # nats; sums of half-precision log-probabilities in another order of operations


@dataclass(frozen=True)
class Score:
    """`logprob`: natural logarithm, summed over the continuation. `greedy`: every token of it was the likeliest."""

    logprob: float
    greedy: bool


@dataclass
class _Sequence:
    """`tokens` are what the model reads (all but the last); `targets[i]` is predicted at `first + i`."""

    index: int
    tokens: tuple[int, ...]
    first: int
    targets: tuple[int, ...]


@dataclass
class _Tree:
    """Tokens in depth-first order below a prefix of `start` tokens; `places` says where each target is predicted."""

    start: int
    ids: list[int] = field(default_factory=list)
    depths: list[int] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    path: list[int] = field(default_factory=list)
    last: tuple[int, ...] = ()
    sequences: list[_Sequence] = field(default_factory=list)
    places: list[list[int]] = field(default_factory=list)

    def growth(self, sequence: _Sequence) -> int:
        """How many tokens the sequence would add."""
        return len(sequence.tokens) - max(self.start, common_length(self.last, sequence.tokens) if self.ids else 0)

    def add(self, sequence: _Sequence) -> None:
        shared = common_length(self.last, sequence.tokens) - self.start if self.ids else 0
        del self.path[shared:]
        for depth in range(self.start + shared, len(sequence.tokens)):
            self.parents.append(self.path[-1] if self.path else -1)
            self.path.append(len(self.ids))
            self.ids.append(sequence.tokens[depth])
            self.depths.append(depth)
        self.last = sequence.tokens
        first = sequence.first - self.start
        self.places.append(self.path[first : first + len(sequence.targets)])
        self.sequences.append(sequence)


class LogLikelihoods:
    """Scores (context ids, continuation ids) pairs on a decoder-only transformers model.

    `max_length` in tokens: of a longer sequence the end is kept, as lm-evaluation-harness does; `truncated` counts
    them. `tokens` counts the tokens that went through the model.
    """

    def __init__(self, model: Any, max_length: int | None = None, tree_tokens: int | None = None):
        self._model = model
        self._device = model.get_input_embeddings().weight.device
        self._max_length = max_length
        self._tree_tokens = tree_tokens or TREE_TOKENS.get(self._device.type, ACCELERATOR_TREE_TOKENS)
        self._accepted = inspect.signature(model.forward).parameters
        self._checked = False
        self.tokens = self.truncated = 0
        self.as_trees = self._can_tree()

    def _can_tree(self) -> bool:
        needed = {"position_ids", "attention_mask", "logits_to_keep", "past_key_values"} <= self._accepted.keys()
        masked = str(self._model.config._attn_implementation) in ("sdpa", "eager")
        kinds = set(self._model.config.get_text_config().to_dict().get("layer_types") or ())
        by_column = kinds <= MASKS and rows_cache.can_pad(DynamicCache(config=self._model.config))
        return needed and masked and by_column

    @torch.inference_mode()
    def score(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[tuple[int, Score]]:
        """(index of the pair, its score), in the order in which they are computed. Context and continuation may not
        be empty.
        """
        sequences = sorted((self._sequence(i, *pair) for i, pair in enumerate(pairs)), key=lambda s: s.tokens)
        if self.as_trees:
            for start, family in families(sequences, self._tree_tokens):
                yield from self._family(start, family)
        else:
            yield from self._plain(sequences)

    def _sequence(self, index: int, context: Sequence[int], continuation: Sequence[int]) -> _Sequence:
        ids = (*context, *continuation)
        if self._max_length is not None and len(ids) > self._max_length + 1:
            ids = ids[-(self._max_length + 1) :]
            self.truncated += 1
        targets = ids[max(len(ids) - len(continuation), 1) :]
        return _Sequence(index, ids[:-1], len(ids) - 1 - len(targets), targets)

    def _family(self, start: int, family: list[_Sequence]) -> Iterator[tuple[int, Score]]:
        prefix = self._prefix(family[0].tokens[:start]) if start else None
        tree = _Tree(start)
        for sequence in family:
            if tree.ids and len(tree.ids) + tree.growth(sequence) > self._tree_tokens:
                yield from self._tree(tree, prefix)
                tree = _Tree(start)
            tree.add(sequence)
        yield from self._tree(tree, prefix)

    def _prefix(self, ids: Sequence[int]) -> DynamicCache:
        """The cache of a common beginning, computed in pieces."""
        cache = DynamicCache(config=self._model.config)
        for begin in range(0, len(ids), self._tree_tokens):
            piece = torch.tensor([ids[begin : begin + self._tree_tokens]], device=self._device)
            positions = torch.arange(begin, begin + piece.shape[1], device=self._device)[None]
            self._model(
                input_ids=piece, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
            )
        self.tokens += len(ids)
        return cache

    def _tree(self, tree: _Tree, prefix: DynamicCache | None) -> Iterator[tuple[int, Score]]:
        if not self.as_trees:  # the check of an earlier tree failed
            yield from self._plain(tree.sequences)
            return
        rows = sorted({place for places in tree.places for place in places})
        row_of = {place: row for row, place in enumerate(rows)}
        self.tokens += len(tree.ids)
        logits = self._model(
            input_ids=torch.tensor([tree.ids], device=self._device),
            position_ids=torch.tensor([tree.depths], device=self._device),
            attention_mask=self._masks(tree, prefix),
            past_key_values=None if prefix is None else _branch(prefix),
            use_cache=prefix is not None,
            logits_to_keep=torch.tensor(rows, device=self._device),
        ).logits[0]
        scores = _scores(logits, tree.sequences, [[row_of[place] for place in places] for places in tree.places])
        if not self._checked and not self._agrees(tree.sequences, scores):
            yield from self._plain(tree.sequences)
            return
        yield from ((sequence.index, score) for sequence, score in zip(tree.sequences, scores, strict=True))

    def _masks(self, tree: _Tree, prefix: DynamicCache | None) -> torch.Tensor | dict[str, torch.Tensor]:
        """Additive masks [1, 1, tokens, prefix columns + tokens]: one, or one for each kind of layer."""
        count = len(tree.ids)
        seen = torch.zeros(count, count, dtype=torch.bool)
        for i, parent in enumerate(tree.parents):
            if parent >= 0:
                seen[i] = seen[parent]
            seen[i, i] = True
        depths = torch.tensor(tree.depths)
        layers = (prefix or DynamicCache(config=self._model.config)).layers
        windows = [x.sliding_window if isinstance(x, DynamicSlidingWindowLayer) else None for x in layers]
        masks = {window: self._mask(seen, depths, tree.start, window) for window in set(windows)}
        if len(masks) == 1 and not (windows[0] and self._model.config.get_text_config().to_dict().get("layer_types")):
            return masks[windows[0]]
        return {"sliding_attention" if window else "full_attention": mask for window, mask in masks.items()}

    def _mask(self, seen: torch.Tensor, depths: torch.Tensor, start: int, window: int | None) -> torch.Tensor:
        columns = torch.arange(start)
        allowed = torch.ones(len(depths), start, dtype=torch.bool)
        if window is not None:
            columns = columns[max(start - window + 1, 0) :]  # a sliding layer's cache keeps no more
            allowed = depths[:, None] - columns[None] < window
            seen = seen & (depths[:, None] - depths[None] < window)
        dtype = self._model.dtype
        mask = torch.zeros(len(depths), len(columns) + len(depths), dtype=dtype)
        mask.masked_fill_(~torch.cat([allowed, seen], dim=1), torch.finfo(dtype).min)
        return mask[None, None].to(self._device)

    def _agrees(self, sequences: list[_Sequence], scores: list[Score]) -> bool:
        """Compare a few scores of the first tree with plain passes."""
        self._checked = True
        chosen = sorted(range(len(sequences)), key=lambda i: len(sequences[i].tokens))[-CHECKED_SEQUENCES:]
        plain = dict(self._plain([sequences[i] for i in chosen]))
        worst = max(abs(plain[sequences[i].index].logprob - scores[i].logprob) for i in chosen)
        self.as_trees = worst <= TOLERANCE.get(self._model.dtype, HALF_TOLERANCE)
        if not self.as_trees:
            log.warning(
                "this model doesn't score a tree of tokens as it scores plain sequences (%.2g nats apart): "
                "the slower plain way is taken",
                worst,
            )
        return self.as_trees

    def _plain(self, sequences: Sequence[_Sequence]) -> Iterator[tuple[int, Score]]:
        """Whole sequences side by side, those of one length together: right for every model, padding none."""
        queue = sorted(sequences, key=lambda s: (len(s.tokens), len(s.targets)))
        while queue:
            most = max(1, min(PLAIN_ROWS, ACCELERATOR_TREE_TOKENS // len(queue[0].tokens)))
            batch = [s for s in queue[:most] if len(s.tokens) == len(queue[0].tokens)]
            del queue[: len(batch)]
            keep = max(len(s.targets) for s in batch)
            extra = {"logits_to_keep": keep} if "logits_to_keep" in self._accepted else {}
            ids = torch.tensor([s.tokens for s in batch], device=self._device)
            self.tokens += ids.numel()
            logits = self._model(input_ids=ids, use_cache=False, **extra).logits[:, -keep:]
            for row, sequence in enumerate(batch):
                places = list(range(keep - len(sequence.targets), keep))
                yield sequence.index, _scores(logits[row], [sequence], [places])[0]


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences have in common at their beginning."""
    length = min(len(one), len(other))
    if one[:length] == other[:length]:
        return length
    low, high = 0, length  # one[:low] is common, one[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle)
    return low


def families(sequences: list[_Sequence], tree_tokens: int) -> Iterator[tuple[int, list[_Sequence]]]:
    """Split sorted sequences into (length of the common beginning to keep, sequences).

    A family has a beginning of its own only where it is long and the family fills more than one tree; all others
    follow one another with 0.
    """
    loose: list[_Sequence] = []
    begin = 0
    while begin < len(sequences):
        end, shared = begin + 1, len(sequences[begin].tokens)
        tokens = shared
        while end < len(sequences):
            common = common_length(sequences[end - 1].tokens, sequences[end].tokens)
            if min(shared, common) < max(LEAST_PREFIX, shared // 2):
                break
            shared = min(shared, common)
            tokens += len(sequences[end].tokens) - common
            end += 1
        family = sequences[begin:end]
        shared = min(shared, min(s.first for s in family))
        if shared >= LEAST_PREFIX and tokens > tree_tokens:
            yield shared, family
        else:
            loose += family
        begin = end
    if loose:
        yield 0, loose


def _branch(prefix: DynamicCache) -> DynamicCache:
    """The same keys and values in a cache that can grow by itself: growing makes new tensors."""
    branch = copy.copy(prefix)
    branch.layers = [copy.copy(layer) for layer in prefix.layers]
    return branch


def _scores(logits: torch.Tensor, sequences: Sequence[_Sequence], rows: list[list[int]]) -> list[Score]:
    """logits: [rows, vocabulary]; `rows[i]` predict the targets of sequence i."""
    logits = logits.float()
    norms = logits.logsumexp(dim=-1)
    likeliest = logits.argmax(dim=-1)
    flat = torch.tensor([row for places in rows for row in places], device=logits.device)
    targets = torch.tensor([target for s in sequences for target in s.targets], device=logits.device)
    logprobs = (logits[flat, targets] - norms[flat]).double().cpu()
    greedy = (likeliest[flat] == targets).cpu()
    scores, at = [], 0
    for places in rows:
        end = at + len(places)
        scores.append(Score(float(logprobs[at:end].sum()), bool(greedy[at:end].all())))
        at = end
    return scores
