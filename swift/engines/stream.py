"""A one-way channel from an engine's thread to whoever reads an answer, in a thread or in an event loop.

Promises: items arrive in order and once; the writer never waits for the reader; the reader always ends, by the last
item, by the error that the writer reports, or by cancelling.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class GenerationStream(Generic[T]):
    """Iterate it with `for` or `async for`; as a context manager it is cancelled when left before its end.

    The engine calls `put`, and then `end` or `fail` once. `on_cancel` is the engine's: it must make the stream end
    soon.
    """

    def __init__(self, on_cancel: Callable[[], None]):
        self._on_cancel = on_cancel
        self._changed = threading.Condition()
        self._items: deque[T] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    def put(self, item: T) -> None:
        with self._changed:
            self._items.append(item)
            self._wake()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._wake()

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._error, self._ended = error, True
            self._wake()

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._waiter is not None:
            loop, event = self._waiter
            loop.call_soon_threadsafe(event.set)

    @property
    def ended(self) -> bool:
        """True when nothing more will come (what has come may still be unread)."""
        return self._ended

    def cancel(self) -> None:
        """Ask the engine to stop; no effect on an answer that has ended."""
        if not self._ended:
            self._on_cancel()

    def _take(self) -> T | None:
        """The next item, None when there is none yet; raises StopIteration's cause at the end. Holds the lock."""
        if self._items:
            return self._items.popleft()
        if self._error is not None:
            raise self._error
        return None

    def __iter__(self) -> GenerationStream[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            while (item := self._take()) is None:
                if self._ended:
                    raise StopIteration
                self._changed.wait()
            return item

    def __aiter__(self) -> GenerationStream[T]:
        return self

    async def __anext__(self) -> T:
        while True:
            with self._changed:
                item = self._take()
                if item is not None:
                    return item
                if self._ended:
                    raise StopAsyncIteration
                event = asyncio.Event()
                self._waiter = (asyncio.get_running_loop(), event)
            try:
                await event.wait()
            finally:
                with self._changed:
                    self._waiter = None

    def __enter__(self) -> GenerationStream[T]:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cancel()

    async def __aenter__(self) -> GenerationStream[T]:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.cancel()
