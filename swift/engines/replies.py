"""How a raw answer is read: what the prompt had already written of it, and the text as a message."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# A prompt that ends inside a tag, as those of models that must think do: the answer continues it.
OPEN_TAG = re.compile(r"<(\w+)>\s*$")


class Encoder(Protocol):
    """The part of a ChatEncoder that is needed here."""

    response_prefix: str

    def prompt_text(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str: ...

    def parse(self, text: str, tools: Any = None) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Replies:
    encoder: Encoder

    def opening(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
        """The beginning of the answer that stands in the prompt already: --response_prefix, or an open tag like
        <think>.
        """
        if self.encoder.response_prefix:
            return self.encoder.response_prefix
        found = OPEN_TAG.search(self.encoder.prompt_text(messages, tools))
        return found[0] if found else ""

    def message(self, text: str, tools: Any = None) -> dict[str, Any]:
        """The assistant message of a whole answer (its opening included): reasoning and tool calls apart."""
        return self.encoder.parse(text, tools)
