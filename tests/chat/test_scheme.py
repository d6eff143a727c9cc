"""Named schemes of --loss_scale: which words of a reply weigh how much, stated word by word."""

from __future__ import annotations

import json

import pytest

from swift.catalog import loss_scale_names
from swift.chat import ChatEncoder
from swift.chat.scheme import parse_scheme
from swift.errors import UsageError
from tests.chat.conversations import conversation
from tests.chat.templates import ORIGINAL, fitted
from tests.tiny import CHATML

REACT = "Thought: look\nAction: search\nAction Input: {}\nObservation: sunny\nFinal Answer: warm"


def weighed(scheme: str, reply: str, question: str = "Q", template: str = CHATML, **message) -> list[tuple[str, float]]:
    """The row's reply as (text, weight) of each stretch of tokens; weight 0 is what isn't learned."""
    encoder = ChatEncoder(fitted(template), loss_scale=scheme)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply, **message}]
    encoded = encoder.encode({"messages": messages})
    assert encoded.input_ids == encoder.tokenizer.apply_chat_template(messages)["input_ids"]
    scale = encoded.loss_scale or [float(label != -100) for label in encoded.labels]
    assert all((label != -100) == (weight > 0) for label, weight in zip(encoded.labels, scale, strict=True))
    start = len(encoder.prompt(messages[:1]))
    found: list[tuple[list[int], float]] = []
    for token, weight in zip(encoded.input_ids[start:], scale[start:], strict=True):
        if not found or found[-1][1] != weight:
            found.append(([], weight))
        found[-1][0].append(token)
    return [(encoder.decode(ids), weight) for ids, weight in found]


def text_of(found, weight: float) -> str:
    return "|".join(text for text, own in found if own == weight)


def test_keywords_weigh_themselves_and_what_follows():
    found = weighed("react", REACT)
    assert "Action: search\nAction Input: {}\nObservation:" in text_of(found, 2.0)
    assert text_of(found, 0.0).strip() in ("sunny", "sunny\n|") or "sunny" in text_of(found, 0.0)
    assert "Final Answer: warm<|im_end|>" in text_of(found, 1.0)
    assert text_of(weighed("react", "Observation: x"), 1.0).startswith("<|im_end|>")  # the end is learned all the same
    assert "Next: a" in text_of(weighed("alpha_umi", "Next: a"), 2.0)


def test_questions_weigh_the_whole_reply():
    asked = "What is the tool you want to use?"
    assert text_of(weighed("agentflan", "search", asked), 3.0) == "search"
    assert text_of(weighed("agentflan", "search", "Hi"), 1.0).startswith("search<|im_end|>")


def test_patterns():
    call = '<tool_call>\n{"name": "f"}\n</tool_call>'
    assert text_of(weighed("hermes", f"I look. {call} Done."), 2.0) == call
    empty = weighed("ignore_empty_think", "<think>\n\n</think>\n\nYes.")
    assert text_of(empty, 0.0).startswith("<think>\n\n</think>\n\n") and text_of(empty, 1.0).startswith(
        "Yes.<|im_end|>"
    )
    full = weighed("ignore_empty_think", "<think>\nWell\n</think>\n\nYes.")
    assert text_of(full, 1.0).startswith("<think>")
    gone = weighed("ignore_think", "<think>\nWell\n</think>\n\nYes.")
    assert "Well" in text_of(gone, 0.0) and text_of(gone, 1.0).startswith("Yes.<|im_end|>")


def test_a_thinking_block_that_the_template_writes():
    source = ORIGINAL["qwen3"].read_text(encoding="utf-8") if "qwen3" in ORIGINAL else pytest.skip("needs trl")
    found = weighed("ignore_empty_think", "Yes.", template=source)
    assert text_of(found, 0.0).startswith("<think>\n\n</think>\n\n") and text_of(found, 1.0) == "Yes.<|im_end|>"


def test_names_are_joined():
    call = "<tool_call>{}</tool_call>"
    found = weighed("hermes+ignore_empty_think", f"<think>\n</think>\n{call}")
    assert "<think>" in text_of(found, 0.0) and text_of(found, 2.0) == call
    encoder = ChatEncoder(fitted(CHATML), loss_scale="last_round+hermes")
    row = {"messages": [m for _ in range(2) for m in conversation(1, system=False, rounds=1)["messages"]]}
    row["messages"][-1]["content"] = call
    scale = encoder.encode(row).loss_scale
    assert scale.count(0.0) > len(scale) / 2 and 2.0 in scale
    assert parse_scheme("base+react") == parse_scheme("react") == parse_scheme("default+react")
    both = parse_scheme("react+alpha_umi").weigh("Action: x", "")
    assert both == [(0, 9, 4.0)]  # weights of both names multiply


def test_a_message_speaks_for_itself():
    assert weighed("react", REACT, loss=True)[0][1] == 1.0 and len(weighed("react", REACT, loss=True)) == 2
    assert weighed("react", REACT, loss_scale=0.5)[0][1] == 0.5


def test_everything_with_weights():
    encoder = ChatEncoder(fitted(CHATML), loss_scale="all+react")
    encoded = encoder.encode({"messages": [{"role": "user", "content": "Action: x"}]})
    assert set(encoded.loss_scale) == {1.0, 2.0}


def test_a_file_in_the_form_of_ms_swift(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"response": {"Yes": [5.0, 1.0], "N.": [0.0]}, "query": {"Why": [3.0]}}))
    assert text_of(weighed(str(path), "Yes and No"), 5.0) == "Yes"
    assert "No" in text_of(weighed(str(path), "Yes and No"), 0.0)
    assert text_of(weighed(str(path), "Yes", "Why?"), 3.0) == "Yes"
    for wrong in ("[1]", "{", '{"a": [1, 2, 3]}', '{"(": [1]}', '{"a": ["x"]}', '{"a": [-1]}'):
        path.write_text(wrong)
        with pytest.raises(UsageError):
            parse_scheme(str(path))


def test_what_is_wrong_with_a_name_is_said():
    with pytest.raises(UsageError, match="hermes"):
        parse_scheme("last_round+hermse")
    with pytest.raises(UsageError, match="exclude each other"):
        parse_scheme("all+default")
    with pytest.raises(UsageError, match="no such file"):
        parse_scheme("nowhere.json")


@pytest.mark.parametrize("name", loss_scale_names())
def test_every_shipped_name_keeps_the_ids(name):
    plain = ChatEncoder(fitted(CHATML))
    encoder = ChatEncoder(fitted(CHATML), loss_scale=name)
    for seed in range(5):
        row = conversation(seed)
        assert encoder.encode(row).input_ids == plain.encode(row).input_ids
        assert encoder.encode(row).labels == plain.encode(row).labels  # nothing in these texts that it weighs
