"""POST /v1/chat/completions: the OpenAI shapes, whole and streamed."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from swift.engines.protocol import TokenLogprob, Usage
from swift.serve.conversation import ChatCall, Replies, Reply, whole_replies
from swift.serve.errors import ApiError, invalid
from swift.serve.forcing import wanted_call, wanted_form
from swift.serve.http import dumps, event, json_response, read_body, stream_response, while_connected
from swift.serve.messages import conversation, tools
from swift.serve.params import FORMS, MESSAGES, SAMPLING, Param, harmless, read, sampling, stop_texts, unsupported
from swift.serve.replies import Content, Piece, Reasoning
from swift.serve.service import Service

DONE = b"data: [DONE]\n\n"
LOWEST_LOGPROB = -9999.0  # JSON has no infinity

CHAT = (
    Param("model", "string"),
    Param("messages", "array", required=True, shape=MESSAGES),
    Param("max_tokens", "integer", low=1),
    Param("max_completion_tokens", "integer", low=1),
    Param("stream", "boolean"),
    Param("stream_options", "object"),
    Param("logprobs", "boolean"),
    Param("top_logprobs", "integer", low=0),
    Param("tools", "array"),
    Param("tool_choice", "string|object"),
    Param("parallel_tool_calls", "boolean"),
    *FORMS,
    Param("chat_template_kwargs", "object"),
    Param("reasoning_effort", "string"),
    *SAMPLING,
    *unsupported(
        functions=([],),
        function_call=("none",),
        modalities=(["text"],),
        audio=(),
        prediction=(),
        web_search_options=(),
        verbosity=("medium",),
    ),
    *harmless(
        "user",
        "store",
        "metadata",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
    ),
)
STREAM_OPTIONS = (Param("include_usage", "boolean"), *harmless("include_obfuscation"))


async def chat_completions(service: Service, request: Request) -> Response:
    body = read(await read_body(request, service.settings.limits), CHAT)
    call = chat_call(service, body)
    with_usage = usage_wanted(body)
    if body.get("stream"):
        chunks = stream_chunks(service, call, with_usage)
        return await stream_response(request, chunks, error_events, service.settings.limits)
    replies, usage = await while_connected(request, whole_replies(service, call))
    return json_response(completion(call, replies, usage))


def chat_call(service: Service, body: Mapping[str, Any]) -> ChatCall:
    model, adapter = service.model(body.get("model"))
    one_call = body.get("parallel_tool_calls") is False
    offered, wanted = wanted_call(body.get("tool_choice"), tools(body.get("tools")), not one_call)
    form = wanted_form(body)
    variables = dict(body.get("chat_template_kwargs", {}))
    if "reasoning_effort" in body:
        variables.setdefault("reasoning_effort", body["reasoning_effort"])
    return ChatCall(
        model=model,
        adapter=adapter,
        messages=conversation(body["messages"], service.prompts.kinds),
        tools=offered,
        variables=variables,
        sampling=sampling(
            body,
            service.settings.defaults,
            max_new_tokens=body.get("max_completion_tokens", body.get("max_tokens")),
            stop=stop_texts(body),
            top_logprobs=wanted_logprobs(service, body),
        ),
        n=body.get("n", 1),
        one_call=one_call,
        wanted=wanted if wanted.call else replace(wanted, schema=form.schema, grammar=form.grammar),
    )


def wanted_logprobs(service: Service, body: Mapping[str, Any]) -> int | None:
    """top_logprobs where logprobs are asked for."""
    top = body.get("top_logprobs")
    if not body.get("logprobs"):
        if top:
            raise invalid("top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        return None
    check_logprobs(service, top or 0, "top_logprobs")
    return top or 0


def check_logprobs(service: Service, top: int, name: str) -> None:
    if not service.engine.capabilities.logprobs:
        raise invalid("this engine gives no log-probabilities", "logprobs", "unsupported_parameter")
    most = service.settings.limits.max_logprobs
    if top > most:
        raise invalid(f"{name} may be at most {most} on this server", name, "invalid_value")


def usage_wanted(body: Mapping[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not body.get("stream"):
        raise invalid("stream_options is only allowed with stream: true", "stream_options", "invalid_value")
    return bool(read(options, STREAM_OPTIONS, "stream_options.").get("include_usage"))


def usage_object(usage: Usage) -> dict[str, int]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def logprob_entry(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": max(logprob, LOWEST_LOGPROB), "bytes": list(token.encode())}


def logprobs_object(items: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [
        {**logprob_entry(item.token, item.logprob), "top_logprobs": [logprob_entry(text, p) for _, text, p in item.top]}
        for item in items
    ]
    return {"content": content, "refusal": None}


def finish_reason(engines: str, calls: int) -> str:
    return "tool_calls" if calls and engines == "stop" else engines


def completion(call: ChatCall, replies: Sequence[Reply], usage: Usage) -> dict[str, Any]:
    choices = []
    for index, reply in enumerate(replies):
        message: dict[str, Any] = {"role": "assistant", "content": reply.content}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.calls:
            message["content"] = reply.content or None
            message["tool_calls"] = [
                {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
                for c in reply.calls
            ]
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": logprobs_object(reply.logprobs) if call.sampling.logprobs else None,
                "finish_reason": finish_reason(reply.finish_reason, len(reply.calls)),
            }
        )
    return {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": call.model,
        "choices": choices,
        "usage": usage_object(usage),
    }


def delta_object(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, Content):
        return {"content": piece.text}
    if isinstance(piece, Reasoning):
        return {"reasoning_content": piece.text}
    function = {"name": piece.name, "arguments": piece.arguments}
    return {"tool_calls": [{"index": piece.index, "id": piece.id, "type": "function", "function": function}]}


async def stream_chunks(service: Service, call: ChatCall, with_usage: bool) -> AsyncGenerator[bytes, None]:
    frame = Frame(call.model, with_usage)
    calls = [0] * call.n
    begun = [False] * call.n
    pending: list[list[TokenLogprob]] = [[] for _ in range(call.n)]  # of tokens whose text is still held back
    async with Replies(service, call) as replies:
        async for step in replies:
            index = step.index
            if not begun[index]:
                begun[index] = True
                yield frame.chunk(index, {"role": "assistant", "content": ""})
            pending[index] += step.delta.logprobs
            for piece in step.pieces:
                calls[index] += not isinstance(piece, (Content, Reasoning))
                yield frame.chunk(index, delta_object(piece), pending[index])
                pending[index] = []
            if step.delta.finish_reason is not None:
                reason = finish_reason(step.delta.finish_reason, calls[index])
                yield frame.chunk(index, {}, pending[index], reason)
        if with_usage:
            yield frame.usage(replies.usage)
    yield DONE


class Frame:
    """The parts of a chunk that are the same for a whole stream, written once."""

    def __init__(self, model: str, with_usage: bool):
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion.chunk", "created": int(time.time())}
        self._head = f"data: {dumps({**head, 'model': model})[:-1]},"
        self._tail = ',"usage":null}\n\n' if with_usage else "}\n\n"

    def chunk(
        self, index: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprob] = (), finish: str | None = None
    ) -> bytes:
        shown = dumps(logprobs_object(logprobs)) if logprobs else "null"
        reason = f'"{finish}"' if finish else "null"
        choice = f'"choices":[{{"index":{index},"delta":{dumps(delta)},"logprobs":{shown},"finish_reason":{reason}}}]'
        return f"{self._head}{choice}{self._tail}".encode()

    def usage(self, usage: Usage) -> bytes:
        return f'{self._head}"choices":[],"usage":{dumps(usage_object(usage))}}}\n\n'.encode()


def error_events(error: ApiError) -> bytes:
    return event(error.openai()) + DONE
