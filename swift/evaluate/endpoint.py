"""A model behind an OpenAI-style URL answers. Whether the endpoint can score prompts (completions with `echo` and
`logprobs`) and whether it chats is tried once at the start; where it can't score, questions are asked by generation.

Needs no tokenizer: the continuation's tokens are found by their offsets in the echoed text. Requests are repeated
after connection failures, 429 and 5xx; what was answered before a failure has been handed on.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from swift.errors import SwiftError, UsageError
from swift.evaluate.answering import Ask, Generated
from swift.evaluate.thinking import after

TIMEOUT_SECONDS = 600.0
ATTEMPTS = 6
FIRST_PAUSE_SECONDS = 1.0
MOST_STOPS = 4  # the API's limit; further ones are cut off here
PROBE = "The sky is blue and the grass is green."
T = TypeVar("T")


class EndpointError(SwiftError):
    """The endpoint can't be reached, or doesn't answer as an OpenAI-style API does."""

    exit_code = 4


class Refused(EndpointError):
    """The endpoint says no to a request (4xx); `status` is its code."""

    def __init__(self, status: int, text: str, url: str):
        super().__init__(f"refused the request ({status}): {text}", where=url)
        self.status = status


class Client:
    """POST and GET of JSON with repeats."""

    def __init__(self, base: str, key: str | None):
        self.base = base
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def call(self, path: str, body: Mapping[str, Any] | None = None, attempts: int = ATTEMPTS) -> Any:
        url = f"{self.base}/{path}"
        data = None if body is None else json.dumps(body).encode()
        for attempt in range(1, attempts + 1):
            try:
                request = urllib.request.Request(url, data, self._headers)
                with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                    return json.loads(response.read())
            except urllib.error.HTTPError as error:
                text = _message(error.read())
                if error.code != 429 and error.code < 500:
                    raise Refused(error.code, text, url) from error
                failure: Exception = Refused(error.code, text, url)
            except (OSError, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                failure = EndpointError(
                    f"no answer: {reason}", where=url, fix="is the server running, and is --eval_url its?"
                )
            if attempt < attempts:
                time.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
        raise failure


def _message(body: bytes) -> str:
    """What the server says of an error, in a line."""
    text = body.decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:300]
    inner = content.get("error", content) if isinstance(content, dict) else content
    message = inner.get("message", inner.get("detail", inner)) if isinstance(inner, dict) else inner
    return " ".join(str(message).split())[:300]


class Endpoint:
    """See the module. `parallel` requests are under way at once."""

    def __init__(self, client: Client, model: str, parallel: int, scores: bool, chats: bool):
        self._client, self._model, self._parallel = client, model, parallel
        self.name, self.scores, self.chats = f"{model} at {client.base}", scores, chats
        self.facts: Mapping[str, Any] = {"endpoint": client.base, "model": model, "log-probabilities": scores}
        self._limit_name = "max_tokens"
        self._spent: dict[str, int] = {}

    @classmethod
    def reach(cls, url: str, model: str | None, key: str | None, parallel: int) -> Endpoint:
        """Find the model and what the endpoint can; EndpointError or UsageError when nothing can be asked of it."""
        client = Client(base_of(url), key)
        model = find_model(client, model)
        scores, chats = can_score(client, model), _can_chat(client, model)
        if not scores and not chats and not _can_complete(client, model):
            raise EndpointError("answers neither chat/completions nor completions", where=client.base)
        return cls(client, model, parallel, scores, chats)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, tuple[float, bool]]]:
        yield from self._parallelly([lambda pair=pair: self._score(*pair) for pair in pairs])

    def _score(self, context: str, continuation: str) -> tuple[float, bool]:
        answer = self._client.call("completions", echo_request(self._model, context + continuation))
        self._count(answer, scored="prompt_tokens")
        return continuation_score(answer["choices"][0]["logprobs"], len(context), len(context + continuation))

    def generate(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Generated]]:
        yield from self._parallelly([lambda ask=ask: self._generate(ask) for ask in asks])

    def _generate(self, ask: Ask) -> Generated:
        body: dict[str, Any] = {"model": self._model, "temperature": ask.temperature, self._limit_name: ask.most}
        for name in ("top_p", "top_k", "repetition_penalty", "seed"):
            if getattr(ask, name) is not None:
                body[name] = getattr(ask, name)
        if ask.until:
            body["stop"] = list(ask.until[:MOST_STOPS])
        path = "chat/completions" if ask.chat else "completions"
        body |= {"messages": json.loads(ask.prompt)} if ask.chat else {"prompt": ask.prompt}
        answer = self._posted(path, body)
        self._count(answer, prompt="prompt_tokens", generated="completion_tokens")
        choice = answer["choices"][0]
        text = (choice["message"].get("content") or "") if ask.chat else choice["text"]
        text = after(text, "</think>") if ask.chat else text
        for stop in ask.until:
            text = text.partition(stop)[0]
        usage = answer.get("usage") or {}
        reason = str(choice.get("finish_reason"))
        return Generated(text, usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0), reason)

    def _posted(self, path: str, body: dict[str, Any]) -> Any:
        """The answer; the newer name of the token limit is taken where the endpoint asks for it."""
        try:
            return self._client.call(path, body)
        except Refused as error:
            if error.status != 400 or "max_completion_tokens" not in error.what or "max_tokens" not in body:
                raise
        self._limit_name = "max_completion_tokens"
        body["max_completion_tokens"] = body.pop("max_tokens")
        return self._client.call(path, body)

    def _parallelly(self, jobs: Sequence[Callable[[], T]]) -> Iterator[tuple[int, T]]:
        """(index, result) as they end. After a failure those under way are still handed on, and then it is raised."""
        failure: BaseException | None = None
        with ThreadPoolExecutor(self._parallel) as pool:
            places: dict[Future[T], int] = {pool.submit(job): i for i, job in enumerate(jobs)}
            try:
                for future in as_completed(places):
                    if future.cancelled():
                        continue
                    error = future.exception()
                    if error is None:
                        yield places[future], future.result()
                    elif failure is None:
                        failure = error
                        for other in places:
                            other.cancel()
            finally:
                for future in places:
                    future.cancel()
        if failure is not None:
            raise failure

    def chat_prompt(self, messages: list[dict[str, str]], opened: bool) -> str:
        return json.dumps(messages, ensure_ascii=False)

    def _count(self, answer: Mapping[str, Any], **kinds: str) -> None:
        usage = answer.get("usage") or {}
        for kind, name in kinds.items():
            self._spent[kind] = self._spent.get(kind, 0) + int(usage.get(name) or 0)

    def spent(self) -> dict[str, int]:
        spent, self._spent = self._spent, {}
        return spent

    def close(self) -> None:
        pass


def base_of(url: str) -> str:
    """`http://host:port/v1` of any of its addresses."""
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no URL", where="--eval_url", fix="--eval_url http://HOST:PORT/v1")
    base = url.rstrip("/")
    for tail in ("/chat/completions", "/completions", "/models"):
        base = base.removesuffix(tail)
    return base if base.count("/") > 2 else f"{base}/v1"


def find_model(client: Client, wanted: str | None) -> str:
    """The name to ask by: `wanted` if the endpoint has it, else its first; UsageError when there is none."""
    try:
        listing = client.call("models", attempts=3)
    except Refused as error:
        if wanted is None:
            raise UsageError(
                f"the endpoint doesn't list its models ({error.status})", where=client.base, fix="name one with --model"
            ) from error
        return wanted
    names = [str(entry["id"]) for entry in listing.get("data", [])]
    if wanted is None and names:
        return names[0]
    if wanted is None or (names and wanted not in names):
        raise UsageError(
            f"the endpoint has no model {wanted!r}",
            where=f"--model {wanted}",
            fix=f"it has: {', '.join(names[:8]) or 'none'}",
        )
    return wanted


def echo_request(model: str, prompt: str) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}


def can_score(client: Client, model: str) -> bool:
    """Whether completions give the log-probabilities of their prompt."""
    try:
        answer = client.call("completions", echo_request(model, PROBE), attempts=2)
        value, _ = continuation_score(answer["choices"][0]["logprobs"], len("The sky"), len(PROBE))
    except (EndpointError, KeyError, IndexError, TypeError):
        return False
    return value < 0


def _can_chat(client: Client, model: str) -> bool:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
    try:
        client.call("chat/completions", {**body, "max_tokens": 1}, attempts=2)
    except Refused as error:
        return "max_completion_tokens" in error.what
    return True


def _can_complete(client: Client, model: str) -> bool:
    try:
        client.call("completions", {"model": model, "prompt": PROBE, "max_tokens": 1}, attempts=2)
    except Refused:
        return False
    return True


def continuation_score(logprobs: Mapping[str, Any], start: int, end: int) -> tuple[float, bool]:
    """(log-probability, greedy) of the echoed text from character `start` to `end`.

    A token counts when some of its text lies there: one that reaches over the border is the same for all
    continuations. EndpointError when such a token has no log-probability.
    """
    tokens, values = logprobs["tokens"], logprobs["token_logprobs"]
    offsets, tops = logprobs.get("text_offset"), logprobs.get("top_logprobs")
    if not offsets:
        offsets, at = [], 0
        for token in tokens:
            offsets.append(at)
            at += len(token)
    ends = [*offsets[1:], end]
    total, greedy, found = 0.0, True, False
    for i, value in enumerate(values):
        if ends[i] <= start or offsets[i] >= end:
            continue
        if value is None:
            raise EndpointError("the endpoint gives no log-probability of the prompt's tokens")
        found = True
        total += value
        best = max((tops[i] or {}).values(), default=value) if tops and tops[i] else value
        greedy = greedy and value >= best - 1e-6
    if not found:
        raise EndpointError("the endpoint doesn't echo the prompt")
    return total, greedy
