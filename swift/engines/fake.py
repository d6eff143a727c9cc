"""An engine without a model, to test and try out what talks to engines: deterministic, instant, fails on request.

It repeats the last user message, one character a token: `Delta.token_ids` are code points. The answer ends at
`max_new_tokens` ("length") or after the last character ("stop"). A message that contains FAIL raises on its own
stream, one that contains WAIT is only ended by cancelling it.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from swift.engines.detokenize import StopSearch
from swift.engines.protocol import (
    Capabilities,
    Delta,
    EngineStats,
    GenerationRequest,
    RequestError,
    Text,
    TokenLogprob,
    Usage,
    closed,
)
from swift.engines.stream import GenerationStream

VECTOR = 8  # numbers in a vector
UNSUPPORTED = frozenset(("prompt_logprobs", "grammar", "num_beams", "logit_bias", "min_new_tokens", "stop_token_ids"))


def echo(messages: list[dict[str, Any]]) -> str:
    """The default answer: the last user message again."""
    return next((str(m["content"]) for m in reversed(messages) if m["role"] == "user"), "")


class FakeEngine:
    """`answer(messages)` makes the text. Requests are answered in the thread that submits them."""

    name = "fake"

    def __init__(self, answer: Callable[[list[dict[str, Any]]], str] = echo):
        self._answer = answer
        self.capabilities = Capabilities(
            max_concurrency=8,
            unsupported=UNSUPPORTED,
            loads_adapters=True,
            tasks=frozenset({"generate", "embed"}),
        )
        self._stats = EngineStats()
        self._lock = threading.Lock()
        self._waiting: list[GenerationStream[Delta]] = []
        self._closed = False

    def submit(self, request: GenerationRequest) -> GenerationStream[Delta]:
        deltas: GenerationStream[Delta] = GenerationStream(lambda: self._cancel(deltas))
        messages = [dict(m) for m in request.messages or ()]
        if request.prompt_ids is not None:
            messages = [{"role": "user", "content": "".join(map(chr, request.prompt_ids))}]
        text = self._answer(messages)
        prompt_tokens = sum(len(str(m.get("content"))) for m in messages)
        try:
            self.capabilities.check(request)
        except RequestError as error:
            self._count(failed=1)
            deltas.fail(error)
            return deltas
        if self._closed:
            deltas.fail(closed())
        elif (request.prompt_ids is None) == (request.messages is None) or not prompt_tokens:
            self._count(failed=1)
            deltas.fail(RequestError("a request has either messages or prompt_ids"))
        elif request.sampling.max_new_tokens == 0:
            self._count(failed=1)
            deltas.fail(RequestError("max_new_tokens must be at least 1", param="max_new_tokens"))
        elif "FAIL" in text:
            self._count(failed=1)
            deltas.fail(RequestError("the fake engine was asked to fail"))
        elif "WAIT" in text:
            with self._lock:
                self._waiting.append(deltas)
        else:
            for delta in _deltas(text, prompt_tokens, request):
                deltas.put(delta)
                self._count(generated_tokens=len(delta.token_ids))
            self._count(finished=1, prompt_tokens=prompt_tokens)
            deltas.end()
        return deltas

    def numbers(self, texts: Sequence[Text], adapter: str | None = None) -> list[Future[list[float]]]:
        """A vector for each text: how often its characters fall on each of VECTOR places, of length 1."""
        self.capabilities.check_adapter(adapter)
        futures: list[Future[list[float]]] = [Future() for _ in texts]
        for text, future in zip(texts, futures, strict=True):
            counts = Counter(i % VECTOR for i in text.ids)
            length = math.hypot(*counts.values())
            future.set_result([counts[place] / length for place in range(VECTOR)])
            self._count(finished=1, prompt_tokens=len(text.ids))
        return futures

    def _cancel(self, deltas: GenerationStream[Delta]) -> None:
        with self._lock:
            if deltas not in self._waiting:
                return
            self._waiting.remove(deltas)
        deltas.put(Delta(finish_reason="cancelled", usage=Usage(0, 0)))
        deltas.end()
        self._count(cancelled=1)

    def _count(self, **more: int) -> None:
        with self._lock:
            self._stats = replace(self._stats, **{name: getattr(self._stats, name) + n for name, n in more.items()})

    def load_adapter(self, name: str, path: Path) -> None:
        with self._lock:
            self.capabilities = replace(self.capabilities, adapters=(*self.capabilities.adapters, name))

    def unload_adapter(self, name: str) -> None:
        with self._lock:
            if name not in self.capabilities.adapters:
                raise RequestError(f"no adapter named {name!r} is loaded", param="adapter")
            left = tuple(other for other in self.capabilities.adapters if other != name)
            self.capabilities = replace(self.capabilities, adapters=left)

    def stats(self) -> EngineStats:
        with self._lock:
            return replace(self._stats, running=len(self._waiting))

    def close(self) -> None:
        self._closed = True
        for deltas in list(self._waiting):
            self._cancel(deltas)


def _deltas(text: str, prompt_tokens: int, request: GenerationRequest) -> Iterator[Delta]:
    sampling = request.sampling
    stops = StopSearch(sampling.stop)
    limit = sampling.max_new_tokens or len(text) + 1
    for number, char in enumerate(text[:limit], 1):
        shown = stops.push(char)
        last = number == min(len(text), limit) or stops.found is not None
        if last and stops.found is None:
            shown += stops.flush()
        reason = ("stop" if stops.found is not None or number == len(text) else "length") if last else None
        top = ((ord(char), char, 0.0),) if sampling.top_logprobs else ()
        logprobs = (TokenLogprob(ord(char), char, 0.0, top),) if sampling.logprobs else ()
        usage = Usage(prompt_tokens, number) if last else None
        yield Delta(shown, (ord(char),), logprobs, reason, usage, stops.found)
        if last:
            return
    yield Delta(finish_reason="stop", usage=Usage(prompt_tokens, 0))
