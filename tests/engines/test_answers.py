"""`swift infer` over rows, with the fake engine: order, resuming after a kill, and what can't be continued."""

import json

import pytest

from swift.engines.answers import Question, answer_rows
from swift.engines.fake import FakeEngine
from swift.engines.protocol import Sampling
from swift.engines.replies import Replies
from swift.engines.setup import PlainEncoder
from swift.errors import DataError

TEXTS = ["one", "two", "你好，世界", "FAIL here", "five\nlines", "six"]


def questions(texts=TEXTS, **settings):
    rows = [{"messages": [user(text), {"role": "assistant", "content": text.upper()}]} for text in texts]
    return [Question.of(row, f"rows.jsonl:{i}", settings) for i, row in enumerate(rows, 1)]


def user(text):
    return {"role": "user", "content": text}


def answer(path, asked, engine=None, **sampling):
    return answer_rows(
        engine or FakeEngine(),
        asked,
        lambda i: Sampling(**sampling),
        Replies(PlainEncoder(None)),
        path,
        ahead=3,
        show=False,
    )


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_one_line_per_row_in_order_with_answer_reference_and_source(tmp_path):
    path = tmp_path / "deep" / "results.jsonl"
    assert answer(path, questions(), logprobs=True) == 1
    got = lines(path)
    assert [line["response"] for line in got] == ["one", "two", "你好，世界", None, "five\nlines", "six"]
    assert [line["labels"] for line in got] == [text.upper() for text in TEXTS]
    assert [line["source"] for line in got] == [f"rows.jsonl:{i}" for i in range(1, 7)]
    assert got[0]["messages"] == [user("one"), {"role": "assistant", "content": "one"}]
    assert "asked to fail" in got[3]["error"] and got[3]["messages"] == [user("FAIL here")]
    assert [p["token"] for p in got[1]["logprobs"]] == ["t", "w", "o"]


def test_a_file_cut_at_any_byte_is_completed_to_the_same_file(tmp_path):
    whole = tmp_path / "whole.jsonl"
    answer(whole, questions())
    content = whole.read_bytes()
    for cut in range(0, len(content) + 1, 23):
        path = tmp_path / "cut.jsonl"
        path.write_bytes(content[:cut])
        assert answer(path, questions()) == 1
        assert path.read_bytes() == content


def test_rows_that_are_there_are_not_asked_again(tmp_path):
    asked = []

    class Counting(FakeEngine):
        def submit(self, request):
            asked.append(request.messages[-1]["content"])
            return super().submit(request)

    path = tmp_path / "r.jsonl"
    answer(path, questions()[:4])
    answer(path, questions(), Counting())
    assert asked == TEXTS[4:]
    answer(path, questions(), Counting())
    assert asked == TEXTS[4:]


@pytest.mark.parametrize(
    "others",
    [questions(["one", "other"]), questions(temperature=0.5), questions(TEXTS[:3])],
    ids=["rows", "settings", "fewer"],
)
def test_other_rows_or_settings_are_never_mixed_in(tmp_path, others):
    path = tmp_path / "r.jsonl"
    answer(path, questions()[:5])
    before = path.read_bytes()
    with pytest.raises(DataError, match="another row|5 answers"):
        answer(path, others)
    assert path.read_bytes() == before


def test_a_file_that_is_no_result_file_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes\nsecond line\n")
    with pytest.raises(DataError, match="not a result line"):
        answer(path, questions())
    assert path.read_text() == "my notes\nsecond line\n"


def test_the_reference_is_the_last_assistant_turn_and_a_row_without_a_question_is_an_error():
    talk = [user("a"), {"role": "assistant", "content": "b"}, user("c"), {"role": "assistant", "content": "d"}]
    question = Question.of({"messages": talk}, "f:1", {})
    assert (question.messages, question.labels) == (talk[:3], "d")
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    with_call = Question.of({"messages": [user("a"), {"role": "assistant", "tool_calls": [call]}]}, "f:1", {})
    assert json.loads(with_call.labels) == [call]
    assert Question.of({"messages": [user("a")]}, "f:1", {}).labels is None
    with pytest.raises(DataError, match="f:9"):
        Question.of({"messages": [{"role": "assistant", "content": "x"}]}, "f:9", {})
