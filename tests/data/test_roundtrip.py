"""What a run directory saves of its rows is read back to the same rows, ids and labels, whatever kind of row it is."""

import json

import numpy as np
import pytest

from swift.chat import ChatEncoder
from swift.config.data import DataOptions, EncodingOptions
from swift.data import encode_rows, load_rows, prepare, write_rows
from swift.data.media import TAGS
from swift.data.report import DataReport
from tests import tiny
from tests.data.test_formats import say

TOOL = {"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": [1, None, "\u2028"]}}, "id": "c1"}
KINDS = {
    "plain": {"query": "q", "response": "a"},
    "text": {"text": "once\u2028upon <image>\x85 \x00 a time\r\n"},
    "tools": {
        "messages": [
            *say("q"),
            {"role": "assistant", "content": "let me see", "tool_calls": [CALL, CALL], "reasoning_content": "hm"},
            {"role": "tool", "content": "1", "tool_call_id": "c1", "name": "f"},
            {"role": "assistant", "content": "a"},
        ],
        "tools": [TOOL],
    },
    "loss": {
        "messages": [
            *say("q"),
            {"role": "assistant", "content": "first", "loss": False},
            *say("q2"),
            {"role": "assistant", "content": "second", "loss_scale": 0.5},
            *say("q3"),
            {"role": "assistant", "content": "third", "loss": True, "loss_scale": 2},
        ]
    },
    "preference": {"prompt": "q", "chosen": "good", "rejected": "bad"},
    "preference with tools": {
        "messages": [*say("q"), {"role": "assistant", "content": "", "tool_calls": [CALL]}],
        "rejected_messages": say("q", "bad"),
        "tools": [TOOL],
        "margin": 0.5,
    },
    "kto": {"messages": say("q", "a", system="s"), "label": False},
    "classification": {"text": "x", "label": [0, 2]},
    "pairs": {"query": "q", "positive": ["p", "p2"], "negative": [say("n"), say("n2")]},
    "channel": {
        "messages": say("q", "a"),
        "channel": "chat",
        "chat_template_kwargs": {"enable_thinking": False},
        "objects": {"ref": ["cat"], "bbox": [[1, 2, 3, 4]]},
    },
    "image": {"query": "see", "response": "a", "images": ["i.png"]},
    "images in messages": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": "i.png"},
                    {"type": "text", "text": " and "},
                    {"type": "image_url", "image_url": {"url": "https://host/x.png"}},
                ],
            },
            {"role": "assistant", "content": "a"},
        ]
    },
    "frames": {"query": "<video>what?", "response": "a", "videos": [["i.png", "i.png"]]},
    "sound": {"query": "<audio>what?", "response": "a", "audio": {"bytes": None, "path": "i.png"}},
    "preference with image": {"prompt": "<image>q", "chosen": "good", "rejected": "bad", "images": ["i.png"]},
}


@pytest.fixture
def saved(tmp_path):
    def save(values):
        (tmp_path / "i.png").write_bytes(b"x")
        path = tmp_path / "x.jsonl"
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
        return str(path)

    return save


def rows_of(path):
    return load_rows(DataOptions(dataset=(str(path),), dataset_shuffle=False)).train


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_each_kind(saved, tmp_path, kind):
    first = rows_of(saved([KINDS[kind]]))
    other = tmp_path / "elsewhere"
    other.mkdir()
    write_rows(other / "val_dataset.jsonl", first)
    again = rows_of(other / "val_dataset.jsonl")
    assert [dict(row) for row in again] == [dict(row) for row in first] and len(first) == 1
    assert {tag for tag in TAGS.values() if tag in str(KINDS[kind])} <= {t for t in TAGS.values() if t in str(first[0])}


def test_ids_labels_and_weights(saved, tmp_path):
    values = [KINDS[kind] for kind in ("plain", "text", "loss", "kto", "channel", "preference")]
    first = rows_of(saved(values))
    write_rows(tmp_path / "val_dataset.jsonl", first)
    encoder = ChatEncoder(tiny.tokenizer())
    one, two = (
        encode_rows(rows, encoder, report=DataReport()) for rows in (first, rows_of(tmp_path / "val_dataset.jsonl"))
    )
    assert len(one) == len(values) and one.scales is not None
    for array in ("ids", "learned", "starts", "scales"):
        assert np.array_equal(getattr(one, array), getattr(two, array))


def test_the_split_of_a_run_as_the_validation_rows_of_the_next(saved, tmp_path):
    """The files that `swift sft` writes are named by --dataset and --val_dataset: same rows on both sides."""
    values = [{"query": f"q{i}", "response": f"a{i}"} for i in range(20)]
    encoder, encoding = ChatEncoder(tiny.tokenizer()), EncodingOptions(load_from_cache_file=False)
    options = DataOptions(dataset=(saved(values),), split_dataset_ratio=0.3)
    first = prepare(options, encoder, seed=1, encoding=encoding)
    write_rows(tmp_path / "val_dataset.jsonl", first.val_rows)
    options = DataOptions(dataset=options.dataset, val_dataset=(str(tmp_path / "val_dataset.jsonl"),))
    again = prepare(options, encoder, seed=1, encoding=encoding)
    assert len(first.val) == 6 and np.array_equal(first.val.ids, again.val.ids)
    assert again.report.val_in_train == 6  # and it says so
