"""POST /v1/responses: OpenAI's Responses API, whole and streamed.

Nothing is stored: a conversation is sent whole each time.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from swift.engines.protocol import Usage
from swift.serve.conversation import ChatCall, Replies, whole_replies
from swift.serve.errors import ApiError, invalid
from swift.serve.forcing import wanted_call, wanted_format
from swift.serve.http import event, json_response, read_body, stream_response, while_connected
from swift.serve.messages import conversation, function_tool
from swift.serve.params import CHOICE, Param, harmless, read, sampling, unsupported
from swift.serve.replies import Content, Piece, Reasoning, ToolCall
from swift.serve.service import Service

RESPONSE = (
    Param("model", "string"),
    Param("input", "string|array", required=True),
    Param("instructions", "string"),
    Param("max_output_tokens", "integer", low=1),
    Param("stream", "boolean"),
    Param("tools", "array"),
    Param("tool_choice", "string|object"),
    Param("parallel_tool_calls", "boolean"),
    Param("text", "object"),
    Param("reasoning", "object"),
    Param("include", "array"),
    Param("metadata", "object"),
    *CHOICE,
    *unsupported(
        previous_response_id=(),
        conversation=(),
        background=(False,),
        truncation=("disabled",),
        prompt=(),
        max_tool_calls=(),
        top_logprobs=(0,),
        context_management=([],),
    ),
    *harmless(
        "store",
        "user",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "stream_options",
    ),
)
TOOL = (
    Param("type", "string", required=True, choices=("function",)),
    Param("name", "string", required=True),
    Param("description", "string"),
    Param("parameters", "object"),
    *harmless("strict", "defer_loading"),
)
TEXT = (Param("format", "object"), *unsupported(verbosity=("medium",)))
REASONING = (Param("effort", "string"), *harmless("summary", "generate_summary"))


async def create(service: Service, request: Request) -> Response:
    body = read(await read_body(request, service.settings.limits), RESPONSE)
    call = response_call(service, body)
    if body.get("stream"):
        chunks = _events(service, call, body)
        return await stream_response(request, chunks, error_events, service.settings.limits)
    replies, usage = await while_connected(request, whole_replies(service, call))
    items = _Items()
    reply = replies[0]
    for piece in (Reasoning(reply.reasoning), Content(reply.content), *reply.calls):
        if isinstance(piece, ToolCall) or piece.text:
            items.add(piece)
    items.close()
    return json_response(_response(call, body, items.done, reply.finish_reason, usage))


def response_call(service: Service, body: Mapping[str, Any]) -> ChatCall:
    model, adapter = service.model(body.get("model"))
    text = read(body.get("text", {}), TEXT, "text.")
    schema = wanted_format(text.get("format"), "text.format")
    one_call = body.get("parallel_tool_calls") is False
    offered, wanted = wanted_call(body.get("tool_choice"), _tools(body.get("tools", ())), not one_call)
    for item in body.get("include", ()):
        if item == "message.output_text.logprobs":
            raise invalid(f"{item} is not supported by this server", "include", "unsupported_parameter")
    effort = read(body.get("reasoning", {}), REASONING, "reasoning.").get("effort")
    return ChatCall(
        model=model,
        adapter=adapter,
        messages=conversation(_messages(body), service.prompts.kinds),
        tools=offered,
        variables={} if effort is None else {"reasoning_effort": effort},
        sampling=sampling(body, service.settings.defaults, max_new_tokens=body.get("max_output_tokens")),
        one_call=one_call,
        wanted=wanted if wanted.call else replace(wanted, schema=schema),
    )


def _tools(values: Sequence[Any]) -> list[dict[str, Any]]:
    found = []
    for i, tool in enumerate(values):
        if isinstance(tool, dict) and tool.get("type") != "function":
            message = f"tools of type {tool.get('type')} are not supported by this server, only function"
            raise invalid(message, f"tools[{i}].type", "unsupported_parameter")
        given = read(tool, TOOL, f"tools[{i}].")
        found.append(function_tool(given["name"], given.get("description"), given.get("parameters")))
    return found


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The input's items as chat messages; calls and reasoning join the assistant message that they belong to."""
    chat: list[dict[str, Any]] = []
    if body.get("instructions"):
        chat.append({"role": "system", "content": body["instructions"]})
    given = body["input"]
    if isinstance(given, str):
        return [*chat, {"role": "user", "content": given}]
    for i, item in enumerate(given):
        where = f"input[{i}]"
        if not isinstance(item, dict):
            raise invalid(f"{where} must be an object", where, "invalid_type")
        _add_item(chat, item, where)
    if not given:
        raise invalid("input is empty", "input", "invalid_value")
    return chat


def _add_item(chat: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        message = {"role": item.get("role"), "content": item.get("content")}
        if message["role"] == "assistant" and _open_assistant(chat) and "content" not in chat[-1]:
            chat[-1]["content"] = message["content"]
        else:
            chat.append(message)
    elif kind == "function_call":
        if not _open_assistant(chat):
            chat.append({"role": "assistant"})
        function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
        chat[-1].setdefault("tool_calls", []).append({"id": item.get("call_id"), "function": function})
    elif kind == "function_call_output":
        chat.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output", "")})
    elif kind == "reasoning":
        texts = [part.get("text", "") for part in item.get("content") or () if isinstance(part, dict)]
        if any(texts):
            chat.append({"role": "assistant", "reasoning_content": "\n".join(map(str, texts))})
    else:
        raise invalid(f"{where}: items of type {kind!r} are not supported by this server", where, "unsupported_content")


def _open_assistant(chat: Sequence[Mapping[str, Any]]) -> bool:
    return bool(chat) and chat[-1]["role"] == "assistant"


# --- output items and events -----------------------------------------------------------------------------------------


def _identity(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


class _Items:
    """Output items from pieces: reasoning, a message, function calls. The methods return the events (kind, fields)."""

    def __init__(self) -> None:
        self.done: list[dict[str, Any]] = []
        self._kind: type | None = None
        self._id = ""
        self._text: list[str] = []

    def add(self, piece: Piece) -> list[tuple[str, dict[str, Any]]]:
        if isinstance(piece, ToolCall):
            return [*self.close(), *self._call(piece)]
        events = []
        if self._kind is not type(piece):
            events = [*self.close(), *self._start(type(piece))]
        self._text.append(piece.text)
        fields = self._place() | {"delta": piece.text}
        if isinstance(piece, Reasoning):
            return [*events, ("response.reasoning_text.delta", fields)]
        return [*events, ("response.output_text.delta", fields | {"logprobs": []})]

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": len(self.done), "content_index": 0}

    def _start(self, kind: type) -> list[tuple[str, dict[str, Any]]]:
        self._kind, self._text = kind, []
        self._id = _identity("rs" if kind is Reasoning else "msg")
        added = (
            "response.output_item.added",
            {"output_index": len(self.done), "item": self._item("in_progress", None)},
        )
        if kind is Reasoning:
            return [added]
        return [added, ("response.content_part.added", self._place() | {"part": _text_part("")})]

    def _item(self, status: str, text: str | None) -> dict[str, Any]:
        if self._kind is Reasoning:
            content = [] if text is None else [{"type": "reasoning_text", "text": text}]
            return {"id": self._id, "type": "reasoning", "summary": [], "content": content, "status": status}
        content = [] if text is None else [_text_part(text)]
        return {"id": self._id, "type": "message", "role": "assistant", "status": status, "content": content}

    def close(self) -> list[tuple[str, dict[str, Any]]]:
        """End the item that is being written."""
        if self._kind is None:
            return []
        text = "".join(self._text)
        place = self._place()
        item = self._item("completed", text)
        finished = ("response.output_item.done", {"output_index": len(self.done), "item": item})
        if self._kind is Reasoning:
            events = [("response.reasoning_text.done", place | {"text": text}), finished]
        else:
            events = [
                ("response.output_text.done", place | {"text": text, "logprobs": []}),
                ("response.content_part.done", place | {"part": _text_part(text)}),
                finished,
            ]
        self.done.append(item)
        self._kind = None
        return events

    def _call(self, call: ToolCall) -> list[tuple[str, dict[str, Any]]]:
        identity, index = _identity("fc"), len(self.done)
        item = {"id": identity, "type": "function_call", "call_id": call.id, "name": call.name, "arguments": ""}
        item["status"] = "in_progress"
        whole = {**item, "arguments": call.arguments, "status": "completed"}
        place = {"item_id": identity, "output_index": index}
        self.done.append(whole)
        return [
            ("response.output_item.added", {"output_index": index, "item": item}),
            ("response.function_call_arguments.delta", place | {"delta": call.arguments}),
            ("response.function_call_arguments.done", place | {"name": call.name, "arguments": call.arguments}),
            ("response.output_item.done", {"output_index": index, "item": whole}),
        ]


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _response(
    call: ChatCall, body: Mapping[str, Any], output: Sequence[Any], finish: str | None, usage: Usage | None = None
) -> dict[str, Any]:
    """`finish`: None while it is being written."""
    status = {None: "in_progress", "length": "incomplete"}.get(finish, "completed")
    return {
        "id": _identity("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": body.get("metadata", {}),
        "model": call.model,
        "output": list(output),
        "parallel_tool_calls": not call.one_call,
        "previous_response_id": None,
        "temperature": call.sampling.temperature,
        "top_p": call.sampling.top_p,
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools", []),
        "text": {"format": (body.get("text") or {}).get("format") or {"type": "text"}},
        "truncation": "disabled",
        "store": False,
        "usage": None if usage is None else _usage_object(usage),
    }


def _usage_object(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


async def _events(service: Service, call: ChatCall, body: Mapping[str, Any]) -> AsyncGenerator[bytes, None]:
    number = 0
    items = _Items()
    begun = _response(call, body, [], None)

    def written(kind: str, fields: Mapping[str, Any]) -> bytes:
        nonlocal number
        number += 1
        return event({"type": kind, "sequence_number": number - 1, **fields}, kind)

    finish = "stop"
    async with Replies(service, call) as replies:
        async for step in replies:
            if number == 0:
                yield written("response.created", {"response": begun}) + written(
                    "response.in_progress", {"response": begun}
                )
            for piece in step.pieces:
                yield b"".join(written(kind, fields) for kind, fields in items.add(piece))
            finish = step.delta.finish_reason or finish
        usage = replies.usage
    yield b"".join(written(kind, fields) for kind, fields in items.close())
    whole = {**_response(call, body, items.done, finish, usage), "id": begun["id"], "created_at": begun["created_at"]}
    yield written("response.incomplete" if finish == "length" else "response.completed", {"response": whole})


def error_events(error: ApiError) -> bytes:
    fields = {"type": "error", "code": error.code or "server_error", "message": error.message, "param": error.param}
    return event({**fields, "sequence_number": 0}, "error")
