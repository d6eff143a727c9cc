"""parse(render(message)) == message: content, reasoning and tool calls, in the format of every template at hand."""

from __future__ import annotations

import pytest

from swift.chat import ChatEncoder
from swift.errors import SwiftError, TemplateError
from tests.chat.conversations import TOOLS
from tests.chat.families import FAMILIES
from tests.chat.newer import NEWER
from tests.chat.odd import ODD
from tests.chat.templates import ORIGINAL, fitted


def call(name: str, **arguments) -> dict:
    return {"id": "call00001", "type": "function", "function": {"name": name, "arguments": arguments}}


WEATHER = call("get_weather", city='北京, "x"', days=3)
SEARCH = call("search", query="what is 1+1?")
REPLIES = {
    "plain": {"content": 'Hello,\nworld! {"a": 1}'},
    "reasoning": {"content": "An\n\nanswer", "reasoning_content": "I think\n\nhard."},
    "call": {"content": "", "tool_calls": [WEATHER]},
    "two calls": {"content": "", "tool_calls": [WEATHER, SEARCH]},
    "no arguments": {"content": "", "tool_calls": [call("now")]},
    "reasoning and call": {"content": "", "reasoning_content": "Hm.", "tool_calls": [WEATHER]},
    "nested": {"content": "", "tool_calls": [call("search", query="a, b=c", opts={"k": [1, "two", True]})]},
    "content and call": {"content": "I will look.", "tool_calls": [SEARCH]},
}
NOT_TOLD_APART = {
    ("gptoss", "content and call"),  # content beside a call is written as reasoning
}


ALL = {name: path.read_text(encoding="utf-8") for name, path in ORIGINAL.items()}
ALL |= {f"odd-{name}": source for name, source in {**ODD, **FAMILIES, **NEWER}.items()}


@pytest.mark.parametrize("name", ALL)
def test_parse_undoes_render(name):
    tok = fitted(ALL[name])
    encoder = ChatEncoder(tok)
    asked = {"role": "user", "content": "Q"}
    for kind, reply in REPLIES.items():
        outcome = encoder.encode_batch([{"messages": [asked, {"role": "assistant", **reply}], "tools": TOOLS}])[0]
        if isinstance(outcome, SwiftError):
            assert isinstance(outcome, TemplateError)  # says what the template leaves out, or where it disagrees
            continue
        (encoded,) = outcome
        text = tok.decode(encoded.input_ids).removeprefix(encoder.prompt_text([asked], TOOLS))
        expected = {**plain(reply)}
        if "reasoning_left_out" in encoded.notes:
            expected.pop("reasoning_content")
        if (name, kind) not in NOT_TOLD_APART:
            assert plain(encoder.parse(text, TOOLS)) == expected, (kind, text)


def plain(message: dict) -> dict:
    found = {key: message[key] for key in ("content", "reasoning_content") if key in message}
    if "tool_calls" in message:
        found["tool_calls"] = [c["function"] for c in message["tool_calls"]]
    return found


def test_models_spell_more_loosely_than_templates():
    qwen = ChatEncoder(fitted(ORIGINAL["qwen3"].read_text(encoding="utf-8")))
    text = (
        '<think>\nx\n</think>\n\n<tool_call>{"name":"f","arguments":{"a":1}}</tool_call>\n<tool_call>broken</tool_call>'
    )
    message = qwen.parse(text)
    assert message["reasoning_content"] == "x"
    assert plain(message)["tool_calls"] == [{"name": "f", "arguments": {"a": 1}}]
    assert qwen.parse("<think>\nunfinished") == {
        "role": "assistant", "content": "", "reasoning_content": "unfinished",
    }  # fmt: skip
    assert qwen.parse("just text <b>x</b>") == {"role": "assistant", "content": "just text <b>x</b>"}
    assert qwen.parse("") == {"role": "assistant", "content": ""}
    llama = ChatEncoder(fitted(ORIGINAL["llama3_1"].read_text(encoding="utf-8")))
    assert "tool_calls" not in llama.parse('{"name": "Bob", "age": 3}')
    coder = ChatEncoder(fitted(ORIGINAL["qwen3_5_nothink"].read_text(encoding="utf-8")))
    text = "<tool_call>\n<function=get_weather>\n<parameter=city>\n12\n</parameter>\n</function>\n</tool_call>"
    assert plain(coder.parse(text, TOOLS))["tool_calls"][0]["arguments"] == {"city": "12"}
    assert plain(coder.parse(text))["tool_calls"][0]["arguments"] == {"city": 12}


def test_calls_that_are_shown_by_ids_alone():
    """As Kimi K2 writes them: the id holds the name, or the row is refused with what to give instead."""
    encoder = ChatEncoder(fitted(FAMILIES["kimi_thinking"]))
    asked = {"role": "user", "content": "Q"}

    def row(*calls: dict) -> dict:
        return {"messages": [asked, {"role": "assistant", "content": "", "tool_calls": list(calls)}], "tools": TOOLS}

    ids = ["functions.get_weather:0", "functions.search:1"]
    calls = [{**call, "id": identity} for call, identity in zip((WEATHER, SEARCH), ids, strict=True)]
    (encoded,) = encoder.encode_batch([row(*calls)])[0]
    text = encoder.decode(encoded.input_ids).removeprefix(encoder.prompt_text([asked], TOOLS))
    assert encoder.parse(text, TOOLS)["tool_calls"] == calls
    refused = encoder.encode_batch([row(WEATHER)])[0]
    assert "'call00001', in place of its name 'get_weather'" in str(refused)
    refused = encoder.encode_batch([row({key: value for key, value in WEATHER.items() if key != "id"})])[0]
    assert "the call has no id: give ids that hold the name, such as functions.get_weather:0" in str(refused)
