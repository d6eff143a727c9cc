"""POST /v1/completions: text or token ids in, their continuation out; several prompts in one request.

Log-probabilities of the prompt (echo with logprobs, what benchmarks score with) need an engine that gives them;
without one that is a 400.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from swift.engines.protocol import GenerationRequest, Sampling, TokenLogprob, Usage, choices
from swift.serve.chat import DONE, LOWEST_LOGPROB, check_logprobs, error_events, usage_object, usage_wanted
from swift.serve.errors import invalid
from swift.serve.forcing import wanted_form
from swift.serve.http import event, json_response, read_body, stream_response, while_connected
from swift.serve.params import FORMS, SAMPLING, Param, harmless, read, sampling, stop_texts, token_ids, unsupported
from swift.serve.service import Answers, Service

DEFAULT_MAX_TOKENS = 16  # the API's
MOST_PROMPTS = 1024

COMPLETION = (
    Param("model", "string"),
    Param("prompt", "string|array", required=True),
    Param("max_tokens", "integer", low=0),
    Param("stream", "boolean"),
    Param("stream_options", "object"),
    Param("logprobs", "integer", low=0),
    Param("echo", "boolean"),
    Param("best_of", "integer", low=1),
    *FORMS,
    *SAMPLING,
    *unsupported(suffix=("",)),
    *harmless("user"),
)


@dataclass
class Text:
    """One continuation. `offset` is where its next token's text begins in it, in characters."""

    text: str = ""
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list)
    prompt: Sequence[TokenLogprob | None] = ()


@dataclass(frozen=True)
class Job:
    """`requests`: the n continuations of each prompt, one after the other. `echoes`: what each text begins with,
    `firsts`: the text of its prompt's first token, where the prompt is scored.
    """

    model: str
    requests: list[GenerationRequest]
    echoes: list[str]
    firsts: list[str]
    logprobs: bool
    prompt_tokens: int


async def completions(service: Service, request: Request) -> Response:
    body = read(await read_body(request, service.settings.limits), COMPLETION)
    with_usage = usage_wanted(body)
    job = await while_connected(request, _job(service, body))
    if body.get("stream"):
        chunks = _chunks(service, job, with_usage)
        return await stream_response(request, chunks, error_events, service.settings.limits)
    return json_response(await while_connected(request, _whole(service, job)))


async def _job(service: Service, body: Mapping[str, Any]) -> Job:
    model, adapter = service.model(body.get("model"))
    n = body.get("n", 1)
    if body.get("best_of", n) != n:
        raise invalid("best_of is not supported by this server beside n", "best_of", "unsupported_parameter")
    logprobs = body.get("logprobs")
    if logprobs is not None:
        check_logprobs(service, logprobs, "logprobs")
    default = service.settings.defaults.max_new_tokens or DEFAULT_MAX_TOKENS
    max_tokens = body.get("max_tokens", default)
    if max_tokens == 0 and not body.get("echo"):
        raise invalid("max_tokens must be at least 1 without echo", "max_tokens", "invalid_value")
    settings = sampling(
        body, service.settings.defaults, max_new_tokens=max_tokens, stop=stop_texts(body), top_logprobs=logprobs
    )
    if body.get("echo") and logprobs is not None:
        settings = replace(settings, prompt_logprobs=logprobs)
    grammar = service.forcing.grammar(service.engine, wanted_form(body), (), "")
    settings = replace(settings, grammar=grammar)
    prompts = await service.in_thread(_prompt_ids, service, body["prompt"])
    echoes = [""] * len(prompts)
    if body.get("echo"):
        echoes = [await service.in_thread(_echo, service, given, ids) for given, ids in prompts]
    requests = [
        request
        for _, ids in prompts
        for request in choices(GenerationRequest(prompt_ids=ids, adapter=adapter, sampling=settings), n)
    ]
    texts = [echo for echo in echoes for _ in range(n)]
    firsts = [""] * len(requests)
    if settings.prompt_logprobs is not None:
        shown = [await service.in_thread(service.prompts.decode, ids[:1]) for _, ids in prompts]
        firsts = [first for first in shown for _ in range(n)]
    return Job(model, requests, texts, firsts, logprobs is not None, sum(len(ids) for _, ids in prompts))


def _echo(service: Service, given: str | None, ids: Sequence[int]) -> str:
    return service.prompts.decode(ids) if given is None else given


def _prompt_ids(service: Service, prompt: Any) -> list[tuple[str | None, list[int]]]:
    """(the text if it was given as one, token ids) of each prompt: one or several, texts or ids."""
    if isinstance(prompt, str) or (prompt and all(isinstance(part, int) for part in prompt)):
        prompt = [prompt]
    if not prompt:
        raise invalid("prompt is empty", "prompt", "invalid_value")
    if len(prompt) > MOST_PROMPTS:
        raise invalid(f"at most {MOST_PROMPTS} prompts in one request", "prompt", "invalid_value")
    found: list[tuple[str | None, list[int]]] = []
    for part in prompt:
        if isinstance(part, str):
            found.append((part, service.prompts.encode(part)))
        elif isinstance(part, list):
            found.append((None, token_ids(part, "prompt")))
            service.prompts.check(found[-1][1])
        else:
            raise invalid("prompt must be a string, token ids, or a list of these", "prompt", "invalid_type")
        if not found[-1][1]:
            raise invalid("prompt has no tokens", "prompt", "invalid_value")
    return found


def _logprobs(
    items: Sequence[TokenLogprob], offset: int, prompt: Sequence[TokenLogprob | None] = (), first: str = ""
) -> dict[str, Any]:
    """`offset`: characters in front of the first of `items`. With `prompt` its tokens come first: the first of all has
    no log-probability, since nothing predicts it.
    """
    scored = [item for item in (*prompt, *items) if item is not None]
    shown: dict[str, list[Any]] = {
        "tokens": [item.token for item in scored],
        "token_logprobs": [max(item.logprob, LOWEST_LOGPROB) for item in scored],
        "top_logprobs": [_top(item) for item in scored],
    }
    if prompt:
        offset = 0
        for name, value in (("tokens", first), ("token_logprobs", None), ("top_logprobs", None)):
            shown[name].insert(0, value)
    offsets = accumulate((len(token) for token in shown["tokens"]), initial=offset)
    return {**shown, "text_offset": list(offsets)[:-1]}


def _top(item: TokenLogprob) -> dict[str, float]:
    """The likeliest tokens, and the chosen one where it isn't among them."""
    top = {text: max(p, LOWEST_LOGPROB) for _, text, p in reversed(item.top)}  # of equal texts the likelier counts
    return {**top, item.token: max(item.logprob, top.get(item.token, LOWEST_LOGPROB))}


def _usage(job: Job, answers: Answers) -> dict[str, int]:
    """Each prompt counts once, however many continuations it has."""
    return usage_object(Usage(job.prompt_tokens, sum(u.completion_tokens for u in answers.usages)))


def _head(job: Job) -> dict[str, Any]:
    return {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": job.model,
    }


def _asks_nothing(sampling: Sampling) -> bool:
    return sampling.max_new_tokens == 0 and sampling.prompt_logprobs is None


async def _whole(service: Service, job: Job) -> dict[str, Any]:
    texts = [Text(echo, "length") for echo in job.echoes]
    usage = usage_object(Usage(job.prompt_tokens, 0))
    if not _asks_nothing(job.requests[0].sampling):
        async with Answers(service, job.requests) as answers:
            async for index, delta in answers:
                text = texts[index]
                text.text += delta.text
                text.logprobs += delta.logprobs
                text.prompt = text.prompt or delta.prompt_logprobs
                text.finish_reason = delta.finish_reason or text.finish_reason
            usage = _usage(job, answers)
    shown = [
        {
            "index": i,
            "text": text.text,
            "logprobs": _logprobs(text.logprobs, len(job.echoes[i]), text.prompt, job.firsts[i])
            if job.logprobs
            else None,
            "finish_reason": text.finish_reason,
        }
        for i, text in enumerate(texts)
    ]
    return {**_head(job), "choices": shown, "usage": usage}


async def _chunks(service: Service, job: Job, with_usage: bool) -> AsyncGenerator[bytes, None]:
    head = _head(job)
    offsets = [0] * len(job.requests)
    fixed: dict[str, Any] = {"usage": None} if with_usage else {}

    def chunk(index: int, text: str, logprobs: Any = None, finish: str | None = None) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return event({**head, "choices": [choice], **fixed})

    nothing = _asks_nothing(job.requests[0].sampling)
    for index, echo in enumerate(job.echoes):
        offsets[index] = len(echo)
        if echo and nothing:
            yield chunk(index, echo, finish="length")
    usage = usage_object(Usage(job.prompt_tokens, 0))
    if not nothing:
        async with Answers(service, job.requests) as answers:
            begun = [not echo for echo in job.echoes]
            async for index, delta in answers:
                text = delta.text
                if not begun[index]:
                    begun[index], text = True, job.echoes[index] + text
                logprobs = None
                if job.logprobs and (delta.logprobs or delta.prompt_logprobs):
                    logprobs = _logprobs(delta.logprobs, offsets[index], delta.prompt_logprobs, job.firsts[index])
                offsets[index] += sum(len(item.token) for item in delta.logprobs)
                if text or logprobs or delta.finish_reason:
                    yield chunk(index, text, logprobs, delta.finish_reason)
            usage = _usage(job, answers)
    if with_usage:
        yield event({**head, "choices": [], "usage": usage})
    yield DONE
