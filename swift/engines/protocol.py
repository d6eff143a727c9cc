"""What every engine promises: submit a request, read its deltas, cancel it.

An engine answers many requests at once and none of them can harm another: a request that fails raises on its own
stream. Streams can be read from any thread or event loop. Knows nothing of models, files or the command line.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from swift.engines.stream import GenerationStream
from swift.errors import SwiftError, UsageError


class EngineError(SwiftError):
    """The engine failed on a request that it should have answered; `__cause__` says how."""


class EngineUnavailable(EngineError):
    """Nothing is there to answer at the moment: the engine starts, has died, or can't be reached. `retry_after` says in
    how many seconds it is worth asking again.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None, retry_after: float = 10.0):
        super().__init__(what, where=where, fix=fix)
        self.retry_after = retry_after


class RequestError(UsageError):
    """A request that this engine can't answer as asked (an impossible setting, a token that doesn't exist): the
    caller's to correct. `param` names the field of `Sampling` or `GenerationRequest` at fault, where it is one.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None, param: str | None = None):
        super().__init__(what, where=where, fix=fix)
        self.param = param


class PromptTooLong(RequestError):
    """The prompt has `tokens` tokens where at most `limit` are possible."""

    def __init__(self, what: str, *, tokens: int, limit: int, fix: str | None = None):
        super().__init__(what, fix=fix, param="prompt")
        self.tokens, self.limit = tokens, limit


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like, from its first token on.

    `kind` "json_schema": `source` is a JSON schema as JSON text ("{}": any JSON value); "regex": a regular expression
    that the whole answer matches; "lark": a grammar in the Lark syntax of llguidance, which may hold JSON schemas
    (%json {...}) and special tokens (<name>).
    """

    kind: str
    source: str


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. None means: what the model's own generation settings say.

    temperature 0 is greedy. `stop` are texts and `stop_token_ids` tokens that end the answer beside the model's own
    end tokens; a stop text is not part of the answer. `seed` makes the choice repeatable whatever else the engine is
    doing; None draws a fresh one. Before `min_new_tokens` no end token is chosen. `repetition_penalty` counts prompt
    and answer, `presence_penalty` and `frequency_penalty` (each -2..2, subtracted from the logits) the answer alone,
    as in the OpenAI API; `logit_bias` (token id -> -100..100) is added to the logits. `logprobs` are natural
    logarithms of the model's own distribution, before all of these. `prompt_logprobs` asks for those of the prompt's
    tokens, with so many alternatives; then max_new_tokens 0 (the prompt alone) is possible.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int = 0
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None


@dataclass(frozen=True)
class GenerationRequest:
    """Either `messages` (and `tools`), which the engine puts through the model's chat template, or ready
    `prompt_ids`, with the tensors that a model of images, videos or audio takes beside them in `inputs` (blocks of
    messages hold their media themselves). `adapter` names one of the engine's LoRA adapters; None is the base model.
    """

    messages: Sequence[Mapping[str, Any]] | None = None
    prompt_ids: Sequence[int] | None = None
    inputs: Mapping[str, Any] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    sampling: Sampling = Sampling()
    adapter: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Text:
    """A text that becomes numbers: its token ids, and where the model tells the two halves of a pair apart, the half
    (0 or 1) of each.
    """

    ids: tuple[int, ...]
    halves: tuple[int, ...] | None = None


def choices(request: GenerationRequest, n: int) -> list[GenerationRequest]:
    """`n` requests for the same prompt that differ in their seeds, so that the answers differ and are repeatable."""
    seed = request.sampling.seed
    seeds = [seed if seed is None else seed + i for i in range(n)]
    return [
        replace(request, sampling=replace(request.sampling, seed=seed), id=f"{request.id}-{i}")
        for i, seed in enumerate(seeds)
    ]


@dataclass(frozen=True)
class TokenLogprob:
    """One token; `top` are the likeliest tokens at its place, best first, as (id, text, logprob)."""

    token_id: int
    token: str
    logprob: float
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True)
class Usage:
    """`cached_tokens` are those of the prompt that an earlier request had computed already."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Delta:
    """A piece of an answer. The texts of all deltas joined are the whole text, and so for tokens and logprobs.

    `finish_reason` and `usage` come with the last one: "stop" (an end token or stop text), "length", "cancelled";
    `stop_text` is the stop text that ended the answer, if one did. `prompt_logprobs` come with the first one: an item
    per prompt token, None for the first, which nothing predicts.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    stop_text: str | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()


@dataclass(frozen=True)
class Result:
    """A whole answer. `token_ids` include the end token. With `error` the rest is what had come before it."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    usage: Usage
    logprobs: tuple[TokenLogprob, ...] = ()
    error: Exception | None = None
    stop_text: str | None = None
    prompt_logprobs: tuple[TokenLogprob | None, ...] = ()


@dataclass(frozen=True)
class Capabilities:
    """What requests may ask of this engine. `context_length` is in tokens, None when the engine doesn't know it.

    `inputs`: a prompt may have tensors of media beside its ids. `unsupported` are the fields of `Sampling` that it
    can't honour, `grammars` the kinds of `Grammar` that it can.
    `notes` say how it computes here. `tasks`: "generate" (text), "embed" (a text's vector), "score" (how well the
    second text of a pair fits the first, 0 to 1), "classify" (the numbers of a text's classes).
    """

    context_length: int | None = None
    max_concurrency: int = 1
    prompt_ids: bool = True
    inputs: bool = False
    unsupported: frozenset[str] = frozenset()
    grammars: frozenset[str] = frozenset()
    adapters: tuple[str, ...] = ()
    loads_adapters: bool = False
    notes: tuple[str, ...] = ()
    tasks: frozenset[str] = frozenset({"generate"})

    @property
    def logprobs(self) -> bool:
        return "logprobs" not in self.unsupported

    def check(self, request: GenerationRequest) -> None:
        """RequestError for what the request asks and the engine can't do."""
        if "generate" not in self.tasks:
            raise RequestError("this model writes no text", fix=f"it can {' and '.join(sorted(self.tasks))}")
        sampling = request.sampling
        for name in sorted(self.unsupported):
            if getattr(sampling, name) != getattr(Sampling(), name):
                raise RequestError(f"this engine doesn't know {name}", fix="leave it out", param=name)
        grammar = sampling.grammar
        if grammar is not None and grammar.kind not in self.grammars:
            raise RequestError(
                f"this engine can't hold answers to a grammar of kind {grammar.kind!r}",
                fix="leave it out",
                param="grammar",
            )
        if request.prompt_ids is not None and not self.prompt_ids:
            raise RequestError("this engine takes no token ids", fix="send messages", param="prompt_ids")
        if request.inputs is not None and not self.inputs:
            raise RequestError("this engine takes no images, video or audio", param="inputs")
        self.check_adapter(request.adapter)

    def check_adapter(self, name: str | None) -> None:
        if name is not None and name not in self.adapters:
            loaded = ", ".join(self.adapters) or "none"
            raise RequestError(f"no adapter named {name!r} is loaded", fix=f"loaded: {loaded}", param="adapter")


@dataclass(frozen=True)
class EngineStats:
    """Counts since the start (finished, failed, cancelled, tokens, restarts) and now (running, waiting).

    `alive`: something is there to answer. `silent` are the seconds since the engine's last sign of life while it has
    work to do, 0 while it has none: an engine that is alive and silent for long hangs. `restarts` counts how often it
    died and was started again, `last_death` says of what. `kv_tokens` of at most `kv_capacity` tokens are in its
    key/value cache (None: it doesn't know). `kept_tokens` are in it beside those for prompts
    that begin alike, and `prefix_hits` prompts of ended requests began as an earlier one, in `cached_tokens` tokens.
    """

    running: int = 0
    waiting: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    alive: bool = True
    silent: float = 0.0
    restarts: int = 0
    last_death: str | None = None
    kv_tokens: int | None = None
    kv_capacity: int | None = None
    kept_tokens: int | None = None
    prefix_hits: int = 0


def closed() -> EngineUnavailable:
    """What an engine answers after `close`."""
    return EngineUnavailable("the engine is closed")


def no_numbers(engine: str) -> RequestError:
    """What engines that only write text answer to `numbers`."""
    return RequestError(f"{engine} only writes text here", fix="--infer_backend pt")


class Engine(Protocol):
    """See the module. `submit` returns at once; what is wrong with a request is raised where its stream is read, as a
    SwiftError.
    """

    name: str

    @property
    def capabilities(self) -> Capabilities: ...

    def submit(self, request: GenerationRequest) -> GenerationStream[Delta]: ...

    def numbers(self, texts: Sequence[Text], adapter: str | None = None) -> list[Future[list[float]]]:
        """Of engines with the tasks "embed", "score" or "classify": for each text its vector, its score or its classes'
        numbers. RequestError from engines without them, or without the adapter. A future that is cancelled before its
        turn costs nothing.
        """
        ...

    def load_adapter(self, name: str, path: Path) -> None:
        """Make a LoRA adapter available to requests, while others run. SwiftError if it can't be."""
        ...

    def unload_adapter(self, name: str) -> None:
        """Take it away again; requests that use it are finished first. RequestError if there is none."""
        ...

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
        self.prompt_logprobs: list[TokenLogprob | None] = []
        self.last = Delta()

    def add(self, delta: Delta) -> None:
        self.texts.append(delta.text)
        self.token_ids.extend(delta.token_ids)
        self.logprobs.extend(delta.logprobs)
        self.prompt_logprobs.extend(delta.prompt_logprobs)
        self.last = delta

    def result(self, error: Exception | None = None) -> Result:
        return Result(
            text="".join(self.texts),
            token_ids=tuple(self.token_ids),
            finish_reason="error" if error else self.last.finish_reason or "cancelled",
            usage=self.last.usage or Usage(0, len(self.token_ids)),
            logprobs=tuple(self.logprobs),
            error=error,
            stop_text=self.last.stop_text,
            prompt_logprobs=tuple(self.prompt_logprobs),
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
