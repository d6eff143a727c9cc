"""Text without a chat template (`swift pt`, `--use_chat_template false`): a row is its texts one after the other.

Promises: the ids are the tokenizer's own for the joined text, with its special tokens, and the end-of-text token after
it; every token is learned. `swift infer --use_chat_template false` gives a model the same ids to continue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from swift.chat import ChatEncoder, Encoded
from swift.errors import DataError, SwiftError


class PlainEncoder:
    """Rows of messages as rows of text, for `encoder` to encode."""

    processor = None

    def __init__(self, encoder: ChatEncoder, system: str | None = None):
        self.encoder, self.system = encoder, system or ""

    def decode(self, ids: Sequence[int]) -> str:
        return self.encoder.decode(ids)

    def encode_batch(self, rows: Sequence[Mapping[str, Any]]) -> list[list[Encoded] | SwiftError]:
        texts = [_joined(row, self.system) for row in rows]
        encoded = iter(self.encoder.encode_batch([{"text": text} for text in texts if isinstance(text, str)]))
        return [next(encoded) if isinstance(text, str) else text for text in texts]

    def read_only(self, row: Mapping[str, Any]) -> list[int]:
        """The ids of a row of which nothing is learned; DataError for what isn't plain text."""
        text = _joined(row, self.system)
        if isinstance(text, DataError):
            raise text
        return self.encoder.read_only({"text": text})


def _joined(row: Mapping[str, Any], system: str) -> str | DataError:
    """The text of a row; the system prompt goes before messages that have none of their own."""
    if "messages" not in row:
        return row["text"]
    contents = [message.get("content") for message in row["messages"]]
    if row.get("tools") or not all(isinstance(content, str) for content in contents):
        return DataError("only plain text can be encoded without a chat template", fix="--use_chat_template true")
    return ("" if row["messages"][0]["role"] == "system" else system) + "".join(contents)
