"""What a model learns from a row, made visible: the row's full text with the learned parts coloured.

Promises: every character of the encoded row is shown, special tokens included, and coloured exactly where its label is
learned; a row that can't be encoded shows the reason. The text is made safe: control characters and markup are shown,
not obeyed.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence

from swift.chat import ChatEncoder, render_mask
from swift.data.rows import Row
from swift.errors import SwiftError

GREEN, DIM, RESET = "\033[32m", "\033[2m", "\033[0m"
PLAIN_MARKS = ("[[", "]]")  # around what is learned, where there are no colours
_PAGE = """<!doctype html><meta charset="utf-8"><title>What is learned</title><style>
body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
pre{white-space:pre-wrap;overflow-wrap:anywhere;background:#f6f6f6;padding:.8em;border-radius:4px;color:#777}
mark{background:#c9eec9;color:#064d06}p.error{color:#a00}</style><h1>What is learned</h1>
<p>Coloured: learned. Grey: read only.</p>
"""


def mask_view(encoder: ChatEncoder, rows: Sequence[Row], n: int, colour: bool = True) -> str:
    """The first `n` rows for the terminal; without `colour` the learned parts stand between [[ and ]]."""
    lines = []
    for row, parts, error in _shown(encoder, rows, n):
        lines.append(f"--- {row.source}")
        if error is not None:
            lines.append(f"can't be encoded: {error.what}")
        lines.append("".join(_terminal(_visible(text), learned, colour) for text, learned in parts))
    return "\n".join(lines)


def mask_html(encoder: ChatEncoder, rows: Sequence[Row], n: int) -> str:
    """The first `n` rows as one HTML page."""
    page = [_PAGE]
    for row, parts, error in _shown(encoder, rows, n):
        page.append(f"<h2>{html.escape(str(row.source))}</h2>")
        if error is not None:
            page.append(f'<p class="error">can\'t be encoded: {html.escape(error.what)}</p>')
            continue
        texts = ((html.escape(_visible(text)), learned) for text, learned in parts)
        page.append("<pre>" + "".join(f"<mark>{t}</mark>" if learned else t for t, learned in texts) + "</pre>")
    return "\n".join(page) + "\n"


def _shown(
    encoder: ChatEncoder, rows: Sequence[Row], n: int
) -> Iterator[tuple[Row, list[tuple[str, bool]], SwiftError | None]]:
    for row in rows[:n]:
        try:
            yield row, render_mask(encoder, row), None
        except SwiftError as error:
            yield row, [], error


def _terminal(text: str, learned: bool, colour: bool) -> str:
    if colour:
        return (GREEN if learned else DIM) + text + RESET
    return PLAIN_MARKS[0] + text + PLAIN_MARKS[1] if learned else text


def _visible(text: str) -> str:
    """Control characters (an escape sequence in the data, say) as \\xNN; line ends and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in text)
