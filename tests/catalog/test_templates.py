"""Every catalog template says everything, and its generation prompt is how the next answer starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from swift.catalog import template_names, template_text

transformers = pytest.importorskip("transformers")

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "你好吗？"},
    {"role": "assistant", "content": "很好"},
]
CALL = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}],
    },
    {"role": "tool", "content": "sunny"},
    {"role": "assistant", "content": "It is sunny."},
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]


def render(name_or_text: str, messages, **options) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = template_text(name_or_text) if name_or_text in template_names() else name_or_text
    texts, _ = render_jinja_template([messages], chat_template=source, bos_token="<s>", eos_token="</s>", **options)
    return texts[0]


@pytest.mark.parametrize("name", template_names())
def test_says_everything_in_order(name):
    text = render(name, CONVERSATION)
    places = [text.index(message["content"]) for message in CONVERSATION]
    assert places == sorted(places)
    assert render(name, CONVERSATION[1:]).count("Be brief.") == 0


@pytest.mark.parametrize("name", template_names())
@pytest.mark.parametrize("turns", [2, 4])
def test_generation_prompt_is_how_the_next_turn_starts(name, turns):
    prompt = render(name, CONVERSATION[:turns], add_generation_prompt=True)
    assert render(name, CONVERSATION[: turns + 1]).startswith(prompt)


@pytest.mark.parametrize("name", template_names())
def test_answers_end_with_something_to_stop_at(name):
    text = render(name, CONVERSATION[:3])
    assert text[text.index("Hi there") + len("Hi there") :].strip()


@pytest.mark.parametrize("name", template_names())
def test_tool_calls_are_written_or_refused_never_dropped(name):
    if name == "chatml":
        text = render(name, CALL, tools=TOOLS)
        assert '{"name": "weather", "arguments": {"city": "Paris"}}' in text and "<tools>" in text
        assert "<tool_response>\nsunny\n</tool_response>" in text
        return
    for options in ({"messages": CALL}, {"messages": CONVERSATION, "tools": TOOLS}):
        with pytest.raises(Exception, match="no tool calls"):
            render(name, **options)


def test_chatml_keeps_reasoning():
    turn = {"role": "assistant", "content": "4", "reasoning_content": "2 and 2"}
    assert "<think>\n2 and 2\n</think>\n\n4<|im_end|>" in render("chatml", [CONVERSATION[1], turn])


def test_unknown_template():
    with pytest.raises(KeyError, match="chatml"):
        template_text("nothing-like-it")


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        ("llama3", "llama3"),
        ("gemma", "gemma"),
        ("gemma", "gemma3"),
        ("phi3", "phi3"),
        ("chatml", "qwen2_5"),
        ("cohere", "cohere"),
        ("deepseek_v3", "deepseekv3"),
    ],
)
def test_same_text_as_the_published_template(ours, published):
    """TRL ships the published templates. Two spell the end token out, or add one after the last turn."""
    theirs = _published(published)
    messages = CONVERSATION[1:] if published == "gemma" else CONVERSATION
    expected = render(theirs, messages).replace("<｜end▁of▁sentence｜>", "</s>")
    assert render(ours, messages) == (expected.removesuffix("</s>") if published == "phi3" else expected)


def test_chatml_tools_are_those_of_qwen():
    messages = [CONVERSATION[0], *CALL]
    assert render("chatml", messages, tools=TOOLS) == render(_published("qwen2_5"), messages, tools=TOOLS)


def _published(name: str) -> str:
    trl = pytest.importorskip("trl")
    file = Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja"
    if not file.is_file():
        pytest.skip(f"trl has no {file.name}")
    return file.read_text(encoding="utf-8")
