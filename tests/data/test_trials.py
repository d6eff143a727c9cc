"""Inputs on which others lose rows without a word: each with the count that a careful person gets by hand.

The first table was measured with ms-swift 4.6.0, and what it did stands beside each input; the
second one counts the demo files of LLaMA-Factory and ms-swift: rows, and replies that end with an end-of-turn token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from swift.chat import ChatEncoder
from swift.config.data import DataOptions
from swift.data import load_rows
from swift.data.encode import encode_rows
from swift.data.report import DataReport
from swift.errors import DataError, UsageError
from tests.assets import ASSETS
from tests.chat.templates import ORIGINAL, fitted


def lines(*values) -> str:
    return "".join(value + "\n" if isinstance(value, str) else json.dumps(value) + "\n" for value in values)


def talk(question: str = "q", answer: object = "a") -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


PAIR = {"query": "q", "response": "a"}
SHAREGPT = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
PREFERENCE = {
    "conversations": [{"from": "human", "value": "q"}],
    "chosen": {"from": "gpt", "value": "good"},
    "rejected": {"from": "gpt", "value": "bad"},
}


@dataclass(frozen=True)
class Trial:
    """text: the file. read, used: rows by hand. reasons: reason -> line of its first row. keeps: what the first row
    must still hold."""

    text: str
    read: int
    used: int
    reasons: dict[str, int] = field(default_factory=dict)
    keeps: dict[str, object] = field(default_factory=dict)
    name: str = "x.jsonl"


TRIALS = {
    # aborted with DatasetGenerationError
    "one broken line": Trial(lines(PAIR, '{"query": "q", "respon', PAIR), 3, 2, {"broken JSON": 2}),
    # dropped; strict=True did not raise
    "a row without known keys": Trial(lines(PAIR, {"foo": "q", "bar": "a"}, PAIR), 3, 2, {"unknown columns": 2}),
    # 1 row kept, 2 lost
    "three formats in one file": Trial(lines(PAIR, SHAREGPT, talk()), 3, 3),
    # dropped with a traceback
    "unknown role": Trial(lines(talk(), {"messages": [{"role": "wizard", "content": "x"}]}), 2, 1, {"unknown role": 2}),
    "null content": Trial(lines(talk(), talk(answer=None)), 2, 1, {"null content": 2}),
    # accepted in silence
    "a number as content": Trial(lines(talk(answer=42)), 1, 1, {}, {"messages": talk(answer="42")["messages"]}),
    # kept
    "csv with an empty response": Trial("query,response\nq,a\nq,\n", 2, 1, {"empty response": 3}, name="x.csv"),
    # chosen and rejected discarded
    "LLaMA-Factory's preferences": Trial(
        lines(PREFERENCE), 1, 1, {}, {"rejected_messages": talk(answer="bad")["messages"]}
    ),
    # loaded
    "rejected_response": Trial(
        lines({**talk(answer="good"), "rejected_response": "bad"}),
        1, 1, {}, {"rejected_messages": talk(answer="bad")["messages"]},
    ),
    "a label": Trial(lines({**talk(), "label": True}), 1, 1, {}, {"label": True}),
    "an image that isn't there": Trial(
        lines(talk(), {**talk("<image>q"), "images": ["nowhere.png"]}), 2, 1, {"a media file is missing": 2}
    ),
    "tools": Trial(
        lines({**talk(), "tools": '[{"name": "f", "parameters": {}}]'}),
        1, 1, {}, {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
    ),
    # assistant-only messages
    "txt": Trial("one\n\ntwo\n", 2, 2, {}, {"text": "one"}, name="x.txt"),
}  # fmt: skip


def load(path: Path | str, **options):
    return load_rows(DataOptions(dataset=(str(path),), dataset_shuffle=False, **options))


@pytest.mark.parametrize("name", TRIALS)
def test_every_row_is_counted(tmp_path, name):
    trial = TRIALS[name]
    file = tmp_path / trial.name
    file.write_text(trial.text)
    loaded = load(file)
    (count,) = loaded.report.datasets
    assert (count.read, count.usable, len(loaded.train)) == (trial.read, trial.used, trial.used)
    places = {reason: found[0][0] for reason, found in count.drops.places.items()}
    assert places == {reason: f"{file}:{line}" for reason, line in trial.reasons.items()}
    assert loaded.report.problems() == []
    for key, value in trial.keeps.items():
        assert loaded.train[0][key] == value
    if trial.reasons:
        with pytest.raises(DataError, match="1 of "):
            load(file, strict=True)


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        (lines({"foo": 1}, {"foo": 2}), "x.jsonl", "none of its 2 rows can be used.*unknown columns"),  # ZeroDivision
        ("", "x.jsonl", "no rows"),  # StopIteration
        (None, "x.jsonl", "no such file|not found|no file"),
    ],
)
def test_nothing_to_use_is_an_error_that_says_what(tmp_path, text, name, says):
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=says) as error:
        load(file)
    assert name in str(error.value)


def test_number_of_rows_and_subsets(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text(lines(*({"query": f"q{i}", "response": "a"} for i in range(10))))
    assert [len(load(f"{file}#{n}").train) for n in (4, 10, 25)] == [4, 10, 25]
    with pytest.raises(UsageError, match="no subsets"):
        load(f"{file}:sub")


# file: (rows, replies) of the raw JSON: messages of gpt, assistant and function_call, answers, one for each chosen
HAND = {
    "llamafactory/alpaca_en_demo.json": (999, 999),
    "llamafactory/alpaca_zh_demo.json": (1000, 1000),
    "llamafactory/c4_demo.jsonl": (300, 300),
    "llamafactory/dpo_en_demo.json": (300, 263 + 300),
    "llamafactory/dpo_zh_demo.json": (300, 300),
    "llamafactory/glaive_toolcall_en_demo.json": (300, 746 + 211),
    "llamafactory/glaive_toolcall_zh_demo.json": (300, 724 + 216),
    "llamafactory/identity.json": (91, 91),
    "llamafactory/kto_en_demo.json": (300, 487),
    "llamafactory/reason_tool_use_demo_50.jsonl": (50, 112),
    "llamafactory/wiki_demo.txt": (30, 30),
    "ms-swift/rft_math.json": (500, 500),
    "ms-swift/tests_alpaca.jsonl": (3, 4),
    "ms-swift/tests_chatml.jsonl": (3, 5),
    "ms-swift/tests_conversations.jsonl": (3, 5),
    "ms-swift/tests_sharegpt.jsonl": (3, 5),
}


@pytest.mark.skipif(ASSETS is None or not (ASSETS / "data").is_dir(), reason="the sample files aren't here")
@pytest.mark.parametrize("name", HAND)
def test_demo_files_learn_as_many_replies_as_they_hold(name):
    rows, replies = HAND[name]
    tok = fitted(ORIGINAL["qwen2_5"].read_text(encoding="utf-8"))
    loaded = load(ASSETS / "data" / name, model_name=("x",), model_author=("y",))
    report = DataReport()
    encoded = encode_rows(loaded.train, ChatEncoder(tok), report=report, num_proc=1)
    count = report.splits["train"]
    assert (loaded.report.datasets[0].read, count.used, len(encoded), count.drops.total) == (rows, rows, rows, 0)
    assert sum(int((example["labels"] == tok.eos_token_id).sum()) for example in encoded) == replies
