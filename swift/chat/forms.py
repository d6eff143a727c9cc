"""The forms in which a row may give content, tool calls and tools, and the one that a template can read."""

from __future__ import annotations

import json
from typing import Any

from swift.chat.facts import Facts
from swift.errors import DataError, TemplateError


def with_content(message: dict[str, Any], facts: Facts, index: int) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str) and not facts.text_content:
        return {**message, "content": [{"type": "text", "text": content}]}
    if isinstance(content, list) and not facts.block_content:
        if any(not isinstance(part, dict) or "text" not in part for part in content):
            raise TemplateError(f"message {index + 1} has content that is not text; the chat template takes text only")
        return {**message, "content": "".join(part["text"] for part in content)}
    return message


def tools_of(tools: Any) -> list[Any] | None:
    """A row's tools as a list; JSON text is read."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else None
        except ValueError as error:
            raise DataError(f"tools is not valid JSON: {error}") from None
    return list(tools) if tools else None


def with_json_arguments(message: dict[str, Any], as_text: bool) -> dict[str, Any]:
    """The message with the arguments of its tool calls as JSON text or as objects; malformed JSON stays text."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return message
    changed = []
    for call in calls:
        inner = call.get("function") if isinstance(call.get("function"), dict) else call
        arguments = inner.get("arguments")
        if as_text and isinstance(arguments, (dict, list)):
            arguments = json.dumps(arguments, ensure_ascii=False)
        elif not as_text and isinstance(arguments, str):
            arguments = _parsed(arguments)
        inner = {**inner, "arguments": arguments} if "arguments" in inner else inner
        changed.append({**call, "function": inner} if "function" in call else inner)
    return {**message, "tool_calls": changed}


def _parsed(arguments: str) -> Any:
    try:
        value = json.loads(arguments)
    except ValueError:
        return arguments
    return value if isinstance(value, (dict, list)) else arguments
