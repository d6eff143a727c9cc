"""Who answers: what the harness asks of a model, whether it is loaded here or reached by a URL.

`Score` pairs are (log-probability, greedy); generation takes prompts and gives texts. Both come as they are computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Ask:
    """One text to generate. `chat`: the prompt came from `chat_prompt`. `until` are texts that end it; `most` is its
    limit in tokens. Other fields: None means the engine's default.
    """

    prompt: str
    chat: bool = False
    until: tuple[str, ...] = ()
    most: int = 256
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Generated:
    text: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str


class Answerer(Protocol):
    """`name` and `facts` go into the report. `scores` says whether log-likelihoods can be had, `chats` whether there
    is a chat template.
    """

    name: str
    facts: Mapping[str, Any]
    scores: bool
    chats: bool

    def score(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, tuple[float, bool]]]:
        """(index, (log-probability of the continuation after the context, greedy)) in the order of computation."""
        ...

    def generate(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Generated]]: ...

    def chat_prompt(self, messages: list[dict[str, str]], opened: bool) -> str:
        """What stands for these messages as the `prompt` of an `Ask`; `opened`: the reply is to begin there."""
        ...

    def spent(self) -> dict[str, int]:
        """Tokens by kind (prompt, scored, generated, truncated) since the last call."""
        ...

    def close(self) -> None: ...
