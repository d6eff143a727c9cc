"""How a text becomes token ids for a model that embeds, ranks or classifies.

Promises: a checkpoint that `swift sft` trained reads texts as its training wrote them; any other reads the plain text
with the tokenizer's own special tokens, a pair as the tokenizer pairs texts. Thread-safe.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Protocol

from swift.engines.protocol import RequestError, Text


class Texts(Protocol):
    """`limit`: how many tokens a text may have; None: unknown."""

    limit: int | None
    tokenizer: Any

    def one(self, text: str, most: int | None = None) -> Text:
        """`most`: tokens that the text is cut to."""
        ...

    def pair(self, first: str, second: str, most: int | None = None) -> Text: ...

    def row(self, row: Mapping[str, Any]) -> Text:
        """Of a data row's messages."""
        ...


class PlainTexts:
    """`prompt` begins every text; `lower`: in small letters."""

    def __init__(self, tokenizer: Any, limit: int | None, prompt: str = "", lower: bool = False):
        self.limit, self.tokenizer, self._prompt, self._lower = limit, tokenizer, prompt, lower
        self._lock = threading.Lock()

    def one(self, text: str, most: int | None = None) -> Text:
        return self._encoded(most, self._prompt + text)

    def pair(self, first: str, second: str, most: int | None = None) -> Text:
        return self._encoded(most, first, second)

    def row(self, row: Mapping[str, Any]) -> Text:
        contents = [message.get("content") for message in row["messages"]]
        if row.get("tools") or not all(isinstance(content, str) for content in contents):
            raise RequestError("this model reads plain text only")
        return self.one("".join(contents))

    def _encoded(self, most: int | None, *texts: str) -> Text:
        words = [text.lower() if self._lower else text for text in texts]
        with self._lock:
            found = self.tokenizer(*words, verbose=False, truncation=most is not None, max_length=most)
        halves = found.get("token_type_ids") if len(texts) > 1 else None
        return Text(tuple(found["input_ids"]), tuple(halves) if halves else None)


class ChatTexts:
    """Through the chat template, as `swift sft --task_type ...` does: a text is a question, a pair a question with its
    answer.
    """

    def __init__(self, encoder: Any, tokenizer: Any, limit: int | None):
        self.limit, self.tokenizer, self._encoder = limit, tokenizer, encoder
        self._lock = threading.Lock()

    def one(self, text: str, most: int | None = None) -> Text:
        return shortened(self.row({"messages": [{"role": "user", "content": text}]}), most)

    def pair(self, first: str, second: str, most: int | None = None) -> Text:
        from swift.data.heads import ranked

        query = {"messages": [{"role": "user", "content": first}]}
        return shortened(self.row(ranked(query, [{"role": "assistant", "content": second}])), most)

    def row(self, row: Mapping[str, Any]) -> Text:
        with self._lock:
            return Text(tuple(self._encoder.read_only(row)))


def shortened(text: Text, most: int | None, end: str = "right") -> Text:
    """At most `most` tokens of it: its first ones, or with `end` "left" its last."""
    if most is None or len(text.ids) <= most:
        return text
    part = slice(0, most) if end == "right" else slice(len(text.ids) - most, None)
    return Text(text.ids[part], text.halves[part] if text.halves else None)
