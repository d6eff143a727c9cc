"""Messages of any dialect -> canonical messages.

Promises: OpenAI, Anthropic, ShareGPT and pair dialects (also mixed in one conversation) become
`{"role": system|user|assistant|tool, "content": str, ...}` with optional `tool_calls` (OpenAI form, `arguments` a
dict), `reasoning_content`, `name`, `tool_call_id`, `loss`, `loss_scale`. Media blocks become <image>, <video>, <audio>
tags in the text and entries of the row's media lists. What has no exact reading is a `RowError`, never a guess. Numbers
as content become their JSON text, and that is noted. Knows nothing of columns and files.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from swift.data.media import MediaSlots
from swift.data.rows import RowError

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "tool": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
    "function": "tool",
    "tool_call": "tool_call",
    "tool_calls": "tool_call",
    "function_call": "tool_call",
}
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
PAIR_KEYS = (("system", "system"), ("human", "user"), ("user", "user"), ("input", "user"))
PAIR_ANSWERS = ("assistant", "gpt", "bot", "output")
MOST_SCALE = 3e38  # loss scales are kept as float32
THINKING_KEYS = ("reasoning_content", "thinking", "reasoning")


def canonical_messages(value: Any, media: MediaSlots, notes: Counter[str]) -> list[dict[str, Any]]:
    """A conversation in any dialect as canonical messages; `media` is filled in the order of the tags."""
    value = parse_json_text(value, "messages")
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise RowError("messages is no list", f"it is {kind_of(value)}")
    messages: list[dict[str, Any]] = []
    for number, item in enumerate(value, 1):
        item = parse_json_text(item, f"message {number}")
        if not isinstance(item, Mapping):
            raise RowError("a message is no object", f"message {number} is {kind_of(item)}")
        for message in _flatten(item, number, media, notes):
            _add(messages, message)
    if not messages:
        raise RowError("empty messages")
    return messages


def parse_json_text(value: Any, what: str) -> Any:
    """Lists and objects that a csv cell or a careless writer stored as JSON text; other values unchanged."""
    if not isinstance(value, str):
        return value
    if value.lstrip()[:1] not in ("[", "{"):
        raise RowError(f"{what.split(' ')[0]} is text, not a list", repr(value[:60]))
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{what.split(' ')[0]} is broken JSON text", f"{what}: {error}") from error


def kind_of(value: Any) -> str:
    """The JSON name of a value's type, for messages to the user."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a string"}
    return names.get(type(value), "a list" if isinstance(value, list) else "an object")


def is_number(value: Any) -> bool:
    """An integer of any size or a finite float; no boolean."""
    return isinstance(value, int) and not isinstance(value, bool) or isinstance(value, float) and math.isfinite(value)


def text_of(value: Any, what: str, notes: Counter[str]) -> str:
    """A text, or a number as its JSON text (noted); RowError for anything else."""
    if isinstance(value, str):
        return value
    if is_number(value):
        notes["numbers taken as text"] += 1
        return json.dumps(value)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise RowError("null content", what)
    raise RowError("content is no text", f"{what} is {kind_of(value)}")


def _add(messages: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """Append a message; tool calls join the assistant turn before them, as the chat templates expect."""
    last = messages[-1] if messages else None
    if message.pop("_joins", False) and last is not None and last["role"] == "assistant":
        last.setdefault("tool_calls", []).extend(message["tool_calls"])
        last.update({key: message[key] for key in ("loss", "loss_scale") if key in message})
    else:
        messages.append(message)


def _flatten(item: Mapping[str, Any], number: int, media: MediaSlots, notes: Counter[str]) -> list[dict[str, Any]]:
    role_key = next((k for k in ROLE_KEYS if item.get(k) is not None), None)
    if role_key is None:
        return _pair(item, number, media, notes)
    role_name = item[role_key]
    role = ROLES.get(role_name.strip().lower()) if isinstance(role_name, str) else None
    if role is None:
        raise RowError("unknown role", f"message {number} has role {role_name!r}")
    content = next((item[k] for k in CONTENT_KEYS if item.get(k) is not None), None)
    what = f"message {number} ({role_name})"
    if role == "tool_call":
        calls = tool_calls(content, what)
        return [{"role": "assistant", "content": "", "tool_calls": calls, "_joins": True, **_loss(item, what)}]
    if role in ("user", "tool", "system") and isinstance(content, list):
        parts = _blocks(content, what, media, notes)
        return _split_results(role, parts, item, what)
    message: dict[str, Any] = {"role": role}
    calls = item.get("tool_calls") if item.get("tool_calls") is not None else item.get("function_call")
    if role == "assistant":
        _assistant(message, item, content, calls, what, media, notes)
    elif role == "tool":
        is_data = isinstance(content, (Mapping, bool))
        message["content"] = json.dumps(content, ensure_ascii=False) if is_data else text_of(content, what, notes)
        message.update(_named(item))
    else:
        message["content"] = media.take_tags(text_of(content, what, notes))
    message.update(_loss(item, what))
    return [message]


def _assistant(message, item, content, calls, what: str, media: MediaSlots, notes: Counter[str]) -> None:
    """Fill an assistant message: text, reasoning, tool calls; one of the three must be there."""
    thinking = next((item[k] for k in THINKING_KEYS if isinstance(item.get(k), str) and item[k]), None)
    if isinstance(content, list):
        parts = _blocks(content, what, media, notes)
        content, thinking = parts["text"], parts["thinking"] or thinking
        calls = (list(parse_json_text(calls, "tool_calls")) if calls else []) + parts["calls"]
    if calls:
        message["tool_calls"] = tool_calls(calls, what)
    if content is None and (calls or thinking):
        content = ""
    message["content"] = media.take_tags(text_of(content, what, notes))
    if thinking:
        message["reasoning_content"] = thinking
    if not message["content"].strip() and not calls and not thinking:
        raise RowError("empty assistant message", what)


def _pair(item: Mapping[str, Any], number: int, media: MediaSlots, notes: Counter[str]) -> list[dict[str, Any]]:
    """{"human": ..., "assistant": ...}: a whole round in one object."""
    turns = [(role, key) for key, role in PAIR_KEYS if item.get(key) is not None and (item[key] or role != "system")]
    turns += [("assistant", key) for key in PAIR_ANSWERS if item.get(key) is not None]
    if not turns:
        raise RowError("a message without a role", f"message {number} has {', '.join(map(str, item)) or 'nothing'}")
    messages = []
    for role, key in turns:
        messages += _flatten({"role": role, "content": item[key]}, number, media, notes)
    return messages


def _named(item: Mapping[str, Any]) -> dict[str, str]:
    return {k: item[k] for k in ("name", "tool_call_id") if isinstance(item.get(k), str)}


def _loss(item: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The per-message say on what to learn: `loss` (bool; OpenAI's `weight` 0 or 1) and `loss_scale` (number)."""
    found: dict[str, Any] = {}
    flag = item.get("loss") if item.get("loss") is not None else item.get("weight")
    if flag is not None:
        if flag not in (0, 1):
            raise RowError("loss is neither true nor false", f"{what}: {flag!r}")
        found["loss"] = bool(flag)
    scale = item.get("loss_scale")
    if scale is not None:
        if not is_number(scale) or abs(scale) > MOST_SCALE:
            raise RowError("loss_scale is no number", f"{what}: {scale!r}")
        found["loss_scale"] = float(scale)
    return found


def tool_calls(value: Any, what: str) -> list[dict[str, Any]]:
    """Tool calls in OpenAI form; `value`: a list, one call, or their JSON text; {"name", "arguments"} is wrapped."""
    value = _call_json(value, what)
    calls = []
    for item in value if isinstance(value, list) else [value]:
        call = _call_json(item, what)
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError("a tool call without a name", what)
        given = next((function[k] for k in ("arguments", "parameters", "input") if function.get(k) is not None), {})
        entry = {"type": "function", "function": {"name": function["name"], "arguments": _arguments(given, what)}}
        if isinstance(call.get("id"), str):
            entry["id"] = call["id"]
        calls.append(entry)
    return calls


def _call_json(value: Any, what: str) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise RowError("a tool call is broken JSON", f"{what}: {error}") from error


def _arguments(value: Any, what: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else {}
        except (ValueError, RecursionError) as error:
            raise RowError("tool call arguments are broken JSON", f"{what}: {error}") from error
    if not isinstance(value, Mapping):
        raise RowError("tool call arguments are no object", f"{what}: {kind_of(value)}")
    return dict(value)


def _blocks(blocks: list[Any], what: str, media: MediaSlots, notes: Counter[str]) -> dict[str, Any]:
    """Content blocks -> {"text", "thinking", "calls", "results"}; media blocks leave a tag in the text."""
    text, thinking, calls, results = [], [], [], []
    for block in blocks:
        if isinstance(block, str):
            text.append(media.take_tags(block))
            continue
        if not isinstance(block, Mapping):
            raise RowError("a content block is no object", f"{what}: {kind_of(block)}")
        kind = block.get("type")
        body = next((block[k] for k in ("text", "value", "thinking", "content") if block.get(k) is not None), None)
        if kind in ("text", "input_text", "output_text") or (kind is None and "text" in block):
            text.append(media.take_tags(text_of(body, what, notes)))
        elif kind in ("thinking", "reasoning"):
            thinking.append(text_of(body, what, notes))
        elif kind == "redacted_thinking":
            notes["redacted thinking left out"] += 1
        elif kind in ("tool_use", "tool_call", "function_call"):
            calls.append(block if "name" in block or "function" in block else body)
        elif kind == "tool_result":
            results.append(_result(block, what, media, notes))
        elif tag := media.take_block(block):
            text.append(tag)
        else:
            raise RowError("unknown content block", f"{what}: type {kind!r}")
    return {"text": "".join(text), "thinking": "\n".join(thinking), "calls": calls, "results": results}


def _result(block: Mapping[str, Any], what: str, media: MediaSlots, notes: Counter[str]) -> dict[str, Any]:
    content = block.get("content")
    if isinstance(content, list):
        content = _blocks(content, what, media, notes)["text"]
    message = {"role": "tool", "content": text_of("" if content is None else content, what, notes)}
    if isinstance(block.get("tool_use_id"), str):
        message["tool_call_id"] = block["tool_use_id"]
    return message


def _split_results(role: str, parts: dict[str, Any], item: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """Anthropic puts tool results into the user's turn: they become tool messages before what the user says."""
    messages = list(parts["results"])
    if parts["text"] or not messages:
        message = {"role": role, "content": parts["text"], **_loss(item, what)}
        messages.append(message | (_named(item) if role == "tool" else {}))
    return messages
