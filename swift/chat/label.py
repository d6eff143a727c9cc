"""Tokens and learned character spans -> `Encoded` rows, cut to a maximum length in a chosen way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from swift.chat.encoded import Encoded, RowDropped
from swift.chat.render import Span
from swift.chat.tokens import Tokenized, Tokens


@dataclass(frozen=True)
class Planned:
    """A text to tokenize and the weighted character spans to learn; one of weight 0 is a piece of a turn left out.

    raw: text without chat: tokenized with the tokenizer's own special tokens, learned as a whole, closed with eos.
    add_end: eos is added after the last token, for a template that leaves the last turn open.
    media: images, videos and audio of the row, by the processor's argument names.
    """

    text: str
    spans: tuple[tuple[Span, float], ...] = ()
    notes: tuple[str, ...] = ()
    raw: bool = False
    add_end: bool = False
    media: Mapping[str, list[Any]] | None = None

    @cached_property
    def weighted(self) -> bool:
        """Whether a weight is other than 0 and 1."""
        return any(weight not in (0.0, 1.0) for _, weight in self.spans)

    @cached_property
    def goes_on(self) -> tuple[bool, ...]:
        """For each span, whether the next one is another piece of the same turn."""
        starts = [start for (start, _), _ in self.spans[1:]] + [-1]
        return tuple(end == start for ((_, end), _), start in zip(self.spans, starts, strict=False))


def label(planned: Planned, tokenized: Tokenized, tokens: Tokens) -> tuple[Encoded, list[int]]:
    """The whole row, and the token positions at which learned turns end."""
    ids, eos = tokenized.ids, tokens.tokenizer.eos_token_id
    if planned.raw:
        ids = ids if eos is None or ids[-1:] == [eos] else [*ids, eos]
        return Encoded(np.array(ids, np.int32), np.ones(len(ids), np.bool_)), [len(ids)]
    found = [tokens.positions(tokenized, span) for span, _ in planned.spans]
    straddled = any(reached and not (i and planned.goes_on[i - 1]) for i, (_, _, reached) in enumerate(found))
    notes = (*planned.notes, "straddled") if straddled else planned.notes
    ranges = [(first, last) for first, last, _ in found]
    if planned.add_end and eos is not None:
        ids = [*ids, eos]
        ranges[-1] = (ranges[-1][0], len(ids))
    learned = np.zeros(len(ids), np.bool_)
    scales = np.zeros(len(ids)) if planned.weighted else None
    for (first, last), (_, weight) in zip(ranges, planned.spans, strict=True):
        learned[first:last] = bool(weight)
        if scales is not None:
            scales[first:last] = weight
    ends = [last for (_, last), goes_on in zip(ranges, planned.goes_on, strict=True) if not goes_on]
    return Encoded(np.array(ids, np.int32), learned, scales, notes=notes), ends


def pieces(whole: Encoded, ends: Sequence[int], limit: int | None, strategy: str) -> list[Encoded]:
    """The row within `limit` tokens: itself, or what the strategy makes of it. Raises RowDropped.

    delete: nothing, and so for a row with media. left, right: the side that is cut away. split: all of it, in pieces.
    """
    length = whole.length
    if limit is None or length <= limit:
        return [whole]
    if strategy == "delete" or whole.media is not None:
        raise RowDropped("too_long", length, limit)
    cuts = {
        "left": [(length - limit, length)],
        "right": [(0, limit)],
        "split": [(at, min(at + limit, length)) for at in range(0, length, limit)],
    }[strategy]
    found = [piece for cut in cuts if (piece := _cut(whole, cut, ends)).trained]
    if not found:
        raise RowDropped("nothing_left", length, limit)
    return found


def _cut(whole: Encoded, cut: Span, ends: Sequence[int]) -> Encoded:
    """The tokens [start, stop) of a row; it loses an end where a learned turn goes on behind `stop`."""
    start, stop = cut
    goes_on = stop < whole.length and bool(whole.learned[stop]) and stop not in ends
    return replace(
        whole,
        ids=whole.ids[start:stop],
        learned=whole.learned[start:stop],
        scales=None if whole.scales is None else whole.scales[start:stop],
        truncated=True,
        lost_end=goes_on,
    )
