"""Examples are the encoder's, unchanged; each row is used or counted with its reason; batches are plain padding."""

import os
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift.chat import IGNORED, ChatEncoder
from swift.data import DataReport, PadCollator, Rows, encode_rows
from swift.data.encode import ROWS_PER_PROCESS, processes_for
from swift.errors import ResourceError
from tests.data.fakes import END, CharacterEncoder


def talk(question, answer, **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer, **more}]}


def encode(rows, encoder=None):
    report = DataReport()
    encoded = encode_rows(Rows.of(rows), encoder or CharacterEncoder(), report=report)
    return encoded, report.splits["train"]


def test_examples_are_those_of_the_encoder():
    rows = [talk("q", "long answer"), {"text": "plain"}, talk("éé", "x")]
    encoded, count = encode(rows)
    expected = [CharacterEncoder().outcome(row)[0] for row in rows]
    assert [e["input_ids"].tolist() for e in (encoded[0], encoded[1], encoded[-1])] == [e.input_ids for e in expected]
    assert [e["labels"].tolist() for e in encoded] == [e.labels for e in expected]
    assert [e["row_id"] for e in encoded] == [0, 1, 2]
    assert encoded.lengths.tolist() == count.lengths.tolist() == [e.length for e in expected]
    assert encoded.trained.tolist() == count.trained.tolist() == [e.trained for e in expected]
    assert all(e["input_ids"].dtype == e["labels"].dtype == np.int64 for e in encoded)
    with pytest.raises(IndexError):
        encoded[3]


def test_every_row_is_used_or_has_a_reason():
    rows = [
        talk("q", "a"),
        talk("q", "refuse"),
        talk("qq", "refuse"),
        talk("q", "drop"),
        talk("q", "parts"),
        {"text": "t"},
    ]
    rows += [talk("q", "a", loss=False), talk("q" * 20, "a"), talk("q", "a" * 20)]
    encoded, count = encode(rows, CharacterEncoder(max_length=12))
    assert dict(count.drops.counts) == {
        "message ... can't be encoded: ...": 2,
        "longer than --max_length": 1,
        "no trained token": 2,
    }
    assert count.drops.places["no trained token"] == [("rows:7", ""), ("rows:8", "")]
    assert (count.rows, count.used, count.extra, count.examples) == (9, 4, 1, 5)
    assert (count.truncated.total, count.lost_end.total) == (1, 1)
    assert count.lost_end.places[""][0][0] == "rows:9"
    assert count.adds_up() and len(encoded) == 5 and [e["row_id"] for e in encoded] == [0, 4, 4, 5, 8]


def test_weights_stand_only_where_a_row_has_them():
    assert "loss_scale" not in encode([talk("q", "a")])[0][0]
    encoded, _ = encode([talk("q", "a"), talk("q", "scale"), talk("q", "b")])
    assert encoded[0]["loss_scale"].tolist() == [1.0] * 4
    assert encoded[1]["loss_scale"].tolist() == [0.0, 0.0] + [2.0] * 6
    assert encoded[2]["loss_scale"].tolist() == [1.0] * 4


def test_the_fingerprint_changes_with_ids_labels_and_order():
    def two(loss):
        return {"messages": talk("r", "b", loss=loss)["messages"] + talk("s", "c")["messages"]}

    rows = [talk("q", "a"), two(True)]
    changed = [[talk("q", "b"), two(True)], rows[::-1], rows[:1], [talk("q", "a"), two(False)]]
    prints = {encode(r)[0].fingerprint() for r in [rows, *changed]}
    assert len(prints) == 5 and encode(rows)[0].fingerprint() in prints


def test_nothing_to_encode():
    encoded, count = encode([])
    assert (
        len(encoded) == 0 and count.percentiles() == {} and count.histogram() == [] and encoded.lengths.tolist() == []
    )


def test_with_the_chat_encoder_and_a_real_tokenizer():
    from tests.tiny import tokenizer

    tok = tokenizer()
    rows = [talk("Who are you?", "I am an assistant."), talk("你好", "a" * 500)]
    report = DataReport()
    encoded = encode_rows(Rows.of(rows), ChatEncoder(tok, max_length=100), report=report)
    ids = tok.apply_chat_template(rows[0]["messages"], tokenize=True, return_dict=False)
    assert encoded[0]["input_ids"].tolist() == ids
    learned = [t for t in encoded[0]["labels"].tolist() if t != IGNORED]
    assert tok.decode(learned).startswith("I am an assistant.<|im_end|>")
    assert report.splits["train"].drops.counts == {"longer than --max_length": 1}


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=5)


@settings(deadline=None)
@given(lengths=LENGTHS, multiple=st.sampled_from([None, 1, 8, 16]), side=st.sampled_from(["left", "right"]))
def test_padding(lengths, multiple, side):
    torch = pytest.importorskip("torch")
    rows = [talk("q" * n, "a" * n) for n in lengths]
    encoded, _ = encode(rows)
    batch = PadCollator(0, multiple, padding_side=side, with_row_ids=True)([encoded[i] for i in range(len(rows))])
    length = batch["input_ids"].shape[1]
    assert set(batch) == {"input_ids", "labels", "attention_mask", "row_ids"}
    assert all(
        batch[k].dtype == torch.int64 and batch[k].shape == (len(rows), length) for k in batch.keys() - {"row_ids"}
    )
    assert length % (multiple or 1) == 0 and length - max(encoded.lengths) < (multiple or 1)
    for i, row_id in enumerate(batch["row_ids"]):
        kept = batch["attention_mask"][i].bool()
        assert batch["input_ids"][i][kept].tolist() == encoded[row_id]["input_ids"].tolist()
        assert batch["labels"][i][kept].tolist() == encoded[row_id]["labels"].tolist()
        assert (batch["input_ids"][i][~kept] == 0).all() and (batch["labels"][i][~kept] == IGNORED).all()
        assert kept.tolist() == sorted(kept.tolist(), reverse=side == "right")
    assert "row_ids" not in PadCollator(0)([encoded[0]]) and END in batch["input_ids"]


def test_padding_has_no_weight():
    encoded, _ = encode([talk("q", "scale"), talk("q", "a")])
    batch = PadCollator(0)([encoded[0], encoded[1]])
    assert batch["loss_scale"].tolist() == [[0.0, 0.0] + [2.0] * 6, [1.0] * 4 + [0.0] * 4]


class Dying(CharacterEncoder):
    def encode_batch(self, rows):
        os.kill(os.getpid(), signal.SIGKILL)


def test_any_number_of_processes_gives_the_same():
    answers = ["a", "refuse", "parts", "drop", "b" * 30, "x"]
    rows = Rows.of([talk(f"q{i}", answers[i % 6] if i < 5000 or i % 97 else "scale") for i in range(7001)])
    results = []
    for processes in (1, 2, 3):
        report = DataReport()
        encoded = encode_rows(rows, CharacterEncoder(max_length=25), report=report, num_proc=processes)
        results.append((encoded.fingerprint(), report.to_json()))
        assert report.problems() == []
    assert results[0] == results[1] == results[2]
    assert results[0][1]["train"]["dropped"] > 1000


def test_processes_are_started_only_where_they_pay():
    assert [processes_for(n, None) for n in (0, 1, 1000, ROWS_PER_PROCESS)] == [1, 1, 1, 1]
    assert processes_for(100 * ROWS_PER_PROCESS, None) == len(os.sched_getaffinity(0))
    assert processes_for(500, 8) == 1 and processes_for(5000, 3) == 3


def test_a_killed_process_is_an_error_not_a_hang():
    with pytest.raises(ResourceError, match="killed"):
        encode_rows(Rows.of([talk("q", "a")] * 3000), Dying(), report=DataReport(), num_proc=2)
