"""What a model learns from a row, made visible: the example's full text with the learned parts coloured.

Promises: the tokens shown are those that are trained on, special tokens included, cut as they are cut, and coloured
exactly where their label is learned. The text is made safe: control characters and markup are shown, not obeyed.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from swift.chat import IGNORED
from swift.data.encoded import EncodedDataset
from swift.i18n.said import said

GREEN, DIM, RESET = "\033[32m", "\033[2m", "\033[0m"
PLAIN_MARKS = ("[[", "]]")  # around what is learned, where there are no colours
STYLE = """
pre.mask{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f6f6;padding:.8em;border-radius:4px;color:#777}
pre.mask mark{background:#c9eec9;color:#064d06}
"""


@dataclass(frozen=True)
class Shown:
    """One example for the viewer: `parts` are its text in order, each learned or not."""

    place: str
    tokens: int
    trained: int
    parts: tuple[tuple[str, bool], ...]

    @property
    def title(self) -> str:
        return said(f"{self.place}: {self.tokens} tokens, {self.trained} learned")


def shown(
    encoded: EncodedDataset, n: int, decode: Callable[[Sequence[int]], str], source: Callable[[int], str]
) -> Iterator[Shown]:
    """The first `n` examples; `decode` makes text of ids, `source` the place of a row id."""
    for i in range(min(n, len(encoded))):
        example = encoded[i]
        pairs = zip(example["input_ids"].tolist(), example["labels"].tolist(), strict=True)
        groups = groupby(pairs, key=lambda pair: pair[1] != IGNORED)
        parts = tuple((decode([token for token, _ in group]), learned) for learned, group in groups)
        place = source(example["row_id"])
        yield Shown(place, len(example["input_ids"]), int(encoded.trained[i]), parts)


def mask_text(examples: Sequence[Shown], colour: bool = True) -> str:
    """For the terminal; without `colour` the learned parts stand between [[ and ]]."""
    lines = []
    for example in examples:
        lines.append(f"--- {example.title}")
        lines.append("".join(_terminal(_visible(text), learned, colour) for text, learned in example.parts))
    return "\n".join(lines)


def mask_html(examples: Sequence[Shown]) -> str:
    """A part of the report's HTML page; it needs `STYLE`."""
    page = ["<h2>What is learned</h2><p>Coloured: learned. Grey: read only.</p>"] if examples else []
    for example in examples:
        page.append(f"<h3>{html.escape(example.title)}</h3>")
        texts = ((html.escape(_visible(text)), learned) for text, learned in example.parts)
        marked = "".join(f"<mark>{text}</mark>" if learned else text for text, learned in texts)
        page.append(f'<pre class="mask">{marked}</pre>')
    return "\n".join(page)


def _terminal(text: str, learned: bool, colour: bool) -> str:
    if colour:
        return (GREEN if learned else DIM) + text + RESET
    return PLAIN_MARKS[0] + text + PLAIN_MARKS[1] if learned else text


def _visible(text: str) -> str:
    """Control characters (an escape sequence in the data, say) as \\xNN; line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
