"""What is learned, and with which weight: `--loss_scale` by name.

A scheme is a base (which turns) and rules (which words of a turn): "default", "last_round+hermes",
"ignore_empty_think+react". Rules are data (catalog/loss_scale/*.toml, or a JSON file in ms-swift's form):
- a keyword has two weights: its own, and that of what follows it up to the next keyword;
- a pattern (a regular expression) has one weight: that of what it matches;
- a question has one weight: that of the whole reply to a user's message that holds it.
Where rules meet, their weights multiply. Knows text, no tokens and no messages.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.catalog import loss_scale_names, loss_scale_rules
from swift.chat.render import Span
from swift.errors import UsageError

BASES = ("default", "last_round", "all")
FLAG = "--loss_scale"


@dataclass(frozen=True)
class Rules:
    """One name's rules; patterns as their source, so that a scheme can be printed and compared."""

    keywords: tuple[tuple[str, tuple[float, float]], ...] = ()
    patterns: tuple[tuple[str, float], ...] = ()
    questions: tuple[tuple[str, float], ...] = ()

    def pieces(self, text: str, question: str) -> Iterator[tuple[int, int, float]]:
        """The parts of a reply that don't weigh 1: (start, end, weight), in order."""
        for asked, weight in self.questions:
            if asked in question:
                yield 0, len(text), weight
                return
        yield from self._by_keywords(text)
        for pattern, weight in self.patterns:
            for found in re.finditer(pattern, text, re.DOTALL):
                yield found.start(), found.end(), weight

    def _by_keywords(self, text: str) -> Iterator[tuple[int, int, float]]:
        weights = dict(self.keywords)
        if not weights:
            return
        longest_first = sorted(weights, key=len, reverse=True)
        found = list(re.finditer("|".join(map(re.escape, longest_first)), text))
        for i, match in enumerate(found):
            own, following = weights[match[0]]
            stop = found[i + 1].start() if i + 1 < len(found) else len(text)
            yield match.start(), match.end(), own
            yield match.end(), stop, following


@dataclass(frozen=True)
class Scheme:
    """`base`: of BASES. `rules`: those of each further name."""

    base: str = "default"
    rules: tuple[Rules, ...] = ()

    def turn(
        self, text: str, spans: Sequence[Span], closers: Sequence[str] = (), weight: float = 1.0, question: str = ""
    ) -> list[tuple[Span, float]]:
        """The spans of one turn in pieces with their weights; the text that ends the turn keeps the turn's own."""
        end = spans[-1][1]
        body = end - max((len(one) for one in closers if text[spans[-1][0] : end].endswith(one)), default=0)
        found = []
        for start, stop in [*spans[:-1], (spans[-1][0], body)]:
            pieces = self.weigh(text[start:stop], question)
            found += [((start + a, start + b), weight * scale) for a, b, scale in pieces]
        return [*found, ((body, end), weight)] if body < end else found

    def weigh(self, text: str, question: str) -> list[tuple[int, int, float]]:
        """`text` cut where the weight changes: (start, end, weight) without gaps; [] for an empty text."""
        found = [list(rules.pieces(text, question)) for rules in self.rules]
        borders = sorted({0, len(text), *(at for own in found for start, end, _ in own for at in (start, end))})
        pieces: list[tuple[int, int, float]] = []
        for start, end in zip(borders, borders[1:], strict=False):
            weight = 1.0 * math.prod(w for own in found for a, b, w in own if a <= start and end <= b)
            if pieces and pieces[-1][2] == weight:
                pieces[-1] = (pieces[-1][0], end, weight)
            else:
                pieces.append((start, end, weight))
        return pieces


def parse_scheme(text: str) -> Scheme:
    """The scheme of `--loss_scale`: names joined by "+", at most one base, in any order. Raises UsageError."""
    bases, rules = [], []
    for name in text.split("+"):
        if name in BASES:
            bases.append(name)
        elif name == "base":  # ms-swift's name for "no rules"
            continue
        elif name in loss_scale_names():
            rules.append(_rules(loss_scale_rules(name), name))
        elif name.endswith(".json"):
            rules.append(_rules(_from_file(name), name))
        else:
            known = [*BASES, *loss_scale_names()]
            near = difflib.get_close_matches(name, known, 1)
            fix = f"did you mean {near[0]}? " if near else ""
            fix += f"one or more of {', '.join(known)} joined by +, or a JSON file"
            raise UsageError(f"no scheme {name!r}", where=f"{FLAG} {text}", fix=fix)
    if len(bases) > 1:
        raise UsageError(f"{' and '.join(bases)} exclude each other", where=f"{FLAG} {text}", fix="keep one of them")
    return Scheme(bases[0] if bases else "default", tuple(rules))


def _from_file(name: str) -> dict[str, Any]:
    """ms-swift's form: {word: [own, following], pattern: [weight]}, under "response" where there is a "query"."""
    path = Path(name).expanduser()
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError("no such file", where=f"{FLAG} {name}", fix="give the file's path") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"not readable as JSON: {error}", where=f"{FLAG} {name}") from None
    if not isinstance(given, dict):
        raise UsageError("not a JSON object", where=f"{FLAG} {name}", fix='{"Action:": [2.0, 2.0]}')
    response = given.get("response", given) if "query" in given or "response" in given else given
    if not isinstance(response, dict) or not isinstance(given.get("query", {}), dict):
        raise UsageError('"response" and "query" are objects', where=f"{FLAG} {name}")
    lists = {word: weights if isinstance(weights, list) else [weights] for word, weights in response.items()}
    return {
        "keywords": {word: weights for word, weights in lists.items() if len(weights) != 1},
        "patterns": {word: weights[0] for word, weights in lists.items() if len(weights) == 1},
        "questions": {word: w[0] if isinstance(w, list) and w else w for word, w in given.get("query", {}).items()},
    }


def _rules(table: Mapping[str, Any], name: str) -> Rules:
    """The checked rules of a table of `keywords`, `patterns` and `questions`."""
    keywords, patterns = table.get("keywords", {}), table.get("patterns", {})
    for word, weights in keywords.items():
        if not isinstance(weights, list) or len(weights) != 2:
            raise UsageError(f"{word!r} has {weights!r}, not two weights", where=f"{FLAG} {name}")
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UsageError(f"{pattern!r} is no regular expression: {error}", where=f"{FLAG} {name}") from None
    questions = table.get("questions", {})
    for weight in (*(w for pair in keywords.values() for w in pair), *patterns.values(), *questions.values()):
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
            raise UsageError(f"the weight {weight!r} is no number from 0 on", where=f"{FLAG} {name}")
    return Rules(
        tuple((word, (float(own), float(following))) for word, (own, following) in keywords.items()),
        tuple((pattern, float(weight)) for pattern, weight in patterns.items()),
        tuple((question, float(weight)) for question, weight in questions.items()),
    )
