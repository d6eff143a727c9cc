"""What every engine promises: submit a request, read its deltas, cancel it.

An engine answers many requests at once and none of them can harm another: a request that fails raises on its own
stream. Streams can be read from any thread or event loop. Knows nothing of models, files or the command line.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from swift.engines.stream import GenerationStream
from swift.errors import SwiftError, UsageError


class EngineError(SwiftError):
    """The engine failed on a request that it should have answered; `__cause__` says how."""


class RequestError(UsageError):
    """A request that this engine can't answer as asked (too long, an impossible setting): the caller's to correct."""


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. None means: what the model's own generation settings say.

    temperature 0 is greedy. `stop` are texts and `stop_token_ids` tokens that end the answer beside the model's own
    end tokens; a stop text is not part of the answer. `seed` makes the choice repeatable whatever else the engine is
    doing; None draws a fresh one. `logprobs` are natural logarithms of the model's own distribution, before
    temperature and filters.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0


@dataclass(frozen=True)
class GenerationRequest:
    """Either `messages` (and `tools`), which the engine puts through the model's chat template, or ready
    `prompt_ids`.
    """

    messages: Sequence[Mapping[str, Any]] | None = None
    prompt_ids: Sequence[int] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    sampling: Sampling = Sampling()
    adapter: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class TokenLogprob:
    """One chosen token; `top` are the likeliest tokens at its place, best first, as (id, text, logprob)."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Delta:
    """A piece of an answer. The texts of all deltas joined are the whole text, and so for tokens and logprobs.

    `finish_reason` and `usage` come with the last one: "stop" (an end token or stop text), "length", "cancelled".
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True)
class Result:
    """A whole answer. `token_ids` include the end token. With `error` the rest is what had come before it."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()
    error: Exception | None = None


@dataclass(frozen=True)
class Capabilities:
    """What requests may ask of this engine. `context_length` is in tokens, None when the engine doesn't know it."""

    context_length: int | None = None
    max_concurrency: int = 1
    prompt_ids: bool = True
    logprobs: bool = True
    beams: bool = False
    adapters: tuple[str, ...] = ()


@dataclass(frozen=True)
class EngineStats:
    """Counts since the start (finished, failed, cancelled, tokens) and now (running, waiting)."""

    running: int = 0
    waiting: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


class Engine(Protocol):
    """See the module. `submit` returns at once; what is wrong with a request is raised where its stream is read, as a
    SwiftError.
    """

    name: str
    capabilities: Capabilities

    def submit(self, request: GenerationRequest) -> GenerationStream[Delta]: ...

    def stats(self) -> EngineStats: ...

    def close(self) -> None:
        """Cancel what runs and free the engine's resources."""
        ...


class Collector:
    """Joins deltas into a `Result`."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.last = Delta()

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        self.last = delta

    def result(self, error: Exception | None = None) -> Result:
        return Result(
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            finish_reason="error" if error else self.last.finish_reason or "cancelled",
            usage=self.last.usage or Usage(0, len(self.token_ids)),
            logprobs=tuple(self.logprobs),
            error=error,
        )


def stream(engine: Engine, request: GenerationRequest) -> Iterator[Delta]:
    """The deltas of one request as they come; leaving the loop early cancels it."""
    with engine.submit(request) as deltas:
        yield from deltas


def generate(engine: Engine, request: GenerationRequest) -> Result:
    """One whole answer; raises what went wrong."""
    collector = Collector()
    for delta in stream(engine, request):
        collector.add(delta)
    return collector.result()


def _collect(deltas: GenerationStream[Delta]) -> Result:
    """A whole answer, with the error inside it instead of raised."""
    collector = Collector()
    try:
        for delta in deltas:
            collector.add(delta)
    except Exception as error:
        return collector.result(error)
    return collector.result()


def generate_all(engine: Engine, requests: Iterable[GenerationRequest], ahead: int | None = None) -> Iterator[Result]:
    """Answers in the order of the requests, many at a time; a request that fails gives a Result with `error`.

    At most `ahead` requests (default: four times what the engine runs at once) are taken from `requests` before their
    answers are read.
    """
    ahead = ahead or 4 * engine.capabilities.max_concurrency
    window: deque[GenerationStream[Delta]] = deque()
    try:
        for request in requests:
            window.append(engine.submit(request))
            if len(window) >= ahead:
                yield _collect(window.popleft())
        while window:
            yield _collect(window.popleft())
    finally:
        for deltas in window:
            deltas.cancel()
