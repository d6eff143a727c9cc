"""Every dialect of a conversation becomes the same canonical row; what can't be read exactly has a reason."""

import json
from collections import Counter
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift.data import formats
from swift.data.formats import ColumnMap, canonical_row
from swift.data.rows import RowError


def canonical(value, **options):
    return canonical_row(value, **options).data


def reason(value, **options):
    with pytest.raises(RowError) as error:
        canonical_row(value, **options)
    return error.value.reason


def say(*texts, system=None):
    """Alternating user and assistant messages."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system else []) + messages


SAME = {
    "messages": {"messages": say("q1", "a1", "q2", "a2", system="s")},
    "messages as text": {"messages": json.dumps(say("q1", "a1", "q2", "a2", system="s"))},
    "each message as text": {"messages": [json.dumps(m) for m in say("q1", "a1", "q2", "a2", system="s")]},
    "system column": {"system": "s", "messages": say("q1", "a1", "q2", "a2")},
    "developer": {"messages": [{"role": "developer", "content": "s"}, *say("q1", "a1", "q2", "a2")]},
    "sharegpt": {
        "conversations": [
            {"from": who, "value": what}
            for who, what in [("system", "s"), ("human", "q1"), ("gpt", "a1"), ("human", "q2"), ("gpt", "a2")]
        ]
    },
    "sharegpt with system column": {
        "system": "s",
        "conversations": [
            {"from": "user", "value": "q1"},
            {"from": "assistant", "value": "a1"},
            {"from": "Human", "value": "q2"},
            {"from": "GPT", "value": "a2"},
        ],
    },
    "pairs": {"system": "s", "conversation": [{"human": "q1", "assistant": "a1"}, {"human": "q2", "assistant": "a2"}]},
    "pairs with system": {
        "conversation": [{"system": "s", "input": "q1", "output": "a1"}, {"input": "q2", "output": "a2"}]
    },
    "alpaca": {"instruction": "q2", "input": "", "output": "a2", "history": [["q1", "a1"]], "system": "s"},
    "alpaca from csv": {"instruction": "q2", "input": "", "output": "a2", "history": '[["q1", "a1"]]', "system": "s"},
    "query": {"query": "q2", "response": "a2", "history": [["q1", "a1"]], "system_prompt": "s"},
    "history of messages": {"query": "q2", "response": "a2", "history": say("q1", "a1"), "system": "s"},
    "prompt": {"prompt": say("q1", "a1", "q2", system="s"), "completion": [{"role": "assistant", "content": "a2"}]},
    "blocks": {
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "1"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "a1"}]},
            {"role": "user", "content": [{"type": "text", "value": "q2"}]},
            {"role": "assistant", "content": "a2"},
        ],
    },
    "nulls beside": {"messages": say("q1", "a1", "q2", "a2", system="s"), "query": None, "images": None, "tools": "[]"},
}


@pytest.mark.parametrize("name", SAME)
def test_one_conversation_in_many_dialects(name):
    assert canonical(SAME[name]) == {"messages": say("q1", "a1", "q2", "a2", system="s")}


@pytest.mark.parametrize(
    "row",
    [
        {"query": "q", "response": "a"},
        {"instruction": "q", "output": "a"},
        {"instruction": "", "input": "q", "output": "a"},
        {"prompt": "q", "completion": "a"},
        {"question": "q", "answer": "a"},
        {"problem": "q", "solution": "a", "answer": "42"},
        {"inputs": "q", "targets": "a"},
        {"input": "q", "output": "a", "history": [], "system": ""},
        {"input": "q", "target": "a", "id": 7},
    ],
)
def test_column_names(row):
    assert canonical(row) == {"messages": say("q", "a")}


def test_alpaca_joins_instruction_and_input():
    assert canonical({"instruction": "Add.", "input": "1 2", "output": "3"}) == {"messages": say("Add.\n1 2", "3")}


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
AGENT = {
    "messages": [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "let me see", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "1"},
        {"role": "assistant", "content": "a"},
    ],
    "tools": [TOOL],
}
AGENTS = {
    "openai": {
        "messages": [
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": "let me see",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}] * 2,
            },
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": json.dumps([TOOL]),
    },
    "sharegpt": {
        "conversations": [
            {"from": "human", "value": "q"},
            {"from": "gpt", "value": "let me see"},
            {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
            {"from": "function_call", "value": '{"name": "f", "arguments": "{\\"x\\": 1}"}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "a"},
        ],
        "tools": [{"name": "f", "parameters": {"type": "object"}}],
    },
    "roles": {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "let me see"},
            {
                "role": "tool_call",
                "content": '[{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": 1}}]',
            },
            {"role": "tool_response", "content": "1"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": [json.dumps(TOOL)],
    },
}


@pytest.mark.parametrize("name", AGENTS)
def test_tool_calls_in_many_dialects(name):
    assert canonical(AGENTS[name]) == AGENT


def test_anthropic_blocks():
    row = {
        "system": "s",
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "messages": [
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    {"type": "text", "text": "let me see"},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "1"}]},
                    {"type": "text", "text": "go on"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        ],
    }
    assert canonical(row) == {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "q"},
            {
                "role": "assistant",
                "content": "let me see",
                "reasoning_content": "hm",
                "tool_calls": [{**CALL, "id": "t1"}],
            },
            {"role": "tool", "content": "1", "tool_call_id": "t1"},
            {"role": "user", "content": "go on"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": [TOOL],
    }


PAIR = {"messages": say("q", "good"), "rejected_messages": say("q", "bad")}
PREFERENCES = {
    "strings": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "messages": {
        "prompt": [{"role": "user", "content": "q"}],
        "chosen": [{"role": "assistant", "content": "good"}],
        "rejected": [{"role": "assistant", "content": "bad"}],
    },
    "whole conversations": {"chosen": say("q", "good"), "rejected": say("q", "bad")},
    "whole, prompt beside": {"prompt": "q", "chosen": say("q", "good"), "rejected": say("q", "bad"), "score": 1.0},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    "alpaca": {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    "rejected response": {"messages": say("q", "good"), "rejected_response": "bad"},
    "query": {"query": "q", "response": "good", "rejected_response": "bad"},
    "list of one": {"query": "q", "response": "good", "rejected_response": ["bad"]},
    "rejected messages": {"messages": say("q", "good"), "rejected_messages": say("q", "bad")},
    "other names": {"instruction": "q", "chosen_response": "good", "rejected_response": "bad"},
    "other names, messages": {"chosen_messages": say("q", "good"), "rejected_messages": say("q", "bad")},
    "ultrafeedback": {
        "prompt": "q",
        "messages": say("q", "good"),
        "chosen": say("q", "good"),
        "rejected": say("q", "bad"),
        "score_chosen": 8.0,
    },
    "JSON text": {
        "prompt": json.dumps(say("q")),
        "chosen": json.dumps([{"role": "assistant", "content": "good"}]),
        "rejected": json.dumps([{"from": "gpt", "value": "bad"}]),
    },
    "blocks": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}],
        "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "good"}]}],
        "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "bad"}]}],
    },
    "pairs": {"conversation": [{"human": "q", "assistant": "good"}], "rejected_response": "bad"},
    "transcripts": {
        "chosen": "\n\nHuman: q\n\nAssistant: good",
        "rejected": "\n\nHuman: q\n\nAssistant: bad",
    },
}


@pytest.mark.parametrize("name", PREFERENCES)
def test_preference_rows_in_many_dialects(name):
    assert canonical(PREFERENCES[name]) == PAIR


def test_a_system_column_belongs_to_both_answers():
    row = canonical({**PREFERENCES["sharegpt"], "system": "s"})
    assert row == {"messages": say("q", "good", system="s"), "rejected_messages": say("q", "bad", system="s")}


def test_text_that_only_looks_like_a_conversation_stays_text():
    for text in ('[{"role": "user"', '[{"name": "x"}]', "[{ not JSON", "[1, 2]"):
        assert canonical({"prompt": text, "completion": text}) == {"messages": say(text, text)}


def test_kto_and_classification_labels():
    assert canonical({"messages": say("q", "a"), "label": True}) == {"messages": say("q", "a"), "label": True}
    assert canonical({"prompt": "q", "completion": "a", "label": "false"})["label"] is False
    talk = {"prompt": say("q"), "completion": [{"role": "assistant", "content": "a"}], "label": False}
    assert canonical(talk) == {"messages": say("q", "a"), "label": False}
    assert canonical({"instruction": "q", "input": "", "output": "a", "kto_tag": True})["label"] is True
    assert canonical({"text": "nice", "label": 1}) == {"messages": [{"role": "user", "content": "nice"}], "label": 1}
    assert canonical({"query": "x", "label": "3"})["label"] == 3
    assert canonical({"query": "x", "label": "sports"})["label"] == "sports"


def test_text_rows():
    assert canonical({"text": "once upon"}) == {"text": "once upon"}
    assert canonical({"content": "once <image> upon", "url": "x"}) == {"text": "once <image> upon"}


def test_per_message_loss():
    row = canonical({"messages": [*say("q"), {"role": "assistant", "content": "a", "weight": 0, "loss_scale": 2}]})
    assert row["messages"][1] == {"role": "assistant", "content": "a", "loss": False, "loss_scale": 2.0}
    assert reason({"messages": [*say("q"), {"role": "assistant", "content": "a", "loss": "no"}]})


def test_columns_override_detection():
    columns = ColumnMap(rename={"a": "query", "b": "response", "response": "_"})
    assert canonical({"a": "q", "b": "x", "response": "other"}, columns=columns) == {"messages": say("q", "x")}
    columns = ColumnMap(rename={"input": "query", "output": "response"})
    assert canonical({"instruction": "no", "input": "q", "output": "x"}, columns=columns) == {"messages": say("q", "x")}
    columns = ColumnMap(rename={"label": "response"})
    assert canonical({"question": "q", "label": "x", "answer": "y"}, columns=columns) == {"messages": say("q", "x")}


def test_own_role_names():
    columns = ColumnMap(rename={"dialog": "messages"}, roles={"U": "user", "B": "assistant"}, role_key="who")
    columns = ColumnMap(columns.rename, columns.roles, "who", "what")
    row = {"dialog": [{"who": "U", "what": "q"}, {"who": "B", "what": "a"}]}
    assert canonical(row, columns=columns) == {"messages": say("q", "a")}


def test_keep_columns():
    row = canonical({"problem": "q", "solution": "42", "level": 3}, keep_columns=True)
    assert row == {"messages": say("q", "42"), "problem": "q", "solution": "42", "level": 3}
    notes = Counter()
    row = canonical({"query": "q", "response": "a", "at": date(2026, 1, 1)}, keep_columns=True, notes=notes)
    assert "at" not in row and sum(notes.values()) == 1
    row = canonical({"query": "q", "env": {"a": 1}}, keep_columns=True, need_response=False)
    assert row == {"messages": say("q"), "query": "q", "env": {"a": 1}}


UNUSABLE = {
    "unknown columns": {"foo": "x", "bar": 1},
    "the row is no object": [1, 2],
    "empty messages": {"messages": []},
    "unknown role": {"messages": [{"role": "narrator", "content": "x"}]},
    "null content": {"messages": [{"role": "user", "content": None}, {"role": "assistant", "content": "x"}]},
    "content is no text": {"messages": [{"role": "user", "content": True}, {"role": "assistant", "content": "x"}]},
    "empty assistant message": {"messages": say("q", " \n")},
    "empty response": {"query": "q", "response": ""},
    "empty query": {"instruction": "", "input": "", "output": "a"},
    "empty text": {"text": " "},
    "no assistant message": {"messages": say("q")},
    "no answer column": {"query": "q", "foo": 1},
    "a message without a role": {"messages": [{"content": "x"}]},
    "a message is no object": {"messages": [["user", "x"]]},
    "messages is text, not a list": {"messages": "hello"},
    "messages is broken JSON text": {"messages": '[{"role": "user"'},
    "a tool call is broken JSON": {
        "conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f("}]
    },
    "a tool call is broken JSON ": {"messages": [*say("q"), {"role": "assistant", "tool_calls": ['{"name": "f"']}]},
    "a tool call without a name": {"messages": [*say("q"), {"role": "assistant", "tool_calls": [{"arguments": {}}]}]},
    "tool call arguments are no object": {
        "messages": [*say("q"), {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}]
    },
    "tools is broken JSON text": {"messages": say("q", "a"), "tools": "[{"},
    "a tool without a name": {"messages": say("q", "a"), "tools": [{"type": "function"}]},
    "unknown content block": {"messages": [{"role": "user", "content": [{"type": "hologram"}]}]},
    "several rejected answers": {"query": "q", "response": "a", "rejected_response": ["b", "c"]},
    "the prompt of a preference row ends with an answer": {"messages": say("q", "a"), "chosen": "x", "rejected": "y"},
    "rejected holds no answer": {"prompt": "q", "chosen": "x", "rejected": ""},
    "history is no list of pairs": {"query": "q", "response": "a", "history": [["x"]]},
}


@pytest.mark.parametrize("expected", UNUSABLE)
def test_unusable_rows_say_why(expected):
    assert reason(UNUSABLE[expected]) == expected.strip()


def test_unknown_columns_are_named():
    with pytest.raises(RowError) as error:
        canonical_row({"foo": "x", "bar": 1})
    assert "foo, bar" in error.value.detail and "messages" in error.value.detail and "--columns" in error.value.detail


def test_numbers_become_their_text_and_are_counted():
    notes = Counter()
    row = canonical({"question": "1+1?", "answer": 2}, notes=notes)
    assert row == {"messages": say("1+1?", "2")} and notes["numbers taken as text"] == 1
    assert canonical({"question": 0.5, "answer": 10**20})["messages"] == say("0.5", "100000000000000000000")
    assert reason({"question": "q", "answer": float("nan")}) == "null content"
    assert reason({"question": "q", "answer": False}) == "content is no text"
    assert canonical({"question": "q", "answer": 10**4000})["messages"] == say("q", "1" + "0" * 4000)
    assert reason({"text": "x", "label": float("nan")}) == "unusable label"
    assert reason({"messages": [*say("q"), {"role": "assistant", "content": "a", "loss_scale": 10**400}]})


def test_images(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    here = str((tmp_path / "a.png").absolute())

    def images(row):
        found = canonical(row, folder=tmp_path)
        return found["messages"][0]["content"], found.get("images")

    assert images({"query": "see", "response": "a", "images": ["a.png"]}) == ("<image>see", [here])
    assert images({"query": "see <image>!", "response": "a", "image": "a.png"}) == ("see <image>!", [here])
    assert images({"query": "<img>http://h/x.png</img>see", "response": "a"}) == ("<image>see", ["http://h/x.png"])
    assert images({"query": "a <image> in HTML", "response": "a"}) == ("a <image> in HTML", None)
    assert images({"query": "q", "response": "a", "images": [{"bytes": b"\x01", "path": None}]})[1] == [
        "data:;base64,AQ=="
    ]
    blocks = [
        {"type": "image_url", "image_url": {"url": "http://h/1.png"}},
        {"type": "image"},
        {"type": "text", "text": "see"},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AQ=="}},
    ]
    row = {
        "messages": [{"role": "user", "content": blocks}, {"role": "assistant", "content": "a"}],
        "images": ["a.png"],
    }
    assert images(row) == ("<image><image>see<image>", ["http://h/1.png", here, "data:image/png;base64,AQ=="])
    assert reason({"query": "<image><image>", "response": "a", "images": ["a.png"]}, folder=tmp_path).startswith(
        "<image>"
    )
    assert reason({"query": "q", "response": "a", "images": ["b.png"]}, folder=tmp_path) == "a media file is missing"


MESSAGE_KEYS = ["role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "type", "text"]
MESSAGE_KEYS += ["human", "assistant", "image", "loss"]
COLUMNS = [*formats.CONVERSATION, *formats.QUERY, *formats.RESPONSE, *formats.REJECTED, *formats.LABEL, *formats.TOOLS]
COLUMNS += [*formats.SYSTEM, *formats.MEDIA["image"], *formats.KEPT, "chosen", "history", "foo"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MESSAGE_KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=400, deadline=None)
@given(row=st.dictionaries(st.sampled_from(COLUMNS), JSON, max_size=4), need=st.booleans(), keep=st.booleans())
def test_any_row_is_canonical_or_has_a_reason(row, need, keep):
    try:
        found = canonical(row, need_response=need, keep_columns=keep)
    except RowError as error:
        assert error.reason
        return
    assert ("text" in found) != ("messages" in found) or keep
    for message in found.get("messages", []):
        assert message["role"] in ("system", "user", "assistant", "tool") and isinstance(message["content"], str)
    if not keep:
        assert canonical(json.loads(json.dumps(found)), need_response=need) == found or any(
            k in found for k in ("images",)
        )


@settings(max_examples=100, deadline=None)
@given(
    texts=st.lists(st.text(min_size=1).filter(str.strip), min_size=2, max_size=6).filter(lambda t: len(t) % 2 == 0),
    system=st.none() | st.text(min_size=1),
)
def test_a_canonical_row_is_its_own_canonical_form(texts, system):
    row = {"messages": say(*texts, system=system)}
    assert canonical(canonical(row)) == row
