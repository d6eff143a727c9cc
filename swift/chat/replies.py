"""Replies back into messages: reasoning, content and tool calls, by the way the template itself writes them.

`ReplyFormat.parse` undoes what the template does (swift.chat.learn_replies finds out what that is), tolerating other
white space than the template's. Tool calls are JSON objects, a name in front of JSON arguments, or key/value pairs in
tags or brackets.

Limit: key/value formats without quotes don't tell the text "7" from the number 7; the tools' schemas do, when given.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ReplyFormat:
    """reasoning: its marks. opens, closes: what may stand before and behind plain content. calls: the spelling of tool
    calls. behind: what is left between calls and content that follows them. stops: what ends a reply."""

    reasoning: Marks
    opens: tuple[str, ...]
    closes: tuple[str, ...]
    calls: Calls | None
    behind: str
    stops: tuple[str, ...]

    def parse(self, text: str, tools: Sequence[Any] | None = None) -> dict[str, Any]:
        """{"role", "content", "reasoning_content"?, "tool_calls"?}; arguments are objects, as templates take them."""
        text = without_stops(text, self.stops)
        reasoning, text = self.reasoning.split(text)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self.calls is not None:
            content, calls = self.calls.find(text, tools or ())
            if calls:
                content = content.strip()
                message["content"] = content.replace(self.behind, "", 1) if self.behind else content
                message["tool_calls"] = [
                    {"type": "function", **({"id": identity} if identity else {}), "function": function}
                    for identity, function in calls
                ]
        message["content"] = self._content(message["content"])
        if reasoning:
            message["reasoning_content"] = reasoning
        return message

    def _content(self, text: str) -> str:
        for closing in self.closes:
            mark = closing.strip()
            bare = text.rstrip() if mark else text
            if bare.endswith(mark or closing):
                space = closing[: len(closing) - len(closing.lstrip())]
                text = bare[: len(bare) - len(mark)].removesuffix(space)
                break
        for opening in self.opens:
            if text.startswith(opening):
                return text[len(opening) :]
        return "" if any(text.strip() and opening.startswith(text.strip()) for opening in self.opens) else text


@dataclass(frozen=True)
class Marks:
    """opening, closing: around reasoning, None where the template writes none. opened: the prompt already ends inside
    it. kept: the closing mark begins what follows (the `Action:` behind a `Thought:`). behind: the reasoning follows
    the answer; the opening mark then has the white space that stands before it."""

    opening: str = ""
    closing: str | None = None
    opened: bool = False
    kept: bool = False
    behind: bool = False

    def split(self, text: str) -> tuple[str, str]:
        """The reasoning, and the rest."""
        if self.closing is None:
            return "", text
        if self.behind:
            mark = self.opening.lstrip()
            answer, found, reasoning = text.rpartition(mark)
            answer = answer.removesuffix(self.opening.removesuffix(mark))
            return (reasoning.strip().removesuffix(self.closing).strip(), answer) if found else ("", text)
        before, found, after = text.partition(self.closing)
        if not self.opened and self.opening and not text.lstrip().startswith(self.opening):
            return "", text
        if not found and not self.opened and not self.opening:
            return "", text
        rest = found + after if self.kept else after.lstrip("\n")
        return before.strip().removeprefix(self.opening).strip(), rest if found else ""


# --- tool calls ------------------------------------------------------------------------------------------------------

Call = tuple["str | None", dict[str, Any]]


@dataclass(frozen=True)
class JsonCalls:
    """Objects that hold the name and the arguments: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

    begin: str
    end: str
    name: str
    arguments: str

    def find(self, text: str, tools: Sequence[Any]) -> tuple[str, list[Call]]:
        start = text.find(self.begin) if self.begin else self._bare(text, tools)
        if start < 0:
            return text, []
        calls: list[Call] = []
        position = stop = start + len(self.begin)
        while (brace := text.find("{", position)) >= 0:
            value, position = json_at(text, brace)
            if isinstance(value, dict) and isinstance(value.get(self.name), str) and self.arguments in value:
                arguments = value[self.arguments]
                if isinstance(arguments, str):
                    arguments = _literal(arguments)
                calls.append((value.get("id"), {"name": value[self.name], "arguments": arguments}))
                stop = position
        return (text[:start] + text[stop:].strip().removeprefix(self.end) if calls else text), calls

    def _bare(self, text: str, tools: Sequence[Any]) -> int:
        """Where calls without a mark begin: at the front, or behind words with an object that calls a tool."""
        front = len(text) - len(text.lstrip())
        if text.startswith(("{", "["), front):
            return front
        names = {tool.get("function", tool).get("name") for tool in tools if isinstance(tool, Mapping)}
        for brace in re.finditer(r"\{", text):
            value, _ = json_at(text, brace.start())
            if isinstance(value, dict) and self.arguments in value and value.get(self.name) in names:
                return brace.start()
        return -1


@dataclass(frozen=True)
class NamedCalls:
    """A name, something fixed, JSON arguments: `[TOOL_CALLS]name[ARGS]{...}`. close: what ends a call, where content
    may follow it; None: none does."""

    wrapper: re.Pattern[str]
    pattern: re.Pattern[str]
    close: str | None = None

    def find(self, text: str, tools: Sequence[Any]) -> tuple[str, list[Call]]:
        calls: list[Call] = []
        position, first = 0, None
        while match := self.pattern.search(text, position):
            value, position = json_at(text, match.end())
            if isinstance(value, dict):
                first = match.start() if first is None else first
                calls.append((match.groupdict().get("id"), {"name": match["name"], "arguments": value}))
        if first is None:
            return text, []
        rest = "" if self.close is None else text[position:].strip().removeprefix(self.close).strip()
        return self.wrapper.sub("", text[:first]) + rest, calls


@dataclass(frozen=True)
class PairCalls:
    """Keys and values one by one: `<function=name><parameter=key>value</parameter></function>`, `name(key='value')`.

    escaped: a quote in a text has a backslash before it. assign_text: what stands before a text, where that is not
    `assign` (`string="true">`).
    """

    wrapper: re.Pattern[str]
    start: re.Pattern[str]
    joined: re.Pattern[str]
    first: str
    assign: str
    quotes: tuple[str, str]
    between: str
    end: str
    close: str
    empty: str
    escaped: bool
    assign_text: str = ""

    def find(self, text: str, tools: Sequence[Any]) -> tuple[str, list[Call]]:
        calls: list[Call] = []
        position, begin = 0, None
        match = self.start.search(text)
        while match:
            position = match.end()
            pairs = self._pairs(text, position)
            if pairs is None:
                match = self.start.search(text, position)
                continue
            begin = match.start() if begin is None else begin
            found, position = pairs
            types = _types(tools, match["name"])
            arguments = {k: self._value(v, "string" if is_text else types.get(k)) for k, v, is_text in found}
            calls.append((None, {"name": match["name"], "arguments": arguments}))
            match = self.joined.match(text, position) or self.start.search(text, position)
        if begin is None:
            return text, []
        rest = text[position:].strip().removeprefix(self.close.strip()).strip()
        return self.wrapper.sub("", text[:begin]) + rest, calls

    def _pairs(self, text: str, position: int) -> tuple[list[tuple[str, str, bool]], int] | None:
        """(key, raw value, whether it is marked as a text) of each pair, and where they end."""
        pairs: list[tuple[str, str, bool]] = []
        for nothing in (self.empty, self.first + self.end):
            stop = _at(text, position, nothing) if nothing.strip() else None
            if stop is not None:
                return [], stop
        after = _at(text, position, self.first)
        if after is None:
            return None
        while True:
            ends = [(text.find(a.strip() or a, after), a) for a in (self.assign, self.assign_text) if a]
            key_end, assign = min((end for end in ends if end[0] >= 0), default=(-1, ""))
            if key_end < 0:
                return None
            key = text[after:key_end].strip()
            value, position = self._scan(text, _at(text, key_end, assign) or key_end)
            pairs.append((key, value, assign == self.assign_text))
            after = _at(text, position, self.between)
            if after is None:
                return pairs, _at(text, position, self.end) or position

    def _scan(self, text: str, position: int) -> tuple[str, int]:
        """The raw value at `position`: up to what separates or ends pairs, outside of quotes and brackets."""
        opening, closing = self.quotes
        start, depth = position, 0
        while position < len(text):
            if opening and text.startswith(opening, position):
                stop = text.find(closing, position + len(opening))
                while self.escaped and stop > 0 and _backslashes(text, stop) % 2:
                    stop = text.find(closing, stop + 1)
                position = len(text) if stop < 0 else stop + len(closing)
                continue
            if depth == 0 and (_at(text, position, self.between) or _at(text, position, self.end)) is not None:
                break
            if opening:
                depth += (text[position] in "[{(") - (text[position] in "]})")
            position += 1
        return text[start:position], position

    def _value(self, raw: str, kind: str | None) -> Any:
        opening, closing = self.quotes
        if opening and raw.startswith(opening) and raw.endswith(closing):
            read = _literal(raw) if self.escaped else None
            return read if isinstance(read, str) else raw[len(opening) : len(raw) - len(closing)]
        if kind == "string":
            return raw
        if opening and opening not in ("'", '"'):
            raw = re.sub(r"([{,]\s*)([\w\-]+)\s*:", r'\1"\2":', raw.replace(opening, '"').replace(closing, '"'))
        return _literal(raw)


Calls = JsonCalls | NamedCalls | PairCalls


def _backslashes(text: str, end: int) -> int:
    """How many stand before `end`."""
    return end - len(text[:end].rstrip("\\"))


def _types(tools: Sequence[Any], name: str) -> dict[str, Any]:
    """Argument name -> JSON schema type, of the tool with this name."""
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
        if function.get("name") == name:
            properties = (function.get("parameters") or {}).get("properties") or {}
            return {key: value.get("type") for key, value in properties.items() if isinstance(value, Mapping)}
    return {}


def _literal(raw: str) -> Any:
    """A JSON or Python value, else the text itself."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(raw)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return raw


def json_at(text: str, position: int) -> tuple[Any, int]:
    """The JSON value at `position` and where it ends; (None, one further) where there is none."""
    while position < len(text) and text[position].isspace():
        position += 1
    try:
        return json.JSONDecoder(strict=False).raw_decode(text, position)
    except (ValueError, RecursionError):
        return None, position + 1


def _at(text: str, position: int, literal: str) -> int | None:
    """Where `literal` ends when it stands at `position`, exactly or with other white space."""
    if text.startswith(literal, position):
        return position + len(literal)
    words = literal.split()
    match = re.compile(r"\s*" + r"\s*".join(map(re.escape, words))).match(text, position) if words else None
    return match.end() if match else None


def without_stops(text: str, stops: Sequence[str]) -> str:
    while True:
        bare = text.rstrip()
        stop = next((stop for stop in stops if bare.endswith(stop)), None)
        if stop is None:
            return text
        text = bare[: len(bare) - len(stop)]
