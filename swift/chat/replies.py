"""Replies back into messages: reasoning, content and tool calls, by the way the template itself writes them.

`learn_replies` renders a few assistant messages with known words in them and reads off what the template puts around
those words: the marks of reasoning, what opens plain content, and how a tool call is spelled (a JSON object, a name in
front of JSON arguments, or key/value pairs in tags or brackets). `ReplyFormat.parse` undoes it, tolerating other white
space than the template's. No format is known by name. A template that can't show tool calls has none to parse.

Limit: key/value formats without quotes don't tell the text "7" from the number 7; the tools' schemas do, when given.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NAME, OTHER, KEY_A, KEY_B, VALUE, NUMBER = "zq_tool", "zq_other", "zqa", "zqb", "zqv", 70707
ANSWER, THOUGHT, CALL_ID = "zqAnswer", "zqThought", "zqcall001"
_WORD = r"[\w.\-/]+"
Reply = Callable[[Mapping[str, Any]], "tuple[str, str] | None"]


@dataclass(frozen=True)
class ReplyFormat:
    """thought: (opening mark, closing mark) of reasoning, or None. opened: the prompt already ends inside reasoning.
    opens: what may stand before plain content. calls: the spelling of tool calls. stops: what ends a reply."""

    thought: tuple[str, str] | None
    opened: bool
    opens: tuple[str, ...]
    calls: JsonCalls | NamedCalls | PairCalls | None
    stops: tuple[str, ...]

    def parse(self, text: str, tools: Sequence[Any] | None = None) -> dict[str, Any]:
        """{"role", "content", "reasoning_content"?, "tool_calls"?}; arguments are objects, as templates take them."""
        text = _without_stops(text, self.stops)
        reasoning, text = self._reasoning(text)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self.calls is not None:
            content, calls = self.calls.find(text, tools or ())
            if calls:
                message["content"] = content.strip()
                message["tool_calls"] = [
                    {"type": "function", **({"id": identity} if identity else {}), "function": function}
                    for identity, function in calls
                ]
        message["content"] = self._content(message["content"])
        if reasoning:
            message["reasoning_content"] = reasoning
        return message

    def _reasoning(self, text: str) -> tuple[str, str]:
        if self.thought is None:
            return "", text
        opening, closing = self.thought
        before, found, after = text.partition(closing)
        if not self.opened and opening and not text.lstrip().startswith(opening):
            return "", text
        if not found and not self.opened and not opening:
            return "", text
        return before.strip().removeprefix(opening).strip(), after.lstrip("\n") if found else ""

    def _content(self, text: str) -> str:
        for opening in self.opens:
            if text.startswith(opening):
                return text[len(opening) :]
        return "" if any(text.strip() and opening.startswith(text.strip()) for opening in self.opens) else text


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
        start = text.find(self.begin) if self.begin else len(text) - len(text.lstrip())
        if start < 0 or (not self.begin and not text.startswith(("{", "["), start)):
            return text, []
        calls: list[Call] = []
        position = stop = start + len(self.begin)
        while (brace := text.find("{", position)) >= 0:
            value, position = _json_at(text, brace)
            if isinstance(value, dict) and isinstance(value.get(self.name), str) and self.arguments in value:
                arguments = value[self.arguments]
                if isinstance(arguments, str):
                    arguments = _literal(arguments)
                calls.append((value.get("id"), {"name": value[self.name], "arguments": arguments}))
                stop = position
        return (text[:start] + text[stop:].strip().removeprefix(self.end) if calls else text), calls


@dataclass(frozen=True)
class NamedCalls:
    """A name, something fixed, JSON arguments: `[TOOL_CALLS]name[ARGS]{...}`."""

    wrapper: re.Pattern[str]
    pattern: re.Pattern[str]

    def find(self, text: str, tools: Sequence[Any]) -> tuple[str, list[Call]]:
        calls: list[Call] = []
        position, first = 0, None
        while match := self.pattern.search(text, position):
            value, position = _json_at(text, match.end())
            if isinstance(value, dict):
                first = match.start() if first is None else first
                calls.append((match.groupdict().get("id"), {"name": match["name"], "arguments": value}))
        if first is None:
            return text, []
        return self.wrapper.sub("", text[:first]), calls


@dataclass(frozen=True)
class PairCalls:
    """Keys and values one by one: `<function=name><parameter=key>value</parameter></function>`, `name(key='value')`."""

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
            calls.append(
                (None, {"name": match["name"], "arguments": {k: self._value(v, types.get(k)) for k, v in found}})
            )
            match = self.joined.match(text, position) or self.start.search(text, position)
        if begin is None:
            return text, []
        rest = text[position:].strip().removeprefix(self.close.strip()).strip()
        return self.wrapper.sub("", text[:begin]) + rest, calls

    def _pairs(self, text: str, position: int) -> tuple[list[tuple[str, str]], int] | None:
        pairs: list[tuple[str, str]] = []
        for nothing in (self.empty, self.first + self.end):
            stop = _at(text, position, nothing) if nothing.strip() else None
            if stop is not None:
                return [], stop
        after = _at(text, position, self.first)
        if after is None:
            return None
        while True:
            key_end = text.find(self.assign.strip() or self.assign, after)
            if key_end < 0:
                return None
            key = text[after:key_end].strip()
            value, position = self._scan(text, _at(text, key_end, self.assign) or key_end)
            pairs.append((key, value))
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
            return raw[len(opening) : len(raw) - len(closing)]
        if kind == "string":
            return raw
        if opening and opening not in ("'", '"'):
            raw = re.sub(r"([{,]\s*)([\w\-]+)\s*:", r'\1"\2":', raw.replace(opening, '"').replace(closing, '"'))
        return _literal(raw)


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


def _json_at(text: str, position: int) -> tuple[Any, int]:
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


def _without_stops(text: str, stops: Sequence[str]) -> str:
    while True:
        bare = text.rstrip()
        stop = next((stop for stop in stops if bare.endswith(stop)), None)
        if stop is None:
            return text
        text = bare[: len(bare) - len(stop)]


# --- learning --------------------------------------------------------------------------------------------------------


def learn_replies(reply: Reply, prompt: str | None, stops: Sequence[str]) -> ReplyFormat:
    """reply: an assistant message -> (what the prompt has written already, what the template writes behind it)
    or None where the template refuses the message."""

    plain = reply({"content": ANSWER})
    tail = plain[1].rpartition(ANSWER)[2].strip() if plain else ""
    stops = [stop for stop in dict.fromkeys([tail, *stops, _without_stops(tail, stops)]) if stop]

    def bare(message: Mapping[str, Any]) -> tuple[str, str] | None:
        shown = reply(message)
        return shown and (shown[0], _without_stops(shown[1], stops))

    thought, opens, opened = _learn_reasoning(bare, prompt or "")
    return ReplyFormat(thought, opened, opens, _learn_calls(bare, thought), tuple(stops))


def _learn_reasoning(reply: Reply, prompt: str) -> tuple[tuple[str, str] | None, tuple[str, ...], bool]:
    plain = reply({"content": ANSWER})
    opens = [plain[1].partition(ANSWER)[0]] if plain and ANSWER in plain[1] else []
    shown = reply({"content": ANSWER, "reasoning_content": THOUGHT})
    if shown is None or not _in_order(shown[1], THOUGHT, ANSWER):
        call = reply({"content": "", "reasoning_content": THOUGHT, "tool_calls": [_call({KEY_A: VALUE})]})
        if call is None or not _in_order(call[1], THOUGHT, NAME):
            return None, tuple(o for o in opens if o), False
        opening, _, rest = call[1].partition(THOUGHT)
        closing = re.split(r"[\s]|(?<=>)(?=<)", rest.strip(), maxsplit=1)[0]
        return (opening.strip(), closing), tuple(o for o in opens if o), False
    opening, _, rest = shown[1].partition(THOUGHT)
    middle = rest.partition(ANSWER)[0]
    call = reply({"content": "", "reasoning_content": THOUGHT, "tool_calls": [_call({KEY_A: VALUE})]})
    shared = middle
    if call is not None and _in_order(call[1], THOUGHT, NAME):
        shared = _shared(middle, call[1].partition(THOUGHT)[2]) or middle
    closing = shared.strip() or middle.strip()
    opens = [middle[len(shared) :], *(o for o in opens if closing not in o)]
    opening = opening.strip() or (shown[0].split() or [""])[-1]  # the prompt may have written the mark already
    return (opening, closing), tuple(o for o in dict.fromkeys(opens) if o), prompt.rstrip().endswith(opening)


def _learn_calls(reply: Reply, thought: tuple[str, str] | None) -> JsonCalls | NamedCalls | PairCalls | None:
    def calls(*arguments: Any) -> str | None:
        message = {"tool_calls": [_call(a, name) for a, name in zip(arguments, (NAME, OTHER), strict=False)]}
        shown = reply({"content": "", **message}) or reply(message)
        if shown is None:
            return None
        return shown[1].rpartition(thought[1])[2] if thought and thought[1] in shown[1] else shown[1]

    text = calls({KEY_A: VALUE, KEY_B: NUMBER})
    if text is None or not _in_order(text, NAME, KEY_A, VALUE, KEY_B, str(NUMBER)):
        return None
    two = calls({KEY_A: VALUE}, {KEY_A: VALUE})
    found = _json_object(text)
    if found is not None:
        return found
    before, after = _around_last_name(text)
    again = two.rpartition(OTHER)[0].rpartition(VALUE)[2] if two and OTHER in two else before
    anchor = _common(before[::-1], again[::-1])[::-1] or before
    lead = re.escape(before[: len(before) - len(anchor)].strip()).replace(NAME, _WORD)
    wrapper = re.compile(rf"\s*{lead}\s*\Z")
    start = re.escape(anchor.strip())
    brace = after.find("{")
    if brace >= 0 and isinstance(_json_at(after, brace)[0], dict):
        fixed = r"\s*".join(map(re.escape, after[:brace].split())).replace(CALL_ID, r"(?P<id>[\w\-]+)")
        return NamedCalls(wrapper, re.compile(rf"{start}\s*(?P<name>{_WORD})\s*{fixed}\s*(?=\{{)"))
    swapped, none = calls({KEY_A: NUMBER, KEY_B: VALUE}), calls({})
    if swapped is None or not _in_order(swapped, KEY_A, str(NUMBER), KEY_B, VALUE):
        return None
    return _pair_format(text, swapped, none, two, wrapper, start)


def _pair_format(
    text: str, swapped: str, none: str | None, two: str | None, wrapper: re.Pattern[str], start: str
) -> PairCalls:
    """Read quotes, separators and ends off two renderings whose arguments have swapped types."""
    number = str(NUMBER)
    assign = _between(text, KEY_B, number)
    quoted = _between(text, KEY_A, VALUE)
    between = _between(swapped, number, KEY_B)
    opening = quoted[len(assign) :] if quoted.startswith(assign) else ""
    closing = _between(text, VALUE, KEY_B).removesuffix(between)
    end = whole = swapped.rpartition(VALUE)[2].removeprefix(closing)
    joiner = start
    if two and OTHER in two:
        gap = _between(two, VALUE, OTHER).removeprefix(closing)
        end = _common(end, gap) or end
        joiner = r"\s*" + re.escape(gap.removeprefix(end).strip()).replace(NAME, _WORD)
    empty = none.rpartition(NAME)[2] if none and NAME in none else ""
    return PairCalls(
        wrapper,
        re.compile(rf"{start}\s*(?P<name>{_WORD})"),
        re.compile(rf"{joiner}\s*(?P<name>{_WORD})"),
        _around_last_name(text)[1].partition(KEY_A)[0],
        assign,
        (opening, closing),
        between,
        end,
        whole.removeprefix(end),
        empty,
    )


def _json_object(text: str) -> JsonCalls | None:
    """The format when some JSON object in the text holds both the name and the arguments."""
    for match in re.finditer(r"\{", text):
        value, stop = _json_at(text, match.start())
        if isinstance(value, dict):
            name = next((k for k, v in value.items() if v == NAME), None)
            arguments = next((k for k, v in value.items() if isinstance(v, dict) and KEY_A in v), None)
            if name is None or arguments is None:
                return None
            begin = text[: match.start()].strip().removesuffix("[").strip()
            return JsonCalls(begin, text[stop:].strip(), name, arguments)
    return None


def _around_last_name(text: str) -> tuple[str, str]:
    """What stands before and after the name that the arguments follow."""
    at = text.rindex(NAME, 0, text.index(KEY_A))
    return text[:at], text[at + len(NAME) :]


def _shared(a: str, b: str) -> str:
    """The common beginning, not ending inside a word."""
    common = _common(a, b)
    if all(text[len(common) : len(common) + 1] in ("", "<", "[", " ", "\n") for text in (a, b)):
        return common
    return re.match(r"(?s)(.*[>\]\s])?", common)[0]


def _call(arguments: Mapping[str, Any], name: str = NAME) -> dict[str, Any]:
    return {"id": CALL_ID, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def _between(text: str, a: str, b: str) -> str:
    return text.partition(a)[2].partition(b)[0]


def _common(a: str, b: str) -> str:
    size = 0
    while size < min(len(a), len(b)) and a[size] == b[size]:
        size += 1
    return a[:size]


def _in_order(text: str, *words: str) -> bool:
    position = 0
    for word in words:
        position = text.find(word, position)
        if position < 0:
            return False
        position += len(word)
    return True
