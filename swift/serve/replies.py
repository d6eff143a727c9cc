"""A model's raw text, as it comes, into reasoning, content and tool calls.

Promises: text is handed on as soon as it is certain what it is, and none is lost: what looked like a call and can't
be read as one is content. Tool calls are read from the whole text by the injected `parse`, the one reader of the
model's format; this module only finds where reasoning ends and where calls begin. Knows no model's format by name
(see `formats.py`).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tools = Sequence[Mapping[str, Any]]
Parse = Callable[[str, "Tools | None"], Mapping[str, Any]]


@dataclass(frozen=True)
class ReplyFormat:
    """`parse` turns a whole reply, and the tools that were offered, into a message.

    `reasoning`: the texts around a model's reasoning, None for none. `call_marks`: texts that a tool call begins with;
    None when unknown: then a reply to a request with tools is only handed on whole.
    """

    parse: Parse
    reasoning: tuple[str, str] | None = None
    call_marks: tuple[str, ...] | None = ()


@dataclass(frozen=True)
class Reasoning:
    text: str


@dataclass(frozen=True)
class Content:
    text: str


@dataclass(frozen=True)
class ToolCall:
    """`arguments` is JSON text."""

    index: int
    id: str
    name: str
    arguments: str


Piece = Reasoning | Content | ToolCall


class ReplyReader:
    """Feed it a reply's text in pieces with `push`, then call `finish` once. `tools`: those that the request offered.

    `one_call`: only the first call is handed on (parallel_tool_calls false). `opening`: the beginning of the reply that
    the prompt has written already, as a mark of reasoning.
    """

    def __init__(self, form: ReplyFormat, tools: Tools = (), one_call: bool = False, opening: str = ""):
        self._form, self._tools, self._one_call = form, tools, one_call
        self._all = [opening]
        self._shown = ""  # content handed on
        self._held = opening  # text not handed on yet
        self.calls = 0
        self._state = self._body_state() if form.reasoning is None else self._start

    @property
    def text(self) -> str:
        """The raw reply so far."""
        return "".join(self._all)

    def push(self, text: str) -> list[Piece]:
        self._all.append(text)
        self._held += text
        return self._run(final=False)

    def finish(self) -> list[Piece]:
        """What is left when the reply has ended, tool calls among it."""
        pieces = self._run(final=True)
        if self._held:
            pieces += self._calls()
        return pieces

    def _run(self, final: bool) -> list[Piece]:
        pieces: list[Piece] = []
        while True:
            state = self._state
            pieces += state(final)
            if self._state == state:
                self._shown += "".join(piece.text for piece in pieces if isinstance(piece, Content))
                return [piece for piece in pieces if not isinstance(piece, (Reasoning, Content)) or piece.text]

    # The states: each takes what it can from `_held` and may set the next state.

    def _start(self, final: bool) -> list[Piece]:
        opener = self._form.reasoning[0]  # type: ignore[index]
        text = self._held.lstrip()
        if text.startswith(opener):
            self._held = text[len(opener) :]
            self._state = self._reasoning_start
        elif final or (text and not opener.startswith(text)):
            self._state = self._body_state()
        return []

    def _reasoning_start(self, final: bool) -> list[Piece]:
        """Line ends after the opening text aren't part of the reasoning, nor are its repetitions by the model."""
        opener = self._form.reasoning[0]  # type: ignore[index]
        self._held = self._held.lstrip()
        while self._held.startswith(opener):
            self._held = self._held[len(opener) :].lstrip()
        if final or not opener.startswith(self._held):
            self._state = self._reasoning
        return []

    def _reasoning(self, final: bool) -> list[Piece]:
        closer = self._form.reasoning[1]  # type: ignore[index]
        at = self._held.find(closer)
        if at >= 0:
            text, self._held = self._held[:at].rstrip(), self._held[at + len(closer) :]
            self._state = self._after_reasoning
            return [Reasoning(text)]
        if final:
            text, self._held = self._held.rstrip(), ""
            return [Reasoning(text)]
        keep = len(self._held) - _safe(self._held, (closer,), blank=True)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return [Reasoning(text)]

    def _after_reasoning(self, final: bool) -> list[Piece]:
        """Blank lines between reasoning and content belong to neither."""
        self._held = self._held.lstrip()
        if self._held or final:
            self._state = self._body_state()
        return []

    def _body_state(self) -> Callable[[bool], list[Piece]]:
        return self._hold if self._tools and self._form.call_marks is None else self._content

    def _content(self, final: bool) -> list[Piece]:
        marks = self._form.call_marks if self._tools else ()
        if not marks:
            text, self._held = self._held, ""
            return [Content(text)]
        at = min((place for mark in marks if (place := self._held.find(mark)) >= 0), default=-1)
        if at >= 0:
            # Blank space before a call is the template's, not the answer's.
            text = self._held[:at].rstrip()
            self._held = self._held[len(text) :]
            self._state = self._hold
            return [Content(text)]
        end = len(self._held) if final else _safe(self._held, marks, blank=True)
        text, self._held = self._held[:end], self._held[end:]
        return [Content(text)]

    def _hold(self, final: bool) -> list[Piece]:
        """What may be a call waits for the end of the reply."""
        return []

    def _calls(self) -> list[Piece]:
        """The held text: tool calls and what stands around them, or plain content."""
        held, self._held = self._held, ""
        message = self._form.parse(self.text, self._tools)
        calls = message.get("tool_calls") or []
        if not calls:
            return [Content(held)]
        pieces: list[Piece] = []
        content, shown = str(message.get("content") or "").strip(), self._shown.strip()
        if content.startswith(shown):  # what stands behind the calls
            pieces.append(Content(content[len(shown) :]))
        for call in calls[:1] if self._one_call else calls:
            pieces.append(_tool_call(self.calls, call))
            self.calls += 1
        return [piece for piece in pieces if not isinstance(piece, Content) or piece.text]


def _safe(text: str, marks: tuple[str, ...], blank: bool) -> int:
    """How much of `text` can't be the beginning of a mark (nor blank space in front of one)."""
    end = len(text)
    for mark in marks:
        for size in range(min(len(mark) - 1, len(text)), 0, -1):
            if text.endswith(mark[:size]):
                end = min(end, len(text) - size)
                break
    return len(text[:end].rstrip()) if blank else end


def _tool_call(index: int, call: Mapping[str, Any]) -> ToolCall:
    function = call.get("function") or call
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps({} if arguments is None else arguments, ensure_ascii=False)
    return ToolCall(index, call.get("id") or f"call_{uuid.uuid4().hex[:24]}", str(function.get("name")), arguments)
