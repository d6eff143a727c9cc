"""Servers for tests: a FakeEngine or a paced one behind a real uvicorn on a loopback port, in a thread."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import uvicorn

from swift.engines.fake import FakeEngine, echo
from swift.engines.protocol import Capabilities, Delta, EngineStats, GenerationRequest, RequestError, Usage
from swift.engines.stream import GenerationStream
from swift.serve.app import create_app
from swift.serve.prompts import CodePoints, CodePointTexts
from swift.serve.replies import ReplyFormat
from swift.serve.service import Reading, Service, Settings


def parse(text: str, tools=None) -> dict:
    """A reader of <think>...</think> and <tool_call>{...}</tool_call>, written for these tests."""
    reasoning, found, rest = text.partition("</think>")
    message = {"role": "assistant", "content": text}
    if found:
        message |= {"content": rest.strip(), "reasoning_content": reasoning.removeprefix("<think>").strip()}
    calls = [json.loads(body) for body in re.findall(r"<tool_call>(.*?)</tool_call>", message["content"], re.DOTALL)]
    if calls:
        message["content"] = message["content"].partition("<tool_call>")[0].rstrip()
        message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return message


FORM = ReplyFormat(parse, ("<think>", "</think>"), ("<tool_call>",))


TINY = Settings(names=("tiny",))


def service(engine=None, settings: Settings = TINY, form: ReplyFormat = FORM) -> Service:
    return Service(engine or FakeEngine(), CodePoints(), form, settings, reading=Reading(CodePointTexts()))


@contextlib.contextmanager
def running(served: Service) -> Iterator[str]:
    """The server's address while it runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(
        create_app(served), "127.0.0.1", port, log_config=None, timeout_graceful_shutdown=2, lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
        served.close()


class PacedEngine:
    """Continuous batching in miniature: `rows` requests at once, one character of each every `pause` seconds."""

    name = "paced"

    def __init__(self, pause: float = 0.002, rows: int = 8, answer=echo):
        self.capabilities = Capabilities(context_length=10_000, max_concurrency=rows)
        self._pause, self._answer = pause, answer
        self._lock = threading.Lock()
        self._waiting: list[tuple] = []
        self._running: list[tuple] = []
        self._stats = EngineStats()
        self._open = True
        self.frozen = False  # the loop is stuck: no token, no cancelling
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def submit(self, request: GenerationRequest) -> GenerationStream[Delta]:
        cancelled = threading.Event()
        stream: GenerationStream[Delta] = GenerationStream(cancelled.set)
        if request.prompt_ids is not None:
            text = "".join(map(chr, request.prompt_ids))
        else:
            text = self._answer([dict(m) for m in request.messages])
        if len(text) > self.capabilities.context_length:
            stream.fail(RequestError("the prompt is too long"))
            return stream
        limit = request.sampling.max_new_tokens or len(text)
        with self._lock:
            self._waiting.append(
                (stream, cancelled, iter(enumerate(text[:limit], 1)), min(limit, len(text)), len(text))
            )
        return stream

    def _count(self, **more: int) -> None:
        self._stats = replace(self._stats, **{name: getattr(self._stats, name) + n for name, n in more.items()})

    def _loop(self) -> None:
        while self._open:
            time.sleep(self._pause)
            if self.frozen:
                continue
            with self._lock:
                self._step()

    def _step(self) -> None:
        while self._waiting and len(self._running) < self.capabilities.max_concurrency:
            self._running.append(self._waiting.pop(0))
        for row in list(self._running):
            stream, cancelled, characters, last, length = row
            if cancelled.is_set():
                self._running.remove(row)
                stream.put(Delta(finish_reason="cancelled", usage=Usage(0, 0)))
                stream.end()
                self._count(cancelled=1)
                continue
            number, char = next(characters)
            done = number == last
            reason = ("stop" if last == length else "length") if done else None
            stream.put(Delta(char, (ord(char),), finish_reason=reason, usage=Usage(length, number) if done else None))
            self._count(generated_tokens=1, finished=int(done))
            if done:
                stream.end()
                self._running.remove(row)

    def stats(self) -> EngineStats:
        with self._lock:
            return replace(self._stats, running=len(self._running), waiting=len(self._waiting))

    def close(self) -> None:
        self._open = False
        self._thread.join()
