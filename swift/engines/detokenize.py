"""Token ids to text piece by piece, and the search for stop texts in it.

Promises: the pieces joined are `tokenizer.decode` of all the ids at once (where they are whole UTF-8: decoders differ
on what a broken byte does to its neighbours), no piece ends inside a character, and nothing of a stop text is ever
handed out. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no whole character


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of an answer's ids, special tokens included."""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


class Detokenizer:
    """Feed tokens one by one; `hidden` ids (end and padding tokens) leave no text."""

    def __init__(self, tokenizer: Any, hidden: Iterable[int] = ()):
        self._tokenizer = tokenizer
        self._hidden = frozenset(hidden)
        self._context: list[int] = []  # tokens already handed out that the next piece is decoded after
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that became certain with this token; "" while a character is incomplete."""
        if token_id in self._hidden:
            return ""
        self._pending.append(token_id)
        text = self._pending_text()
        if not text or text.endswith(BROKEN):
            return ""
        self._context, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """What is left at the end, broken characters included."""
        text = self._pending_text() if self._pending else ""
        self._context, self._pending = self._pending, []
        return text

    def _pending_text(self) -> str:
        before = decode(self._tokenizer, self._context) if self._context else ""
        return decode(self._tokenizer, self._context + self._pending)[len(before) :]


class StopSearch:
    """Passes text through, holding back as much of its end as could be the start of a stop text."""

    def __init__(self, stops: Iterable[str]):
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that may be shown; once `found` is set, the part before the stop text and nothing more."""
        if not self._stops:
            return text
        self._held += text
        places = [(self._held.find(stop), -len(stop), stop) for stop in self._stops if stop in self._held]
        if places:
            at, _, self.found = min(places)
            shown, self._held = self._held[:at], ""
            return shown
        keep = max(self._overlap(stop) for stop in self._stops)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        longest = min(len(stop) - 1, len(self._held))
        return next((n for n in range(longest, 0, -1) if self._held.endswith(stop[:n])), 0)

    def flush(self) -> str:
        shown, self._held = self._held, ""
        return shown
