"""Answers that a request forces into a form: a JSON schema, or a call of a tool, as the model's own format writes it.

Promises: what can't be forced is a 400, never ignored. Where the prompt has already opened the model's reasoning, the
answer closes it first; where tools are offered beside a schema, the answer is a call or matches the schema. Knows
grammars' text and no engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from swift.engines.protocol import Engine, Grammar
from swift.serve.errors import invalid
from swift.serve.replies import ReplyFormat

Tools = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Wanted:
    """What a request forces. `schema`: the answer's JSON schema, `grammar`: another form of it. `call`: the answer must
    call a tool, `name` that one only. `many`: several calls are fine.
    """

    schema: Mapping[str, Any] | bool | None = None
    grammar: Grammar | None = None
    call: bool = False
    name: str | None = None
    many: bool = True


@dataclass(frozen=True)
class CallFrame:
    """A model's tool call: `begin` {"name": ..., `arguments`: {...}} `end`."""

    begin: str
    end: str
    arguments: str


PLAIN = CallFrame("", "", "arguments")


@dataclass(frozen=True)
class Forcing:
    """`frame`: how the model writes a call, None where it isn't a JSON object or the template knows no tools; a forced
    call is then a bare JSON object. `closer`: what ends the model's reasoning.
    """

    tokenizer: Any = None
    frame: CallFrame | None = None
    closer: str | None = None

    def grammar(self, engine: Engine, wanted: Wanted, tools: Tools, opening: str) -> Grammar | None:
        """The grammar of the answer; `opening` is what the prompt has written of it already."""
        kinds = engine.capabilities.grammars
        lead = self._lead(opening)
        if wanted.grammar is not None:
            if wanted.grammar.kind not in kinds or tools or lead:
                message = "this engine can't hold answers to it, or not beside tools and reasoning"
                raise invalid(message, "structured_outputs", "unsupported_parameter")
            return wanted.grammar
        if wanted.schema is None and not wanted.call:
            return None
        param = "tool_choice" if wanted.call else "response_format"
        if wanted.schema is not None and not tools and not lead:
            if "json_schema" not in kinds:
                raise invalid("this engine can't force the form of an answer", param, "unsupported_parameter")
            return Grammar("json_schema", json.dumps(wanted.schema, ensure_ascii=False))
        if "lark" not in kinds or self.tokenizer is None:
            raise invalid("this engine can't force a tool call or this form", param, "unsupported_parameter")
        offered = [t for t in tools if wanted.name in (None, t["function"]["name"])]
        if wanted.call and not offered:
            raise invalid(
                f"tool_choice names {wanted.name or 'a call'}, but tools don't have it", param, "invalid_value"
            )
        return Grammar("lark", self._lark(wanted, offered, lead))

    def form(self, own: ReplyFormat, wanted: Wanted) -> ReplyFormat:
        """What reads the answer: the model's own format, but for a call that is forced as a bare JSON object."""
        if not wanted.call or self.frame is not None:
            return own
        return ReplyFormat(partial(_bare_calls, closer=self.closer), own.reasoning, None)

    def _lead(self, opening: str) -> str:
        return f"{self.closer}\n\n" if self.closer and opening else ""

    def _lark(self, wanted: Wanted, tools: Tools, lead: str) -> str:
        from swift.engines.grammar import call_rules, json_rule, literal

        rules, ways = [], []
        if wanted.schema is not None:
            rules.append(f"answer: {json_rule(wanted.schema)}")
            ways.append("answer")
        frame = self.frame or (PLAIN if wanted.call else None)
        if tools and frame is not None:
            rules += call_rules(self.tokenizer, tools, frame.begin, frame.end, frame.arguments)
            ways.append('call ("\\n"? call)*' if wanted.many else "call")
        opened = f"{literal(self.tokenizer, lead)} " if lead else ""
        return "\n".join([f"start: {opened}({' | '.join(ways)})", *rules])


def _bare_calls(text: str, tools: Tools | None = None, *, closer: str | None) -> dict[str, Any]:
    """A message of JSON objects {"name": ..., "arguments": {...}} one after the other; text that is none is content."""
    thought, found, rest = text.partition(closer) if closer and closer in text else ("", "", text)
    calls, left = [], rest.strip()
    while left:
        try:
            value, size = json.JSONDecoder().raw_decode(left)
        except ValueError:  # cut off by the limit of tokens
            return {"role": "assistant", "content": text}
        calls.append({"type": "function", "function": value})
        left = left[size:].strip()
    return {"role": "assistant", "content": "", "reasoning_content": thought.strip(), "tool_calls": calls}


def wanted_format(value: Mapping[str, Any] | None, param: str = "response_format") -> Mapping[str, Any] | None:
    """The schema in a response_format: {"type": "text" | "json_object" | "json_schema", "json_schema": {"schema"}}."""
    if value is None or value.get("type") == "text":
        return None
    if value.get("type") == "json_object":
        return {"type": "object"}
    if value.get("type") == "json_schema":
        held = value.get("json_schema", value)  # the Responses API has the schema one level up
        schema = held.get("schema") if isinstance(held, dict) else None
        if not isinstance(schema, dict):
            raise invalid(f"{param} of type json_schema needs a schema", param, "missing_parameter")
        return schema
    raise invalid(f"{param}.type may be text, json_object or json_schema", param, "invalid_value")


def wanted_form(body: Mapping[str, Any]) -> Wanted:
    """What response_format (OpenAI's) or structured_outputs (vLLM's: json, regex, choice or grammar) forces."""
    schema = wanted_format(body.get("response_format"))
    value = body.get("structured_outputs")
    if value is None:
        return Wanted(schema=schema)
    if schema is not None:
        raise invalid("response_format and structured_outputs both say what to write", "structured_outputs")
    known = {"json": (dict, bool), "regex": str, "grammar": str, "choice": list}
    if len(value) != 1 or not all(isinstance(v, known.get(name, ())) for name, v in value.items()):
        ways = '{"json": SCHEMA}, {"regex": TEXT}, {"choice": [TEXT, ...]} or {"grammar": LARK}'
        message = f"structured_outputs must be {ways}"
        raise invalid(message, "structured_outputs", "invalid_value")
    ((name, held),) = value.items()
    if name == "json":
        return Wanted(schema=held)
    if name == "choice":
        if not held or not all(isinstance(text, str) and text for text in held):
            raise invalid("choice must be a list of texts", "structured_outputs", "invalid_value")
        return Wanted(grammar=Grammar("lark", f"start: {' | '.join(map(json.dumps, held))}"))
    return Wanted(grammar=Grammar("regex" if name == "regex" else "lark", held))


def wanted_call(choice: Any, tools: Tools, many: bool) -> tuple[Tools, Wanted]:
    """(the tools to show, what is forced) of an OpenAI tool_choice: auto, none, required, or a named function."""
    if choice is None or choice == "auto":
        return tools, Wanted(many=many)
    if choice == "none":
        return (), Wanted()
    if choice == "required":
        if not tools:
            raise invalid("tool_choice required needs tools", "tool_choice", "invalid_value")
        return tools, Wanted(call=True, many=many)
    named = (choice.get("function") or choice) if isinstance(choice, dict) else {}
    name = named.get("name") if isinstance(named, dict) else None
    if not isinstance(name, str) or choice.get("type") != "function":
        message = 'tool_choice may be auto, none, required or {"type": "function", "function": {"name": ...}}'
        raise invalid(message, "tool_choice", "invalid_value")
    if name not in [tool["function"]["name"] for tool in tools]:
        raise invalid(f"tool_choice names {name!r}, which tools don't have", "tool_choice", "invalid_value")
    return tools, Wanted(call=True, name=name, many=False)
