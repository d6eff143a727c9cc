"""POST /v1/messages and /v1/messages/count_tokens: the Anthropic shapes, whole and streamed."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from swift.engines.protocol import Usage
from swift.serve.conversation import ChatCall, Replies, Reply, whole_replies
from swift.serve.errors import ApiError, invalid
from swift.serve.forcing import wanted_call, wanted_format
from swift.serve.http import event, json_response, read_body, stream_response, while_connected
from swift.serve.media import content_of
from swift.serve.messages import function_tool
from swift.serve.params import CHOICE, TURNS, Param, harmless, read, sampling, stop_texts, unsupported
from swift.serve.replies import Content, Piece, Reasoning
from swift.serve.service import Service

CONVERSATION = (
    Param("model", "string"),
    Param("messages", "array", required=True, shape=TURNS),
    Param("system", "string|array"),
    Param("tools", "array"),
    Param("tool_choice", "object"),
    Param("thinking", "object"),
    *harmless("cache_control"),
)
COUNT = (*CONVERSATION, *harmless("output_config"))
MESSAGES = (
    *CONVERSATION,
    Param("max_tokens", "integer", low=1, required=True),
    Param("stream", "boolean"),
    Param("stop_sequences", "array"),
    Param("output_config", "object"),
    *CHOICE,
    *unsupported(container=(), mcp_servers=([],), context_management=({"edits": []},)),
    *harmless("metadata", "service_tier", "inference_geo", "user_profile_id", "workspace_id", "diagnostics", "speed"),
)
MESSAGE = (
    Param("role", "string", required=True, choices=("user", "assistant")),
    Param("content", "string|array", required=True),
)
TOOL = (
    Param("name", "string", required=True),
    Param("description", "string"),
    Param("input_schema", "object", required=True),
    Param("type", "string", choices=("custom",)),
    *harmless("cache_control", "strict", "eager_input_streaming", "input_examples", "defer_loading", "allowed_callers"),
)
TOOL_CHOICE = (
    Param("type", "string", required=True, choices=("auto", "none", "any", "tool")),
    Param("name", "string"),
    Param("disable_parallel_tool_use", "boolean"),
)
THINKING = (
    Param("type", "string", required=True, choices=("enabled", "disabled", "adaptive")),
    *harmless("budget_tokens", "display"),
)
OUTPUT_CONFIG = (Param("format", "object"), *harmless("effort"))
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}
KEEP_ALIVE = event({"type": "ping"}, "ping")


async def messages(service: Service, request: Request) -> Response:
    body = read(await read_body(request, service.settings.limits), MESSAGES)
    call = message_call(service, body)
    thinking = shows_thinking(body)
    if body.get("stream"):
        chunks = _events(service, call, thinking)
        return await stream_response(request, chunks, error_events, service.settings.limits, KEEP_ALIVE)
    replies, usage = await while_connected(request, whole_replies(service, call))
    return json_response(_message(call, replies[0], usage, thinking))


async def count_tokens(service: Service, request: Request) -> Response:
    body = read(await read_body(request, service.settings.limits), COUNT)
    call = message_call(service, body)
    prompt = await service.in_thread(service.prompts.chat, call.messages, call.tools or None, {})
    if prompt.tokens is None:
        raise invalid("this engine has no tokenizer here, so tokens can't be counted", code="unsupported")
    return json_response({"input_tokens": prompt.tokens})


def message_call(service: Service, body: Mapping[str, Any]) -> ChatCall:
    model, adapter = service.model(body.get("model"))
    config = read(body["output_config"], OUTPUT_CONFIG, "output_config.") if "output_config" in body else {}
    schema = wanted_format(config.get("format"), "output_config.format")
    choice = read(body["tool_choice"], TOOL_CHOICE, "tool_choice.") if "tool_choice" in body else {"type": "auto"}
    one_call = choice.get("disable_parallel_tool_use", False)
    named = {"type": "function", "name": choice.get("name")}
    meant = {"any": "required", "tool": named}.get(choice["type"], choice["type"])
    offered, wanted = wanted_call(meant, _tools(body.get("tools", ())), not one_call)
    return ChatCall(
        model=model,
        adapter=adapter,
        messages=_conversation(body, service.prompts.kinds),
        tools=offered,
        sampling=sampling(
            body,
            service.settings.defaults,
            max_new_tokens=body.get("max_tokens"),
            stop=stop_texts(body, "stop_sequences"),
        ),
        one_call=one_call,
        wanted=wanted if wanted.call else replace(wanted, schema=schema),
    )


def shows_thinking(body: Mapping[str, Any]) -> bool:
    """Reasoning is in the answer unless the request says disabled. How long a model reasons can't be bounded apart."""
    return "thinking" not in body or read(body["thinking"], THINKING, "thinking.")["type"] != "disabled"


def _tools(values: Sequence[Any]) -> list[dict[str, Any]]:
    found = []
    for i, tool in enumerate(values):
        given = read(tool, TOOL, f"tools[{i}].")
        found.append(function_tool(given["name"], given.get("description"), given["input_schema"]))
    return found


def _conversation(body: Mapping[str, Any], kinds: frozenset[str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if body.get("system"):
        rows.append({"role": "system", "content": content_of(body["system"], "system")})
    names: dict[str, str] = {}
    for i, message in enumerate(body["messages"]):
        where = f"messages[{i}]"
        given = read(message, MESSAGE, f"{where}.")
        content = given["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not blocks:
            raise invalid(f"{where} is empty", f"{where}.content", "invalid_value")
        for k, block in enumerate(blocks):
            if not isinstance(block, dict) or not isinstance(block.get("type"), str):
                raise invalid("a content block must be an object with a type", f"{where}.content[{k}]", "invalid_type")
        if given["role"] == "assistant":
            rows.append(_assistant(blocks, where, names))
        else:
            rows += _user(blocks, where, names, kinds)
    if not body["messages"]:
        raise invalid("messages is empty", "messages", "invalid_value")
    if rows[-1]["role"] == "assistant":
        raise invalid(
            "the last message must not be the assistant's: an answer can't be prefilled", "messages", "invalid_value"
        )
    return rows


def _assistant(blocks: Sequence[Mapping[str, Any]], where: str, names: dict[str, str]) -> dict[str, Any]:
    texts, thoughts, calls = [], [], []
    for k, block in enumerate(blocks):
        place = f"{where}.content[{k}]"
        if block["type"] == "text":
            texts.append(content_of([block], place))
        elif block["type"] == "thinking":
            thoughts.append(_string(block, "thinking", place))
        elif block["type"] == "tool_use":
            identity, name = _string(block, "id", place), _string(block, "name", place)
            names[identity] = name
            arguments = block.get("input")
            if not isinstance(arguments, dict):
                raise invalid("input must be an object", f"{place}.input", "invalid_type")
            calls.append({"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}})
        elif block["type"] != "redacted_thinking":
            raise invalid(f"{block['type']} blocks are not supported here", place, "unsupported_content")
    row: dict[str, Any] = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        row["reasoning_content"] = "\n".join(thoughts)
    if calls:
        row["tool_calls"] = calls
    return row


def _user(
    blocks: Sequence[Mapping[str, Any]], where: str, names: Mapping[str, str], kinds: frozenset[str]
) -> list[dict[str, Any]]:
    """Tool results first, as the API has it, then what the user says."""
    rows, said = [], []
    for k, block in enumerate(blocks):
        place = f"{where}.content[{k}]"
        if block["type"] == "tool_result":
            identity = _string(block, "tool_use_id", place)
            if identity not in names:
                raise invalid(f"no message before it makes the tool call {identity!r}", place, "invalid_value")
            content = block.get("content") or ""
            if not isinstance(content, (str, list)):
                raise invalid("content must be a string or an array", f"{place}.content", "invalid_type")
            found = content_of(content, place, kinds)
            rows.append({"role": "tool", "tool_call_id": identity, "name": names[identity], "content": found})
        else:
            said.append(block)
    if said:
        rows.append({"role": "user", "content": content_of(said, where, kinds)})
    return rows


def _string(block: Mapping[str, Any], name: str, place: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise invalid(f"{name} must be a string", f"{place}.{name}", "invalid_type")
    return value


def _identity() -> str:
    return f"msg_{uuid.uuid4().hex[:24]}"


def _stop_reason(engines: str, calls: int) -> str:
    return "tool_use" if calls and engines == "stop" else STOP_REASONS[engines]


def _message(call: ChatCall, reply: Reply, usage: Usage, thinking: bool) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    if reply.reasoning and thinking:
        content.append({"type": "thinking", "thinking": reply.reasoning, "signature": ""})
    if reply.content:
        content.append({"type": "text", "text": reply.content})
    for made in reply.calls:
        content.append({"type": "tool_use", "id": made.id, "name": made.name, "input": _object(made.arguments)})
    return {
        "id": _identity(),
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": content,
        "stop_reason": _stop_reason(reply.finish_reason, len(reply.calls)),
        "stop_sequence": None,
        "usage": {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens},
    }


def _object(arguments: str) -> Any:
    """A call's arguments; the API has no place for text that isn't JSON, so that stands under `_raw`."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return {"_raw": arguments}
    return value if isinstance(value, dict) else {"_raw": arguments}


def _named(kind: str, **fields: Any) -> bytes:
    return event({"type": kind, **fields}, kind)


class _Blocks:
    """Opens, fills and closes content blocks as pieces of different kinds come."""

    def __init__(self) -> None:
        self._index = -1
        self._kind: type | None = None

    def add(self, piece: Piece) -> bytes:
        if isinstance(piece, Content):
            start, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": piece.text}
        elif isinstance(piece, Reasoning):
            start = {"type": "thinking", "thinking": "", "signature": ""}
            delta = {"type": "thinking_delta", "thinking": piece.text}
        else:
            start = {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}
            arguments = json.dumps(_object(piece.arguments), ensure_ascii=False)
            delta = {"type": "input_json_delta", "partial_json": arguments}
        out = b""
        if self._kind is not type(piece) or start["type"] == "tool_use":
            out += self.close()
            self._index, self._kind = self._index + 1, type(piece)
            out += _named("content_block_start", index=self._index, content_block=start)
        return out + _named("content_block_delta", index=self._index, delta=delta)

    def close(self) -> bytes:
        if self._kind is None:
            return b""
        self._kind = None
        return _named("content_block_stop", index=self._index)


async def _events(service: Service, call: ChatCall, thinking: bool) -> AsyncGenerator[bytes, None]:
    blocks = _Blocks()
    begun, calls, reason = False, 0, "stop"
    async with Replies(service, call) as replies:
        async for step in replies:
            if not begun:
                begun = True
                yield _start(call, replies.prompt_tokens or 0)
            for piece in step.pieces:
                if not isinstance(piece, Reasoning) or thinking:
                    calls += not isinstance(piece, (Content, Reasoning))
                    yield blocks.add(piece)
            reason = step.delta.finish_reason or reason
        usage = {"input_tokens": replies.usage.prompt_tokens, "output_tokens": replies.usage.completion_tokens}
    yield blocks.close()
    delta = {"stop_reason": _stop_reason(reason, calls), "stop_sequence": None}
    yield _named("message_delta", delta=delta, usage=usage) + _named("message_stop")


def _start(call: ChatCall, prompt_tokens: int) -> bytes:
    message = {
        "id": _identity(),
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {"input_tokens": prompt_tokens, "output_tokens": 0},
    }
    return _named("message_start", message=message)


def error_events(error: ApiError) -> bytes:
    return event(error.anthropic(), "error")
