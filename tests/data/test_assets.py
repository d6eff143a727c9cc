"""Public sample files: the rows that a person would count, none lost."""

import json

import pytest

from swift.config.data import DataOptions
from swift.data import load_rows
from tests.assets import ASSETS

pytestmark = pytest.mark.skipif(ASSETS is None or not (ASSETS / "data").is_dir(), reason="the sample files aren't here")

FILES = {
    "llamafactory/alpaca_en_demo.json": "alpaca",
    "llamafactory/alpaca_zh_demo.json": "alpaca",
    "llamafactory/c4_demo.jsonl": "text",
    "llamafactory/dpo_en_demo.json": "preference",
    "llamafactory/dpo_zh_demo.json": "preference",
    "llamafactory/glaive_toolcall_en_demo.json": "sharegpt",
    "llamafactory/glaive_toolcall_zh_demo.json": "sharegpt",
    "llamafactory/identity.json": "alpaca",
    "llamafactory/kto_en_demo.json": "messages",
    "llamafactory/reason_tool_use_demo_50.jsonl": "messages",
    "ms-swift/rft_math.json": "query-response",
    "ms-swift/tests_alpaca.jsonl": "alpaca",
    "ms-swift/tests_chatml.jsonl": "messages",
    "ms-swift/tests_conversations.jsonl": "sharegpt",
    "ms-swift/tests_multi_modal_1.jsonl": "query-response",
    "ms-swift/tests_sharegpt.jsonl": "sharegpt",
}


def plain_values(path):
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    value = json.loads(text)
    return list(value.values()) if isinstance(value, dict) else value


def texts_of(value):
    """All strings of three or more characters below the values (not the keys) of a row, JSON text opened."""
    if isinstance(value, str):
        return [value] if len(value) > 2 else []
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [text for item in items for text in texts_of(item)]


@pytest.mark.parametrize("name", FILES)
def test_every_row_is_used_and_no_text_is_lost(name):
    path = ASSETS / "data" / name
    values = plain_values(path)
    options = DataOptions((str(path),), dataset_shuffle=False, model_name=("{{name}}",), model_author=("{{author}}",))
    loaded = load_rows(options)
    (count,) = loaded.report.datasets
    assert count.read == len(values) == len(loaded.train) and dict(count.formats) == {FILES[name]: len(values)}
    if FILES[name] in ("alpaca", "text", "preference") or "kto" in name:
        for value, row in zip(values, loaded.train, strict=True):
            whole = "\n".join(texts_of(dict(row)))
            roles = {"human", "gpt", "user", "assistant", "system", "function_call", "observation"}
            assert all(text in whole for text in texts_of(value) if text not in roles)


def test_preference_and_tool_rows_keep_their_parts():
    folder = ASSETS / "data" / "llamafactory"
    path = folder / "dpo_en_demo.json"
    rows = load_rows(DataOptions((str(path),), dataset_shuffle=False)).train
    for value, row in zip(plain_values(path), rows, strict=True):
        assert row["messages"][:-1] == row["rejected_messages"][:-1]
        assert row["messages"][-1]["content"] == value["chosen"]["value"]
        assert row["rejected_messages"][-1]["content"] == value["rejected"]["value"]
    path = folder / "glaive_toolcall_en_demo.json"
    rows = load_rows(DataOptions((str(path),), dataset_shuffle=False)).train
    for value, row in zip(plain_values(path), rows, strict=True):
        calls = [json.loads(m["value"]) for m in value["conversations"] if m["from"] == "function_call"]
        found = [c["function"] for m in row["messages"] for c in m.get("tool_calls", [])]
        assert found == calls
        assert [t["function"] for t in row.get("tools", [])] == json.loads(value["tools"])


def test_names_of_llama_factorys_dataset_info():
    folder = ASSETS / "data" / "llamafactory"
    texts = load_rows(DataOptions(("c4_demo", "wiki_demo"), dataset_dir=str(folder)))
    lines = sum(bool(line.strip()) for line in (folder / "wiki_demo.txt").read_text("utf-8").split("\n"))
    assert [count.train for count in texts.report.datasets] == [300, lines]
    assert all(set(row) == {"text"} for row in texts.train)
    loaded = load_rows(DataOptions(("dpo_en_demo#10", "kto_en_demo#10"), dataset_dir=str(folder)))
    assert len(loaded.train) == 20
    assert {tuple(sorted(row)) for row in loaded.train} == {("label", "messages"), ("messages", "rejected_messages")}
