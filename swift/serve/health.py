"""Whether the engine is alive and answering, found by what it does and not by what it says.

Promises: true when tokens or answers have come within `fresh` seconds; otherwise, and whenever the engine says that it
isn't there, a one-token request is sent to it. Where it is busy with requests that wait long, it is given `patience`
seconds between two signs of life.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace

from swift.engines.protocol import EngineStats, GenerationRequest, Text
from swift.engines.stream import GenerationStream
from swift.serve.service import Service


@dataclass(frozen=True)
class Health:
    ok: bool
    reason: str


class Watch:
    """Asked by /health; asks the engine at most one question at a time."""

    def __init__(self, service: Service, fresh: float = 5.0, answer_within: float = 10.0, patience: float = 120.0):
        self._service = service
        self._fresh, self._answer_within, self._patience = fresh, answer_within, patience
        self._seen: tuple[EngineStats, float] = (service.engine.stats(), time.monotonic())
        self._looked = time.monotonic()
        self._answered = float("-inf")
        self._probing: asyncio.Task[Health] | None = None

    async def check(self) -> Health:
        if self._service.draining:
            return Health(False, "shutting down")
        now = time.monotonic()
        stats = self._service.engine.stats()
        (old, then), looked = self._seen, self._looked
        self._looked = now
        if not stats.alive:
            return await self._ask_once()
        if _progress(stats) != _progress(old):
            self._seen = (stats, now)
            then = now
            if now - looked < self._fresh:
                return Health(True, "answering")
        if now - self._answered < self._fresh:
            return Health(True, "answering")
        busy = stats.running + stats.waiting
        silent = now - max(then, self._answered)
        if busy and silent < self._patience:
            return Health(True, f"busy, no token for {silent:.0f} s")
        if busy:
            return Health(False, f"{busy} requests and no token for {silent:.0f} s")
        return await self._ask_once()

    async def _ask_once(self) -> Health:
        """What the question under way finds, or a new one."""
        if self._probing is None or self._probing.done():
            self._probing = asyncio.ensure_future(self._probe())
        return await asyncio.shield(self._probing)

    async def _probe(self) -> Health:
        service = self._service
        request = replace(service.probe, id=f"health-{time.monotonic_ns()}")
        try:
            return await asyncio.wait_for(self._ask(request), self._answer_within)
        except asyncio.TimeoutError:
            return Health(False, f"the engine didn't answer one token within {self._answer_within:g} s")
        except Exception as error:  # whatever the engine raises on the smallest request, it isn't answering
            return Health(False, f"the engine fails: {error}")

    async def _ask(self, request: GenerationRequest) -> Health:
        service = self._service
        if "generate" in service.engine.capabilities.tasks:
            stream: GenerationStream = await service.in_thread(service.engine.submit, request)
            with stream:
                async for _ in stream:
                    pass
        else:
            text = Text(tuple(request.prompt_ids or ()))
            (numbers,) = await service.in_thread(service.engine.numbers, [text])
            await asyncio.wrap_future(numbers)
        self._answered = time.monotonic()
        return Health(True, "answering")


def _progress(stats: EngineStats) -> tuple[int, ...]:
    return (stats.finished, stats.cancelled, stats.generated_tokens)
