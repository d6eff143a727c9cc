"""Rows of known shapes -> ids and learned tokens, a whole batch in a few array operations.

A shape's text is cut at control tokens into *segments*. The constant ones were tokenized when the shape was made; those
with texts in them are tokenized here, all rows' together, and one gather puts the tokens of a batch in order. Where a
token reaches over the border at which learning starts, the row is given back to be tokenized in one piece.

What it doesn't know: templates, and whether a shape is right (swift.chat.shapes proves that).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from swift.chat.encoded import Encoded
from swift.chat.label import Planned
from swift.chat.render import Span
from swift.chat.symbols import is_symbolic, split
from swift.chat.tokens import Tokens

# ids and learned ranges of a row as an example, and the token positions at which learned turns end
Made = tuple[Encoded, list[int]]


@dataclass(frozen=True)
class Border:
    """Where learning starts: in segment `segment`, behind the tokens `header` int32 [...] (its constant beginning).
    end: the number of the segment before which it ends. goes_on: the next one is another piece of the same turn."""

    segment: int
    header: np.ndarray
    end: int
    weight: float
    goes_on: bool


@dataclass(frozen=True)
class Segments:
    """constant: the ids int32 [...] of all constant segments one behind the other; starts, lengths int64 [segments]:
    where each stands in it, 0 for a variable one. variable: the numbers of the variable segments, whose constant texts
    and numbers of symbols are `pieces`."""

    constant: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    variable: list[int]
    pieces: list[tuple[str | int, ...]]
    borders: list[Border]
    weighted: bool

    def texts(self, texts: Sequence[str]) -> list[str]:
        """What is to be tokenized of a row of which these are the symbols' texts."""
        return [
            texts[pieces[0]] if len(pieces) == 1 else "".join([p if isinstance(p, str) else texts[p] for p in pieces])
            for pieces in self.pieces
        ]


def segmented(plan: Planned, tokens: Tokens) -> Segments | None:
    """A shape's text cut at control tokens. None where the tokenizer or a span doesn't allow it."""
    cuts = tokens.controls(plan.text)
    if cuts is None:
        return None
    where: list[Span] = []
    at = 0
    for start, stop in [*cuts, (len(plan.text), len(plan.text))]:
        where += [(a, b) for a, b in ((at, start), (start, stop)) if a < b]
        at = stop
    borders = []
    ends = {b: i + 1 for i, (_, b) in enumerate(where)}
    for ((start, end), weight), goes_on in zip(plan.spans, plan.goes_on, strict=True):
        segment = next(i for i, (a, b) in enumerate(where) if a <= start < b)
        header = plan.text[where[segment][0] : start]
        if end not in ends or is_symbolic(header):
            return None
        ids = np.array(tokens.ids(header) if header else [], np.int32)
        borders.append(Border(segment, ids, ends[end], weight, goes_on))
    parts = [tuple(split(plan.text[a:b])) for a, b in where]
    constant = [None if is_symbolic(plan.text[a:b]) else tokens.ids(plan.text[a:b]) for a, b in where]
    eos = tokens.tokenizer.eos_token_id
    if plan.add_end and eos is not None:
        constant.append([eos])
        borders[-1] = replace(borders[-1], end=len(constant))
    lengths = np.array([0 if ids is None else len(ids) for ids in constant], np.int64)
    variable = [i for i, ids in enumerate(constant) if ids is None]
    return Segments(
        np.array([token for ids in constant for token in ids or ()], np.int32),
        np.cumsum(lengths) - lengths,
        lengths,
        variable,
        [parts[i] for i in variable],
        borders,
        plan.weighted,
    )


def assembled(rows: Sequence[tuple[Segments, Sequence[str]]], tokens: Tokens) -> list[Made | None]:
    """Rows, given as their segments and the texts of their symbols; None for one that has to be tokenized in one
    piece."""
    texts: list[str] = []
    groups: dict[int, tuple[Segments, list[int], list[int]]] = {}  # rows of the same segments, and their first texts
    for i, (segments, given) in enumerate(rows):
        _, numbers, firsts = groups.setdefault(id(segments), (segments, [], []))
        numbers.append(i)
        firsts.append(len(texts))
        texts += segments.texts(given)
    found: list[Made | None] = [None] * len(rows)
    flat, starts, stops = tokens.separate(texts)
    source = np.concatenate([flat, *(segments.constant for segments, _, _ in groups.values())])
    constant = len(flat)
    for segments, numbers, firsts in groups.values():
        where = np.tile(segments.starts + constant, (len(numbers), 1))
        lengths = np.tile(segments.lengths, (len(numbers), 1))
        given = np.array(firsts)[:, None] + np.arange(len(segments.variable))
        where[:, segments.variable] = starts[given]
        lengths[:, segments.variable] = stops[given] - starts[given]
        for i, made in zip(numbers, _gathered(segments, source, where, lengths), strict=True):
            found[i] = made
        constant += len(segments.constant)
    return found


def _gathered(segments: Segments, source: np.ndarray, where: np.ndarray, lengths: np.ndarray) -> list[Made | None]:
    """Rows of the same segments. source int32 [...]: all tokens; where, lengths int64 [rows, segments]: theirs."""
    stops = np.cumsum(lengths).reshape(lengths.shape)
    starts = stops - lengths
    ids = source[np.repeat((where - starts).ravel(), lengths.ravel()) + np.arange(stops[-1, -1])]
    learned = np.zeros(len(ids), np.bool_)
    scales = np.zeros(len(ids)) if segments.weighted else None
    clean = np.ones(len(where), np.bool_)
    for border in segments.borders:
        size = len(border.header)
        begins = starts[:, border.segment]
        if size:
            clean &= lengths[:, border.segment] >= size
            places = np.minimum(begins[:, None] + np.arange(size), len(ids) - 1)
            clean &= (ids[places] == border.header).all(axis=1)
        for first, last in zip((begins + size).tolist(), stops[:, border.end - 1].tolist(), strict=True):
            learned[first:last] = bool(border.weight)
            if scales is not None:
                scales[first:last] = border.weight
    row_starts = starts[:, 0].tolist()
    ends = stops[:, [border.end - 1 for border in segments.borders if not border.goes_on]] - starts[:, :1]
    made = zip(clean.tolist(), row_starts, stops[:, -1].tolist(), ends.tolist(), strict=True)
    return [
        (Encoded(ids[a:b], learned[a:b], None if scales is None else scales[a:b]), turns) if good else None
        for good, a, b, turns in made
    ]
