"""An engine that is a server elsewhere, spoken to over HTTP: any endpoint of OpenAI's kind, or a child process of ours.

Promises: the protocol's, with an encoder of the model's: prompts are then made here, by the model's own template, and
token ids are sent; without one the messages are sent and the server's template is used. A server that is busy or away
is asked again for `patience` seconds, as long as nothing of the answer has come; a request that was there when the
server ended twice is asked once more by itself: one that kills it fails alone. Cancelling closes the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import httpx

from swift.engines.limits import Lengths
from swift.engines.protocol import (
    Capabilities,
    Delta,
    EngineError,
    EngineStats,
    EngineUnavailable,
    GenerationRequest,
    RequestError,
    Text,
    TokenLogprob,
    Usage,
    closed,
    no_numbers,
)
from swift.engines.stream import GenerationStream
from swift.engines.wire import OPENAI, Dialect, Reader, ask_ids, ask_messages, prompt_scores

log = logging.getLogger("swift")

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 600.0  # without a byte from the server, queueing included
RETRY_STATUS = (429, 502, 503, 504)
UNKNOWN_LENGTHS = Lengths()
FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.5, 10.0
SUSPECT_AFTER = 2  # ends of the server while it had a request; from then on the request is asked by itself


class Encoder(Protocol):
    """The part of a ChatEncoder that is needed here."""

    @property
    def stop_token_ids(self) -> Sequence[int]: ...

    def prompt(self, messages: Any, tools: Any = None) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class HttpEngine:
    """`where()` gives the server's address without /v1, or raises EngineUnavailable while there is none.

    `model` is the name that the server knows the base model by; `adapters` are names it serves beside it, and
    `default_adapter` is used by requests that name none. `system` begins conversations that have no system message,
    where the server makes the prompts.
    """

    def __init__(
        self,
        where: Callable[[], str],
        model: str,
        *,
        dialect: Dialect = OPENAI,
        encoder: Encoder | None = None,
        api_key: str | None = None,
        lengths: Lengths = UNKNOWN_LENGTHS,
        max_concurrency: int = 64,
        adapters: Sequence[str] = (),
        default_adapter: str | None = None,
        loads_adapters: bool = False,
        system: str | None = None,
        patience: float = 60.0,
    ):
        self.name, self._system = dialect.name, system
        self._where, self._model, self._dialect, self._encoder = where, model, dialect, encoder
        self._lengths, self._default_adapter, self._patience = lengths, default_adapter, patience
        self.capabilities = Capabilities(
            lengths.context,
            max_concurrency,
            prompt_ids=dialect.ids == "prompt" or encoder is not None,
            unsupported=dialect.unsupported | (frozenset() if dialect.scoring else {"prompt_logprobs"}),
            grammars=frozenset(dialect.grammars),
            adapters=tuple(adapters),
            loads_adapters=loads_adapters,
        )
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._encoding = threading.Lock()
        self._counting, self._door = threading.Lock(), threading.Lock()
        self._ended = False
        self._stats = EngineStats()
        self._heard = time.monotonic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"swift-{self.name}", daemon=True)
        self._thread.start()
        self._client = asyncio.run_coroutine_threadsafe(self._connect(max_concurrency), self._loop).result()

    async def _connect(self, connections: int) -> httpx.AsyncClient:
        self._places, self._alone = asyncio.Semaphore(connections), asyncio.Lock()
        return httpx.AsyncClient(
            headers=self._headers,
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=connections + 4, max_keepalive_connections=connections),
            trust_env=False,  # no proxy stands between us and the server that was named
        )

    # ---- the protocol ----

    def submit(self, request: GenerationRequest) -> GenerationStream[Delta]:
        tasks: list[asyncio.Task[None]] = []  # the one that answers, once it has been made
        deltas: GenerationStream[Delta] = GenerationStream(lambda: self._cancel(tasks))
        try:
            path, body, ids = self._prepare(request)
        except Exception as error:
            self._count(failed=1)
            deltas.fail(error)
            return deltas
        self._count(waiting=1)
        try:
            with self._door:
                self._loop.call_soon_threadsafe(self._start, request, path, body, ids, deltas, tasks)
        except RuntimeError:  # the loop is closed
            self._refuse(deltas)
        return deltas

    def numbers(self, texts: Sequence[Text], adapter: str | None = None) -> list[Future[list[float]]]:
        raise no_numbers(self.name)

    def load_adapter(self, name: str, path: Path) -> None:
        if not self.capabilities.loads_adapters:
            raise RequestError("this engine loads no adapters while it runs", param="adapter")
        self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        kept = tuple(n for n in self.capabilities.adapters if n != name)
        self.capabilities = replace(self.capabilities, adapters=(*kept, name))

    def unload_adapter(self, name: str) -> None:
        if name not in self.capabilities.adapters:
            raise RequestError(f"no adapter named {name!r} is loaded", param="adapter")
        self._post("/v1/unload_lora_adapter", {"lora_name": name})
        left = tuple(n for n in self.capabilities.adapters if n != name)
        self.capabilities = replace(self.capabilities, adapters=left)

    def stats(self) -> EngineStats:
        with self._counting:
            silent = time.monotonic() - self._heard if self._stats.running else 0.0
            return replace(self._stats, silent=silent)

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        with self._door:
            self._loop.run_until_complete(asyncio.sleep(0))  # requests that came meanwhile are refused
            self._loop.close()

    async def _end(self) -> None:
        self._ended = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def _refuse(self, deltas: GenerationStream[Delta]) -> None:
        self._count(waiting=-1, failed=1)
        deltas.fail(closed())

    # ---- requests ----

    def _prepare(self, request: GenerationRequest) -> tuple[str, dict[str, Any], list[int] | None]:
        """(path, body, the prompt's ids if they are known here)."""
        self.capabilities.check(request)
        if (request.prompt_ids is None) == (request.messages is None):
            raise RequestError("a request has either messages or prompt_ids")
        sampling = request.sampling
        model = self._model_name(request.adapter)
        if request.messages is not None and self._encoder is None:
            if sampling.prompt_logprobs is not None:
                raise RequestError("log-probabilities of a prompt need its token ids", param="prompt_logprobs")
            messages = list(request.messages)
            if self._system and not any(message["role"] == "system" for message in messages):
                messages.insert(0, {"role": "system", "content": self._system})
            body = ask_messages(self._dialect, model, messages, request.tools, sampling)
            return "/v1/chat/completions", body, None
        ids = self._lengths.cut(self._ids(request))
        sampling = replace(sampling, max_new_tokens=self._lengths.answer(sampling, len(ids)))
        if self._encoder is not None:
            ends = (*sampling.stop_token_ids, *self._encoder.stop_token_ids)
            if "stop_token_ids" not in self._dialect.unsupported:
                sampling = replace(sampling, stop_token_ids=tuple(dict.fromkeys(ends)))
        return self._dialect.path, ask_ids(self._dialect, model, ids, sampling), ids

    def _ids(self, request: GenerationRequest) -> list[int]:
        if request.prompt_ids is not None:
            ids = list(request.prompt_ids)
        else:
            assert self._encoder is not None
            if any(_has_media(message) for message in request.messages or ()):
                raise RequestError(f"{self.name} is sent text only here", fix="--infer_backend pt", param="messages")
            with self._encoding:
                ids = list(self._encoder.prompt(request.messages, request.tools))
        if not ids:
            raise RequestError("the prompt is empty", param="prompt")
        return ids

    def _model_name(self, adapter: str | None) -> str:
        adapter = adapter or self._default_adapter
        return self._model if adapter is None else self._dialect.adapter.format(base=self._model, adapter=adapter)

    def _start(
        self, request: GenerationRequest, path: str, body: Any, ids: Any, deltas: Any, tasks: list[asyncio.Task[None]]
    ) -> None:
        if self._ended:
            return self._refuse(deltas)
        answer = Answer(self, request, path, body, ids, deltas)
        task = self._loop.create_task(answer.run())
        tasks.append(task)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if task.cancelled():  # before it took its first step
                answer.cancelled_early()

        task.add_done_callback(ended)

    def _cancel(self, tasks: list[asyncio.Task[None]]) -> None:
        def cancel() -> None:
            for task in tasks:
                task.cancel()

        with contextlib.suppress(RuntimeError):  # the loop is closed, and everything has ended
            self._loop.call_soon_threadsafe(cancel)

    def _count(self, **more: int) -> None:
        with self._counting:
            self._stats = replace(self._stats, **{name: getattr(self._stats, name) + n for name, n in more.items()})

    def _hear(self, alive: bool = True) -> None:
        with self._counting:
            self._heard = time.monotonic()
            self._stats = replace(self._stats, alive=alive)

    def _decode(self, ids: Sequence[int]) -> str:
        if self._encoder is None:
            return f"token_id:{ids[0]}"
        with self._encoding:
            return self._encoder.decode(ids)

    def _post(self, path: str, body: Mapping[str, Any]) -> None:
        async def post() -> None:
            response = await self._client.post(self._where() + path, json=body, timeout=120.0)
            if response.status_code >= 400:
                raise _refusal(response.status_code, response.content)

        try:
            asyncio.run_coroutine_threadsafe(post(), self._loop).result()
        except httpx.HTTPError as error:
            raise EngineUnavailable(f"{self.name} can't be reached: {_reason(error)}") from error


class Answer:
    """One request on its way: sent, sent again while the server is away, read to its end."""

    def __init__(
        self,
        engine: HttpEngine,
        request: GenerationRequest,
        path: str,
        body: dict[str, Any],
        ids: list[int] | None,
        deltas: GenerationStream[Delta],
    ):
        self._engine, self._path, self._body, self._ids, self._deltas = engine, path, body, ids, deltas
        self._sampling = request.sampling
        self._reader = Reader(engine._decode, self._sampling.top_logprobs)
        self._usage = Usage(len(ids or ()), 0)
        self._reason: str | None = None
        self._stop_text: str | None = None
        self._running = False
        self._begun = False
        self._broken = 0  # how often the server went away with this request in its hands

    async def run(self) -> None:
        engine, deltas = self._engine, self._deltas
        outcome = "failed"
        try:
            async with engine._places:
                self._running = True
                engine._count(waiting=-1, running=1)
                await self._until_answered()
            deltas.put(Delta(finish_reason=self._reason or "stop", usage=self._usage, stop_text=self._stop_text))
            deltas.end()
            outcome = "finished"
        except asyncio.CancelledError:
            deltas.put(Delta(finish_reason="cancelled", usage=self._usage))
            deltas.end()
            outcome = "cancelled"
        except Exception as error:
            deltas.fail(error)
        finally:
            place = "running" if self._running else "waiting"
            usage = {"prompt_tokens": self._usage.prompt_tokens, "cached_tokens": self._usage.cached_tokens}
            engine._count(**{place: -1, outcome: 1}, **(usage if outcome == "finished" else {}))

    def cancelled_early(self) -> None:
        self._deltas.put(Delta(finish_reason="cancelled", usage=self._usage))
        self._deltas.end()
        self._engine._count(waiting=-1, cancelled=1)

    async def _until_answered(self) -> None:
        deadline = time.monotonic() + self._engine._patience
        pause = FIRST_RETRY_SECONDS
        while True:
            suspect = self._broken >= SUSPECT_AFTER
            try:
                async with self._engine._alone if suspect else contextlib.nullcontext():
                    return await self._ask()
            except EngineUnavailable as error:
                self._engine._hear(alive=False)
                if suspect and self._broken > SUSPECT_AFTER:
                    name, times = self._engine.name, self._broken
                    what = f"{name} ended {times} times while it had this request: it isn't asked again"
                    raise EngineError(what) from error
                if self._begun or time.monotonic() + pause > deadline:
                    raise
                wait = min(max(pause, error.retry_after if error.retry_after < 10 else pause), LONGEST_RETRY_SECONDS)
                await asyncio.sleep(wait)
                pause = min(2 * pause, LONGEST_RETRY_SECONDS)

    async def _ask(self) -> None:
        engine = self._engine
        try:
            url = engine._where() + self._path
            async with engine._client.stream("POST", url, json=self._body) as response:
                engine._hear()
                if response.status_code >= 400:
                    raise _refusal(response.status_code, await response.aread(), response.headers.get("retry-after"))
                if self._body.get("stream"):
                    async for chunk in _events(response):
                        self._take(chunk)
                else:
                    self._take(json.loads(await response.aread()))
        except httpx.HTTPError as error:
            self._broken += not isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))
            raise EngineUnavailable(f"the connection to {engine.name} broke: {_reason(error)}") from error
        if self._reason is None:
            raise EngineUnavailable(f"{engine.name} ended the connection before its answer had ended")

    def _take(self, chunk: Mapping[str, Any]) -> None:
        self._engine._hear()
        if chunk.get("error"):
            raise _refusal(int(chunk["error"].get("code") or 500), json.dumps(chunk).encode())
        if chunk.get("usage"):
            usage = chunk["usage"]
            cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
            self._usage = Usage(usage["prompt_tokens"], usage.get("completion_tokens") or 0, cached)
        for choice in chunk.get("choices") or ():
            self._put(choice)

    def _put(self, choice: Mapping[str, Any]) -> None:
        scores: tuple[TokenLogprob | None, ...] = ()
        if self._sampling.prompt_logprobs is not None:
            choice, scores = self._scored(choice)
        piece = self._reader.read(choice)
        self._reason = piece.reason or self._reason
        self._stop_text = piece.stop_text or self._stop_text
        self._begun = self._begun or bool(piece.text or piece.token_ids)
        self._engine._count(generated_tokens=len(piece.token_ids) or int(bool(piece.text)))
        if piece.text or piece.token_ids or piece.logprobs or scores:
            logprobs = piece.logprobs if self._sampling.logprobs else ()
            self._deltas.put(Delta(piece.text, piece.token_ids, logprobs, prompt_logprobs=scores))

    def _scored(self, choice: Mapping[str, Any]) -> tuple[Mapping[str, Any], tuple[TokenLogprob | None, ...]]:
        """The prompt's scores, and the choice without what was only asked for their sake."""
        dialect, ids, top = self._engine._dialect, self._ids or [], self._sampling.prompt_logprobs or 0
        decode = self._engine._decode
        scores = prompt_scores(dialect, choice, ids, Reader(decode, top), top, decode)
        choice = dict(choice)
        if dialect.scoring == "echo":
            found = choice["logprobs"]
            choice["logprobs"] = {key: value[len(ids) :] for key, value in found.items() if isinstance(value, list)}
            echoed = "".join(found["tokens"][: len(ids)])
            choice["text"] = choice["text"].removeprefix(echoed)
        if self._sampling.max_new_tokens == 0:
            self._usage = replace(self._usage, completion_tokens=0)
            choice |= {"text": "", "token_ids": (), "logprobs": None, "finish_reason": "length"}
        return choice, scores


async def _events(response: httpx.Response) -> AsyncIterator[Any]:
    """The JSON of each server-sent event, up to [DONE]."""
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data = line[5:].strip()
            if data == "[DONE]":
                return
            yield json.loads(data)


def _refusal(status: int, content: bytes, retry_after: str | None = None) -> Exception:
    """What a status of 400 and more means to whoever asked."""
    message = _message(content) or f"status {status}"
    if status in (401, 403):
        return RequestError(f"the server refuses the key: {message}", fix="--engine_api_key KEY")
    if status in RETRY_STATUS:
        seconds = float(retry_after) if (retry_after or "").isdigit() else 10.0
        return EngineUnavailable(f"the server can't answer now: {message}", retry_after=seconds)
    if status < 500:
        return RequestError(message)
    return EngineError(f"the server failed on this request: {message}")


def _message(content: bytes) -> str:
    """The sentence in an error body, in whichever of the usual places."""
    try:
        value = json.loads(content)
    except ValueError:
        return content[:300].decode(errors="replace").strip()
    for key in ("error", "detail", "message"):
        if isinstance(value, dict) and value.get(key):
            value = value[key]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)[:300]


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__


def _has_media(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(part.get("type") != "text" for part in content)
