"""Reading bodies and writing answers: limits, server-sent events, and clients that leave.

Promises: work for a client that has gone is cancelled, streaming or not; a client that reads slowly or not at all
holds nobody else up and is given up after `reader_timeout`; an answer's first piece is awaited before the status is
sent, so that a bad request gets its real status, but a long wait is bridged by keep-alive comments.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from swift.serve.errors import ApiError, as_api_error, internal
from swift.serve.params import read_json
from swift.serve.service import Limits

log = logging.getLogger("swift.serve")
T = TypeVar("T")

FIRST_PIECE_SECONDS = 5.0  # how long the status may wait for the first piece
KEEP_ALIVE_SECONDS = 15.0
CLIENT_GONE = 499
CLOSED = Response(status_code=CLIENT_GONE)  # nobody reads it


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def json_response(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(dumps(value), status, headers, media_type="application/json")


def event(value: Any, name: str | None = None) -> bytes:
    """One server-sent event; `value` is JSON or ready text."""
    data = value if isinstance(value, str) else dumps(value)
    return (f"event: {name}\ndata: {data}\n\n" if name else f"data: {data}\n\n").encode()


async def read_body(request: Request, limits: Limits) -> Any:
    """The JSON body. 413 above the limit, 415 when not sent as JSON (which a foreign web page can't do unasked)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise ApiError(415, "send the body as JSON, with the header Content-Type: application/json")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.max_body:
        raise _too_large(limits)
    chunks, size = [], 0
    deadline = time.monotonic() + limits.body_timeout
    while True:
        try:
            message = await asyncio.wait_for(request.receive(), max(0.0, deadline - time.monotonic()))
        except asyncio.TimeoutError:
            raise ApiError(408, "the request body didn't arrive in time", headers={"Connection": "close"}) from None
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > limits.max_body:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return read_json(b"".join(chunks))


def _too_large(limits: Limits) -> ApiError:
    message = f"the request body is larger than {limits.max_body / 2**20:g} MiB"
    return ApiError(413, message, code="request_too_large", headers={"Connection": "close"})


class ClientGone(Exception):
    """The client closed the connection."""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; if the client leaves first, it is cancelled and ClientGone raised."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        await _cancelled(task, gone)


async def _cancelled(*tasks: asyncio.Future[Any]) -> None:
    """Cancel what isn't done and wait until it has cleaned up; what it raises then concerns nobody."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# Turns an error in the middle of a stream into the events that say so.
ErrorEvents = Callable[[ApiError], bytes]


async def stream_response(
    request: Request,
    events: AsyncGenerator[bytes, None],
    on_error: ErrorEvents,
    limits: Limits,
    keep_alive: bytes = b": waiting\n\n",
) -> Response:
    """An answer of server-sent events. Errors before the first one are raised, later ones become events."""
    first = asyncio.ensure_future(anext(events))
    gone = asyncio.ensure_future(_disconnected(request.receive))
    handed_over = False
    try:
        await asyncio.wait({first, gone}, timeout=FIRST_PIECE_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise ClientGone
        if first.done():
            first.result()
        handed_over = True
        return EventStream(first, events, on_error, limits, keep_alive)
    finally:
        await _cancelled(gone, *(() if handed_over else (first,)))
        if not handed_over:
            await events.aclose()


class EventStream(Response):
    """Writes the events of a generator whose first item is already being awaited."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: asyncio.Future[bytes],
        events: AsyncGenerator[bytes, None],
        on_error: ErrorEvents,
        limits: Limits,
        keep_alive: bytes,
    ):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._first, self._events, self._on_error = first, events, on_error
        self._limits, self._keep_alive = limits, keep_alive
        self._sending = False
        self._last = time.monotonic()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        writer = asyncio.ensure_future(self._write(send))
        watcher = asyncio.ensure_future(self._watch(receive, send))
        try:
            await asyncio.wait({writer, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if writer.done():
                writer.result()
            else:
                log.debug("a client left while its answer was being streamed")
        finally:
            await _cancelled(writer, watcher, self._first)
            await self._events.aclose()

    async def _write(self, send: Send) -> None:
        try:
            piece = await self._first
            while True:
                await self._send(send, piece)
                piece = await anext(self._events)
        except StopAsyncIteration:
            pass
        except Exception as error:
            known = as_api_error(error)
            if known is None:
                log.exception("a request failed while it was being streamed")
            await self._send(send, self._on_error(known or internal()))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(self, send: Send, piece: bytes) -> None:
        self._sending = True
        self._last = time.monotonic()
        await send({"type": "http.response.body", "body": piece, "more_body": True})
        self._sending = False

    async def _watch(self, receive: Receive, send: Send) -> None:
        """Returns when the client has left or takes nothing any more; fills long silences."""
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            while True:
                await asyncio.wait({gone}, timeout=min(KEEP_ALIVE_SECONDS, self._limits.reader_timeout) / 3)
                if gone.done():
                    return
                silent = time.monotonic() - self._last
                if self._sending and silent > self._limits.reader_timeout:
                    log.warning("a client has read nothing for %.0f s: its request is cancelled", silent)
                    return
                if not self._sending and silent > KEEP_ALIVE_SECONDS:
                    await self._send(send, self._keep_alive)
        finally:
            gone.cancel()
