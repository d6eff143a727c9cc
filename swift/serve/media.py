"""Images, video and audio in requests, in the shapes of the OpenAI and Anthropic APIs, as blocks of our messages.

Promises: a medium comes from the request itself (base64) or from an http(s) address, never from the server's disk; one
that the model doesn't take is a 400 that names its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from swift.chat.medium import fetched
from swift.data.media import BLOCK_KINDS, reference_of
from swift.data.rows import RowError
from swift.errors import DataError
from swift.serve.errors import invalid

TEXTS = ("text", "input_text", "output_text")
_REMOTE = re.compile(r"(https?://|data:)", re.IGNORECASE)


def content_of(content: Any, where: str, kinds: frozenset[str] = frozenset()) -> str | list[dict[str, Any]]:
    """A message's content: one text, a line for each part; with media in it, blocks. `kinds`: what the model takes."""
    if isinstance(content, str):
        return content
    blocks = [_block(part, f"{where}.content[{k}]", kinds) for k, part in enumerate(content)]
    if all(block["type"] == "text" for block in blocks):
        return "\n".join(block["text"] for block in blocks)
    return blocks


def _block(part: Any, place: str, kinds: frozenset[str]) -> dict[str, Any]:
    if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
        raise invalid(f"{place} must be an object with a type", place, "invalid_type")
    name = part["type"]
    if name in TEXTS:
        if not isinstance(part.get("text"), str):
            raise invalid(f"{place} has no text", place, "invalid_type")
        return {"type": "text", "text": part["text"]}
    kind = BLOCK_KINDS.get(name)
    if kind not in kinds:
        taken = ", ".join(["text", *sorted(kinds)]) if kinds else "text only"
        raise invalid(f"this model takes {taken}, not {name}", place, "unsupported_content")
    body = next((part[key] for key in (name, f"{kind}_url", kind, "source", "url") if part.get(key) is not None), None)
    try:
        reference = reference_of(body)
    except RowError as error:
        raise invalid(f"{place}: {error.reason}", place, "invalid_value") from None
    if not _REMOTE.match(reference):
        message = f"{place}: {name} must be a data: URL or an http(s) address"
        raise invalid(message, place, "invalid_value")
    return {"type": kind, kind: reference}


def with_fetched(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with what stands at http(s) addresses read; 400 where it can't be."""
    found = []
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            content = [_fetched(block) for block in content]
        found.append({**message, "content": content})
    return found


def _fetched(block: Mapping[str, Any]) -> dict[str, Any]:
    kind = block["type"]
    if kind == "text":
        return dict(block)
    try:
        return {"type": kind, kind: fetched(block[kind])}
    except DataError as error:
        raise invalid(error.what, "messages", "invalid_value") from error
