"""How a model writes reasoning and tool calls, found by rendering probe conversations with its own chat template.

Promises: no model is known by name. Where the template doesn't show it (it drops reasoning, refuses tools), the
field's usual marks are taken; where nothing marks a call, the format says so and replies to requests with tools are
handed on whole.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from swift.errors import SwiftError
from swift.serve.forcing import CallFrame, Forcing
from swift.serve.replies import Parse, ReplyFormat

ASK, THOUGHT, ANSWER = "zqAsk", "zqThought", "zqAnswer"
TOOL = {
    "type": "function",
    "function": {
        "name": "zq_tool",
        "description": "Looks up zq.",
        "parameters": {"type": "object", "properties": {"zqkey": {"type": "string"}}, "required": ["zqkey"]},
    },
}
CALL = {"id": "call00001", "type": "function", "function": {"name": "zq_tool", "arguments": {"zqkey": "zqvalue"}}}
USUAL_REASONING = ("<think>", "</think>")


class Encoder(Protocol):
    """What is asked of a ChatEncoder."""

    tokenizer: Any
    response_prefix: str

    def prompt_text(self, messages: Any, tools: Any = None) -> str: ...

    def prompt(self, messages: Any, tools: Any = None) -> list[int]: ...

    def prompt_inputs(self, messages: Any, tools: Any = None) -> tuple[list[int], Mapping[str, Any] | None]: ...

    def encode(self, row: Mapping[str, Any]) -> Any: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def parse(self, text: str, tools: Any = None) -> Mapping[str, Any]: ...


def learn_format(encoder: Encoder, parse: Parse) -> ReplyFormat:
    """Probe the encoder's template; never fails."""
    return ReplyFormat(parse, _reasoning(encoder), _call_marks(encoder))


def _reply(encoder: Encoder, message: Mapping[str, Any], tools: Sequence[Any] | None = None) -> str | None:
    """The text that the model is taught to write for this assistant message; None where the template can't say."""
    row = {"messages": [{"role": "user", "content": ASK}, message], "tools": tools}
    try:
        encoded = encoder.encode(row)
    except SwiftError:
        return None
    return encoder.decode([i for i, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != -100])


def _reasoning(encoder: Encoder) -> tuple[str, str]:
    reply = _reply(encoder, {"role": "assistant", "reasoning_content": THOUGHT, "content": ANSWER})
    if reply is None or THOUGHT not in reply or ANSWER not in reply:
        return USUAL_REASONING
    before, _, rest = reply.partition(THOUGHT)
    closer = rest.partition(ANSWER)[0].strip()
    opener = before.strip() or _last_word(encoder.prompt_text([{"role": "user", "content": ASK}]))
    return (opener, closer) if opener and closer else USUAL_REASONING


def learn_forcing(encoder: Encoder, ends: Sequence[str]) -> Forcing:
    """How a tool call is spelled, where it is a JSON object. `ends` are the texts that end a reply."""
    message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    reply = _reply(encoder, message, [TOOL])
    closer = _reasoning(encoder)[1]
    return Forcing(encoder.tokenizer, None if reply is None else _frame(reply, ends, closer), closer)


def _frame(reply: str, ends: Sequence[str], closer: str) -> CallFrame | None:
    head, found, rest = reply.rpartition(closer) if closer in reply.partition("zq_tool")[0] else ("", "", reply)
    start = rest.find("{")
    while start >= 0:
        try:
            value, size = json.JSONDecoder().raw_decode(rest[start:])
        except ValueError:
            value, size = None, 0
        if isinstance(value, dict) and value.get("name") == "zq_tool":
            arguments = next((key for key, held in value.items() if isinstance(held, dict) and "zqkey" in held), None)
            if arguments is None:
                return None
            after = rest[start + size :]
            cut = min((after.find(end) for end in ends if end and end in after), default=len(after))
            return CallFrame(rest[:start].lstrip("\n"), after[:cut].rstrip("\n"), arguments)
        start = rest.find("{", start + 1)
    return None


def _last_word(text: str) -> str:
    words = text.split()
    return words[-1] if words else ""


def _call_marks(encoder: Encoder) -> tuple[str, ...] | None:
    added = [*encoder.tokenizer.all_special_tokens, *encoder.tokenizer.get_added_vocab()]
    message = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    reply = _reply(encoder, message, [TOOL])
    if reply is None or "zq_tool" not in reply:
        usual = [token for token in added if "tool_call" in token.lower() and not token.startswith("</")]
        return tuple(dict.fromkeys(usual)) or None
    before = reply.partition("zq_tool")[0]
    if USUAL_REASONING[1] in before:  # an empty reasoning block that the template puts first
        before = before.rpartition(USUAL_REASONING[1])[2]
    before = before.strip()
    token = max((t for t in added if t and before.startswith(t)), key=len, default=None)
    mark = token or before.partition("\n")[0].partition(" ")[0]
    return (mark,) if mark else None
