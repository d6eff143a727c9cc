"""Requests into what an engine takes: by a chat template and a tokenizer here, else the messages as they are.

Promises: whatever renders or tokenizes may be called from several threads at once and doesn't share state with the
engine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from swift.data.media import KINDS
from swift.engines.protocol import Text
from swift.serve.errors import ApiError, invalid
from swift.serve.formats import Encoder
from swift.serve.media import with_fetched

Messages = Sequence[Mapping[str, Any]]
Tools = Sequence[Mapping[str, Any]] | None

PROMPT_END = 32  # tokens at a prompt's end that the opening of reasoning is looked for in


@dataclass(frozen=True)
class Prompt:
    """Fields of a GenerationRequest; `tokens`: its length if known; `opening`: what it writes of the reply."""

    messages: Messages | None = None
    tools: Tools = None
    prompt_ids: Sequence[int] | None = None
    inputs: Mapping[str, Any] | None = None
    tokens: int | None = None
    opening: str = ""


class Prompts(Protocol):
    kinds: frozenset[str]  # of media that messages may hold: "image", "video", "audio"

    def chat(self, messages: Messages, tools: Tools, variables: Mapping[str, Any]) -> Prompt:
        """`variables`: the request's chat_template_kwargs."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def check(self, ids: Sequence[int]) -> None:
        """400 for ids that no token has: a model on an accelerator may not survive them."""
        ...


class TemplatePrompts:
    """The model's own template and tokenizer.

    `opener` is the text with which reasoning begins, if any does. `names` are the variables that the template reads and
    a request may set; `variant(variables)` makes an encoder with them. The encoder must not be shared with an engine.
    """

    def __init__(
        self,
        encoder: Encoder,
        opener: str | None,
        names: frozenset[str],
        variant: Callable[[Mapping[str, Any]], Encoder],
        kinds: frozenset[str] = frozenset(),
    ):
        self.kinds = kinds
        self._encoder, self._opener, self._names, self._variant = encoder, opener, names, variant
        self._lock = threading.Lock()

    def chat(self, messages: Messages, tools: Tools, variables: Mapping[str, Any]) -> Prompt:
        for name in variables:
            if name not in self._names:
                known = f"it reads {', '.join(sorted(self._names))}" if self._names else "it reads none"
                message = f"chat_template_kwargs: the chat template has no variable {name}; {known}"
                raise invalid(message, f"chat_template_kwargs.{name}", "unsupported_parameter")
        messages = with_fetched(messages)
        with self._lock:
            encoder = self._variant(variables) if variables else self._encoder
            ids, inputs = encoder.prompt_inputs(messages, tools)
            end = encoder.decode(ids[-PROMPT_END:])
        opened = self._opener if self._opener and end.rstrip().endswith(self._opener) else ""
        return Prompt(prompt_ids=ids, inputs=inputs, tokens=len(ids), opening=encoder.response_prefix or opened)

    def encode(self, text: str) -> list[int]:
        with self._lock:
            return list(self._encoder.tokenizer(text)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        self.check(ids)
        with self._lock:
            return self._encoder.decode(ids)

    def check(self, ids: Sequence[int]) -> None:
        check_ids(ids, len(self._encoder.tokenizer))


def check_ids(ids: Sequence[int], size: int) -> None:
    if any(i >= size for i in ids):
        raise invalid(f"a token id is out of range: the tokenizer has {size} tokens", code="invalid_value")


class EnginePrompts:
    """An engine elsewhere renders and tokenizes by itself; it knows which media it takes."""

    kinds = frozenset(KINDS)

    def chat(self, messages: Messages, tools: Tools, variables: Mapping[str, Any]) -> Prompt:
        if variables:
            raise invalid("this engine takes no template variables", "chat_template_kwargs", "unsupported_parameter")
        return Prompt(messages=messages, tools=tools)

    def encode(self, text: str) -> list[int]:
        raise ApiError(400, "this engine has no tokenizer here: send token ids", code="unsupported")

    def decode(self, ids: Sequence[int]) -> str:
        raise ApiError(400, "this engine has no tokenizer here", code="unsupported")

    def check(self, ids: Sequence[int]) -> None:
        """The engine knows."""


class TokenizerPrompts(EnginePrompts):
    """Of models that write no text: ids, and no conversations."""

    kinds = frozenset()

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._lock = threading.Lock()

    def chat(self, messages: Messages, tools: Tools, variables: Mapping[str, Any]) -> Prompt:
        raise invalid("this model reads no conversations: send prompt", "messages", "unsupported")

    def encode(self, text: str) -> list[int]:
        with self._lock:
            return list(self._tokenizer(text, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        self.check(ids)
        with self._lock:
            return self._tokenizer.decode(ids)

    def check(self, ids: Sequence[int]) -> None:
        check_ids(ids, len(self._tokenizer))


class CodePointTexts:
    """The fake engine's texts."""

    limit, tokenizer = 8192, None

    def one(self, text: str, most: int | None = None) -> Text:
        return Text(tuple(map(ord, text[:most])))

    def pair(self, first: str, second: str, most: int | None = None) -> Text:
        return self.one(first + second, most)

    def row(self, row: Mapping[str, Any]) -> Text:
        return self.one("".join(str(message["content"]) for message in row["messages"]))


class CodePoints(EnginePrompts):
    """The fake engine's: one character, one token."""

    kinds = frozenset()

    def chat(self, messages: Messages, tools: Tools, variables: Mapping[str, Any]) -> Prompt:
        tokens = sum(len(str(message.get("content"))) for message in messages)
        return Prompt(messages=messages, tools=tools, tokens=tokens)

    def encode(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    def decode(self, ids: Sequence[int]) -> str:
        self.check(ids)
        return "".join(map(chr, ids))

    def check(self, ids: Sequence[int]) -> None:
        if any(i > 0x10FFFF or 0xD800 <= i < 0xE000 for i in ids):
            raise invalid("a token id is out of range", code="invalid_value")
