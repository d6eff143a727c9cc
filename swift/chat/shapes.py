"""Rows that differ in their texts alone are planned once: the shape of a conversation, and its tokens by segments.

A *shape* is what the encoder's own planning gave for symbols in place of the texts (swift.chat.symbols): constant text,
places for the texts, and the learned ranges, good for every row of the same roles for which the template's questions
have the same answers. Its text is cut at control tokens that no other added token overlaps; a tokenizer works on the
stretches between them one by one, so constant stretches are tokenized once and the others alone, without offsets. The
first rows of every shape are encoded the plain way too and must give the same; a shape that doesn't is given up.

What has no shape (tools, reasoning, media, templates that rewrite texts) is encoded the plain way, by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from swift.chat.label import Planned, label
from swift.chat.segments import Segments, assembled, segmented
from swift.chat.symbols import Guard, Origin, Recorder, SymbolicTemplate, Untraceable, fills, is_symbolic, split
from swift.chat.tokens import Tokens
from swift.errors import DataError, TemplateError

PROOFS = 2  # rows of each shape that are also encoded the plain way
VARIANTS = 8  # shapes of one sequence of roles
SEQUENCES = 2000

Plan = Callable[[Mapping[str, Any], SymbolicTemplate], "list[Planned]"]


@dataclass
class Shape:
    """plan: the planned row with symbols in its text. segments: None where spans don't end at control tokens."""

    plan: Planned
    origins: list[Origin]
    guards: list[Guard]
    clock: dict[str, str]
    segments: Segments | None
    proofs: int = PROOFS
    pieces: list[str | int] = field(init=False)

    def __post_init__(self) -> None:
        self.pieces = split(self.plan.text)

    def texts(self, given: Sequence[str]) -> list[str] | None:
        """The texts of all symbols, None when the shape isn't this row's."""
        now = datetime.now() if self.clock else None
        if any(now.strftime(format) != answer for format, answer in self.clock.items()):
            return None
        return fills(self.origins, self.guards, given)

    def planned(self, texts: Sequence[str]) -> Planned:
        """The row as plain planning gives it."""
        starts, at, text = [], 0, []
        for piece in self.pieces:
            starts.append(at)
            text.append(piece if isinstance(piece, str) else texts[piece])
            at += len(text[-1])
        lengths = [len(piece) if isinstance(piece, str) else 1 for piece in self.pieces]

        def moved(position: int) -> int:
            for start, length in zip(starts, lengths, strict=True):
                if position < length:
                    return start + position
                position -= length
            return at

        spans = tuple(((moved(a), moved(b)), weight) for (a, b), weight in self.plan.spans)
        return replace(self.plan, text="".join(text), spans=spans)


@dataclass(frozen=True)
class Match:
    """A row that has a shape, and the texts of its symbols."""

    shape: Shape
    texts: list[str]

    def planned(self) -> Planned:
        return self.shape.planned(self.texts)


class Shapes:
    """The shapes of an encoder's rows. plan: its planning with another template (raises what planning raises)."""

    def __init__(self, source: str, plan: Plan, tokens: Tokens, closers: Sequence[str]):
        self._plan, self._tokens, self._closers = plan, tokens, tuple(closers)
        self._template = SymbolicTemplate(source)
        self._known: dict[tuple[Any, ...], list[Shape]] = {}
        self._failures: dict[tuple[Any, ...], int] = {}

    def find(self, row: Mapping[str, Any], plain: Callable[[Mapping[str, Any]], list[Planned]]) -> Match | None:
        """The row's shape, made if it is new. plain: plain planning, for the proof."""
        read = None if self._template.obstacle else _read(row)
        if read is None:
            return None
        key, given = read
        shapes = self._known.get(key)
        if shapes is None:
            if len(self._known) >= SEQUENCES:
                return None
            shapes = self._known[key] = []
        for shape in shapes:
            texts = shape.texts(given)
            if texts is not None:
                break
        else:
            shape = self._new(key, row, given)
            texts = shape and shape.texts(given)
            if texts is None:
                self._failures[key] = self._failures.get(key, 0) + 1
                return None
            shapes.append(shape)
        if shape.proofs and not self._proven(shape, texts, row, plain):
            shapes.remove(shape)
            self._failures[key] = VARIANTS
            return None
        return Match(shape, texts)

    def _new(self, key: tuple[Any, ...], row: Mapping[str, Any], given: list[str]) -> Shape | None:
        if self._failures.get(key, 0) + len(self._known[key]) >= VARIANTS:
            return None
        recorder = Recorder(given)
        messages = [
            {**message, "content": symbol} for message, symbol in zip(row["messages"], recorder.symbols(), strict=True)
        ]
        self._template.clock.answers.clear()
        try:
            plans = self._plan({**row, "messages": messages}, self._template)
        except (TemplateError, DataError, Untraceable):
            plans = []
        if recorder.failed or len(plans) != 1 or plans[0].notes or not self._closed(plans[0]):
            return None
        guards = [Guard(*asked, answer) for asked, answer in recorder.guards.items()]
        for i, message in enumerate(row["messages"]):
            if message["role"] == "assistant":  # a text that itself ends like a turn is looked at the plain way
                guards += [Guard(i, "ends", closer, False) for closer in self._closers]
        segments = segmented(plans[0], self._tokens)
        return Shape(plans[0], recorder.origins, guards, dict(self._template.clock.answers), segments)

    def _closed(self, plan: Planned) -> bool:
        """Every learned range ends with constant text, so that no text decides where."""
        return all(end and not is_symbolic(plan.text[end - 1]) for (_, end), _ in plan.spans)

    def _proven(self, shape: Shape, texts: list[str], row: Mapping[str, Any], plain: Any) -> bool:
        shape.proofs -= 1
        try:
            found = plain(row)
        except (TemplateError, DataError):
            return False
        planned = shape.planned(texts)
        if found != [planned]:
            return False
        if shape.segments is not None:
            (made,) = assembled([(shape.segments, texts)], self._tokens)
            whole = self._tokens.tokenize([planned.text], [False])[0]
            if made is not None and made != label(planned, whole, self._tokens):
                shape.segments = None
        return True


def _read(row: Mapping[str, Any]) -> tuple[tuple[Any, ...], list[str]] | None:
    """What a shape is looked up by, and the texts; None for a row that is more than roles and texts."""
    if len(row) != 1 or "messages" not in row:
        return None
    key: list[Any] = []
    texts = []
    for message in row["messages"]:
        if type(message) is not dict or type(content := message.get("content")) is not str:
            return None
        if type(role := message.get("role")) is not str:
            return None
        texts.append(content)
        if len(message) == 2:
            key.append(role)
        elif message.keys() <= _PLAIN_KEYS:
            key.append((role, str(message.get("loss")), str(message.get("loss_scale"))))
        else:
            return None
    return tuple(key), texts


_PLAIN_KEYS = {"role", "content", "loss", "loss_scale"}
