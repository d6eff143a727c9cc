"""What stands between the HTTP routes and the engine: models by name, the queue's bound, time limits, counts.

Promises: at most `max_queue` requests wait beyond those that the engine runs at once; every request ends, by its
answer, its error, its time limit, its reader's leaving or the shutdown, also when the engine is dead, and is then
cancelled there. Knows nothing of HTTP bodies. All methods belong to one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from swift.engines.protocol import Delta, Engine, GenerationRequest, Sampling, Usage
from swift.engines.stream import GenerationStream
from swift.engines.texts import Texts
from swift.serve.errors import ApiError, queue_full, shutting_down, timed_out
from swift.serve.forcing import Forcing
from swift.serve.meters import Meters
from swift.serve.prompts import Prompts
from swift.serve.replies import ReplyFormat

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """`max_queue` in requests, times in seconds, `max_body` in bytes."""

    max_queue: int = 256
    request_timeout: float = 600.0
    max_logprobs: int = 20
    max_body: int = 32 * 2**20
    body_timeout: float = 60.0
    reader_timeout: float = 120.0


@dataclass(frozen=True)
class Settings:
    """`names` are the base model's, `also` further ones that are taken but not listed; adapters have their own names.

    `defaults` stand behind every request's settings. `facts` are shown in /v1/models.
    """

    names: tuple[str, ...]
    also: tuple[str, ...] = ()
    owned_by: str = "swift"
    api_key: str | None = None
    defaults: Sampling = Sampling()
    limits: Limits = Limits()
    verbose: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    created: int = field(default_factory=lambda: int(time.time()))


@dataclass(frozen=True)
class Reading:
    """How texts are given to a model that embeds, ranks or classifies, and what its classes are called (() for none).
    `plain_values`: its numbers are no probabilities of classes (regression).
    """

    texts: Texts
    labels: tuple[str, ...] = ()
    plain_values: bool = False


class Service:
    """One engine being served. `probe` is the smallest request that a living engine answers. `reading` is there where
    the engine has tasks beside "generate".
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Prompts,
        form: ReplyFormat,
        settings: Settings,
        probe: GenerationRequest | None = None,
        forcing: Forcing | None = None,
        reading: Reading | None = None,
    ):
        self.engine, self.prompts, self.form, self.settings = engine, prompts, form, settings
        self.forcing = forcing or Forcing()
        self._reading = reading
        self.probe = probe or GenerationRequest(messages=({"role": "user", "content": "."},))
        self.probe = replace(self.probe, sampling=Sampling(max_new_tokens=1, temperature=0.0))
        self.meters = Meters()
        self.draining = False
        self.active = 0
        self.open: set[Answers] = set()
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="swift-serve")

    def model(self, name: str | None) -> tuple[str, str | None]:
        """(the name to show, the adapter) of a request's `model`; 404 for a name that isn't served here."""
        if name is None or name in (*self.settings.names, *self.settings.also):
            return name or self.settings.names[0], None
        adapters = self.engine.capabilities.adapters
        if name in adapters:
            return name, name
        served = ", ".join((*self.settings.names, *adapters))
        raise ApiError(404, f"there is no model {name!r} here; served: {served}", param="model", code="model_not_found")

    @property
    def reading(self) -> Reading:
        assert self._reading is not None, "the engine has tasks for which nothing was set up"
        return self._reading

    async def in_thread(self, work: Callable[..., T], *args: Any) -> T:
        """Rendering and tokenizing take a while for long prompts: never in the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *args)

    def admit(self, count: int) -> None:
        """Take `count` places or raise 429; `leave` gives them back. One call of many prompts may go over the bound."""
        if self.draining:
            raise shutting_down()
        room = self.engine.capabilities.max_concurrency + self.settings.limits.max_queue
        if self.active >= room:
            raise queue_full(self.active, self._retry_after())
        self.active += count

    def leave(self, count: int) -> None:
        self.active -= count

    def _retry_after(self) -> float:
        """Seconds until the requests that wait now should have been answered, by the recent pace."""
        rounds = self.active / max(1, self.engine.capabilities.max_concurrency)
        return min(60.0, max(1.0, self.meters.recent_seconds * rounds))

    def stop(self) -> None:
        """End every request that is still being answered."""
        for answers in list(self.open):
            answers.abort(shutting_down())

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.engine.close()


class Answers:
    """The answers to the `requests` of one call, as an async context manager: leaving it cancels what runs."""

    def __init__(self, service: Service, requests: Sequence[GenerationRequest]):
        self._service, self._requests = service, requests
        self._streams: list[GenerationStream[Delta]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._iterator: AsyncGenerator[tuple[int, Delta], None] | None = None
        self._began = time.monotonic()
        self._first: float | None = None
        self._reason: ApiError | None = None
        self.usages: list[Usage] = [Usage(0, 0)] * len(requests)

    async def __aenter__(self) -> Answers:
        self._service.admit(len(self._requests))
        try:
            for request in self._requests:
                await self._submit(request)
        except BaseException:
            self._close()
            raise
        self._service.open.add(self)
        limit = self._service.settings.limits.request_timeout
        self._timer = asyncio.get_running_loop().call_later(limit, lambda: self.abort(timed_out(limit)))
        return self

    async def _submit(self, request: GenerationRequest) -> None:
        """In a thread, because the engine renders and tokenizes there; a stream that comes too late is cancelled."""
        submitted = asyncio.ensure_future(self._service.in_thread(self._service.engine.submit, request))
        try:
            stream = await asyncio.shield(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(_cancel_late)
            raise
        self._streams.append(stream)

    def abort(self, reason: ApiError) -> None:
        self._reason = reason
        for stream in self._streams:
            stream.cancel()
            stream.fail(reason)  # its reader ends also when the engine doesn't hear any more

    async def __aexit__(self, *exc_info: object) -> None:
        self._close()
        if self._iterator is not None:
            await self._iterator.aclose()

    def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for stream in self._streams:
            stream.cancel()
        self._service.open.discard(self)
        self._service.leave(len(self._requests))
        self._service.meters.answered(time.monotonic() - self._began, self._first, self.usage)

    @property
    def usage(self) -> Usage:
        """Of all choices together: the prompt counts once."""
        prompt = max((u.prompt_tokens for u in self.usages), default=0)
        return Usage(prompt, sum(u.completion_tokens for u in self.usages))

    def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        """(index of the request, delta), as they come; raises the first error."""
        self._iterator = self._deltas()
        return self._iterator

    async def _deltas(self) -> AsyncGenerator[tuple[int, Delta], None]:
        source = self._one() if len(self._streams) == 1 else self._many()
        async with aclosing(source):
            async for index, delta in source:
                if self._first is None:
                    self._first = time.monotonic() - self._began
                if delta.usage is not None:
                    self.usages[index] = delta.usage
                if delta.finish_reason == "cancelled":
                    raise self._reason or shutting_down()  # its reader is still here: the engine is being closed
                yield index, delta

    async def _one(self) -> AsyncGenerator[tuple[int, Delta], None]:
        async for delta in self._streams[0]:
            yield 0, delta

    async def _many(self) -> AsyncGenerator[tuple[int, Delta], None]:
        queue: asyncio.Queue[tuple[int, Delta | None, BaseException | None]] = asyncio.Queue()

        async def pump(index: int, stream: GenerationStream[Delta]) -> None:
            try:
                async for delta in stream:
                    queue.put_nowait((index, delta, None))
            except Exception as error:
                queue.put_nowait((index, None, error))
            else:
                queue.put_nowait((index, None, None))

        tasks = [asyncio.ensure_future(pump(i, stream)) for i, stream in enumerate(self._streams)]
        try:
            left = len(tasks)
            while left:
                index, delta, error = await queue.get()
                if error is not None:
                    raise error
                if delta is None:
                    left -= 1
                else:
                    yield index, delta
        finally:
            for task in tasks:
                task.cancel()


def _cancel_late(submitted: asyncio.Future[GenerationStream[Delta]]) -> None:
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()
