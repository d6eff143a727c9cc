"""Conversations as the OpenAI API has them, checked and brought into the rows that the chat template takes.

Promises: a message that can't be shown to the model as it is meant (an image for a text model, a tool result without
its call) is a 400 that names it. Content in parts becomes one text, a line for each part; with media, blocks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from swift.serve.errors import invalid
from swift.serve.media import content_of
from swift.serve.params import Param, harmless, read

MESSAGE = (
    Param("role", "string", required=True, choices=("system", "developer", "user", "assistant", "tool")),
    Param("content", "string|array"),
    Param("tool_calls", "array"),
    Param("tool_call_id", "string"),
    Param("reasoning_content", "string"),
    Param("reasoning", "string"),
    *harmless("name", "refusal", "annotations", "audio", "function_call", "id", "status"),
)
TOOL = (
    Param("type", "string", required=True, choices=("function",)),
    Param("function", "object", required=True),
)
FUNCTION = (
    Param("name", "string", required=True),
    Param("description", "string"),
    Param("parameters", "object"),
    *harmless("strict"),
)


def conversation(messages: Sequence[Any], kinds: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """The rows' form: role, content, and for assistants reasoning_content and tool_calls. `kinds`: of media that the
    model takes."""
    if not messages:
        raise invalid("messages is empty", "messages", "invalid_value")
    names: dict[str, str] = {}
    rows = []
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        given = read(message, MESSAGE, f"{where}.")
        role = {"developer": "system"}.get(given["role"], given["role"])
        row: dict[str, Any] = {"role": role, "content": content_of(given.get("content", ""), where, kinds)}
        if role == "assistant":
            row |= _assistant_fields(given, where, names)
        elif role == "tool":
            row |= _tool_fields(given, where, names)
        elif "content" not in given:
            raise invalid(f"{where} has no content", f"{where}.content", "missing_parameter")
        rows.append(row)
    return rows


def _assistant_fields(given: Mapping[str, Any], where: str, names: dict[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    reasoning = given.get("reasoning_content") or given.get("reasoning")
    if reasoning:
        fields["reasoning_content"] = reasoning
    if given.get("tool_calls"):
        fields["tool_calls"] = [
            _tool_call(call, f"{where}.tool_calls[{k}]", names) for k, call in enumerate(given["tool_calls"])
        ]
    elif "content" not in given and not reasoning:
        raise invalid(f"{where} has neither content nor tool_calls", where, "missing_parameter")
    return fields


def _tool_call(call: Any, where: str, names: dict[str, str]) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise invalid(f"{where} must have a function with a name", where, "invalid_type")
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            raise invalid(f"{where}: the arguments are not valid JSON", where, "invalid_value") from None
    identity = call.get("id")
    if not isinstance(identity, str):
        raise invalid(f"{where} has no id", where, "missing_parameter")
    names[identity] = function["name"]
    return {"id": identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _tool_fields(given: Mapping[str, Any], where: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Templates that show the function's name beside its result find it in `name`."""
    identity = given.get("tool_call_id")
    if identity is None:
        raise invalid(f"{where} has no tool_call_id", where, "missing_parameter")
    if identity not in names:
        raise invalid(
            f"{where} answers the tool call {identity!r}, which no message before it makes", where, "invalid_value"
        )
    return {"tool_call_id": identity, "name": names[identity]}


def tools(values: Sequence[Any] | None) -> list[dict[str, Any]]:
    found = []
    for i, tool in enumerate(values or ()):
        function = read(read(tool, TOOL, f"tools[{i}].")["function"], FUNCTION, f"tools[{i}].function.")
        found.append(function_tool(function["name"], function.get("description"), function.get("parameters")))
    return found


def function_tool(name: str, description: str | None, parameters: Mapping[str, Any] | None) -> dict[str, Any]:
    """A tool in the form that chat templates read."""
    function: dict[str, Any] = {"name": name}
    if description is not None:
        function["description"] = description
    function["parameters"] = parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}
