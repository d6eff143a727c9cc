"""A stand-in for the chat encoder: one token per character, the assistant's text and an end token are learned."""

from __future__ import annotations

from swift.chat import IGNORED, Encoded, RowDropped
from swift.errors import TemplateError

END = 1


class CharacterEncoder:
    """`max_length` cuts on the right; a row that says "refuse" is a TemplateError, one that says "drop" is too long."""

    def __init__(self, max_length: int | None = None):
        self.max_length = max_length

    def encode_batch(self, rows):
        return [self.outcome(row) for row in rows]

    def outcome(self, row):
        ids, labels = [], []
        for message in row.get("messages") or [{"role": "assistant", "content": row["text"]}]:
            text = [ord(c) + 2 for c in message["content"]] + [END]
            ids += text
            learned = message["role"] == "assistant" and message.get("loss", True)
            labels += text if learned else [IGNORED] * len(text)
        text = str(row)
        if "refuse" in text:
            return TemplateError(f"message {len(ids)} can't be encoded: 'x'")
        if "drop" in text:
            return RowDropped("too_long", len(ids), 5)
        cut = self.max_length is not None and len(ids) > self.max_length
        if cut:
            ids, labels = ids[: self.max_length], labels[: self.max_length]
        if "parts" in text:
            return [Encoded.of(ids, labels, notes=("part",)), Encoded.of(ids[:-1], labels[:-1], notes=("part",))]
        scale = [2.0 if label != IGNORED else 0.0 for label in labels] if "scale" in text else None
        return [Encoded.of(ids, labels, scale, truncated=cut, lost_end=cut and labels[-1] != IGNORED)]
