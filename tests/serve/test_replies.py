"""A reply in pieces, however it is cut, says the same as the chat template's own reader says of the whole."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from swift.chat import ChatEncoder
from swift.serve.formats import learn_format
from swift.serve.replies import Content, Reasoning, ReplyReader, ToolCall
from tests import tiny
from tests.serve.served import FORM, parse

TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}},
    }
]
PARTS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<thi", "<tool", "a", " ", "\n", "<", "é"]
CALL = '<tool_call>{"name": "f", "arguments": {"x": "y < z"}}</tool_call>'
REPLIES = [
    "plain",
    "<think>\nso\n</think>\n\nplain < text",
    f"<think>so</think>\n{CALL}",
    f"I look.\n{CALL}\n{CALL}",
    f"<think>\n</think>\n\n{CALL}",
    "<think>cut off in the mid",
]
# Two more ways of writing reasoning and calls, beside the ChatML of tests/tiny.py.
HEAD = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
TAGGED = (
    HEAD + "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
    "\n<tool_call>\n{{ c.function | tojson }}\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
BRACKETED = (
    HEAD + "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}[THINK]{{ m.reasoning_content }}[/THINK]"
    "{% endif %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}[CALL]{{ c.function.name }}[ARGS]"
    "{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def joined(reader, pieces):
    """(reasoning, content, calls)"""
    found = [piece for text in pieces for piece in reader.push(text)] + reader.finish()
    assert all(piece.text for piece in found if not isinstance(piece, ToolCall))
    reasoning = "".join(p.text for p in found if isinstance(p, Reasoning))
    content = "".join(p.text for p in found if isinstance(p, Content))
    return reasoning, content, [(p.index, p.name, p.arguments) for p in found if isinstance(p, ToolCall)]


@example(["<think>"] * 3, [7])
@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=12), st.lists(st.integers(0, 99), max_size=5))
def test_cutting_a_text_anywhere_changes_nothing(parts, places):
    text = "".join(parts)
    cuts = sorted(min(place, len(text)) for place in places)
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    for tools in ((), TOOLS):
        if tools and "<tool_call>" in text:
            continue  # such texts hold no valid call, which the tests' reader can't read
        for opened in ("", "<think>", "Sure: "):
            whole = joined(ReplyReader(FORM, tools, opening=opened), [text])
            assert joined(ReplyReader(FORM, tools, opening=opened), pieces) == whole


@pytest.mark.parametrize("text", REPLIES)
def test_pieces_say_what_the_whole_says(text):
    reasoning, content, calls = joined(ReplyReader(FORM, TOOLS), text)
    message = parse(text)
    if "</think>" in text:
        assert reasoning == message.get("reasoning_content", "")
    assert content.strip() == (message["content"] if "cut off" not in text else "")
    expected = [c["function"] for c in message.get("tool_calls", ())]
    assert [(name, json.loads(arguments)) for _, name, arguments in calls] == [
        (f["name"], f["arguments"]) for f in expected
    ]
    assert [index for index, _, _ in calls] == list(range(len(expected)))


def test_content_is_handed_on_at_once():
    reader = ReplyReader(FORM)
    assert [reader.push(char) for char in "hello"] == [[Content(char)] for char in "hello"]


def test_a_prompt_that_ends_inside_the_reasoning():
    assert joined(ReplyReader(FORM, opening="<think>"), ["so\n", "</th", "ink>\nyes"]) == ("so", "yes", [])
    assert joined(ReplyReader(FORM, opening="<think>"), ["\n<thi", "nk>so</think>", "yes"]) == ("so", "yes", [])


@pytest.mark.parametrize(
    ("template", "marks"), [(TAGGED, ("<think>", "</think>")), (BRACKETED, ("[THINK]", "[/THINK]"))]
)
def test_the_format_is_found_by_looking_at_the_template(template, marks):
    """What the template renders for a message is read back, one character at a time."""
    encoder = ChatEncoder(tiny.tokenizer(template))
    form = learn_format(encoder, encoder.parse)
    assert form.reasoning == marks
    asked = [{"role": "user", "content": "q"}]
    for message in (
        {"role": "assistant", "content": "yes", "reasoning_content": "so"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "so", "tool_calls": [tool_call("p")]},
        {"role": "assistant", "content": "", "tool_calls": [tool_call("p"), tool_call("q < r")]},
    ):
        encoded = encoder.encode({"messages": [*asked, message], "tools": TOOLS})
        raw = encoder.decode([i for i, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != -100])
        raw = raw.removesuffix("<|im_end|>")  # the engine leaves end tokens out
        reasoning, content, calls = joined(ReplyReader(form, TOOLS), raw)
        assert (reasoning, content.strip()) == (message.get("reasoning_content", ""), message["content"])
        made = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls", ())]
        assert [(name, json.loads(arguments)) for _, name, arguments in calls] == made


def tool_call(x):
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": x}}}
