"""Streams: every row of a pass once, in an order that only files, options and seed decide; examples, ids and counts are
those of rows that were all encoded ahead."""

import json
import pickle
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift.config.data import DataOptions
from swift.data import encode_rows, load_rows
from swift.data.collate import PadCollator
from swift.data.ondemand import Lazy, SeenCollator, Streamed, bins, examples
from swift.data.report import DataReport
from swift.data.seen import SeenCounts
from swift.data.stream import RowStream
from swift.errors import DataError, UsageError
from tests.data.fakes import CharacterEncoder
from tests.data.test_load import rows, save


def stream(*dataset, buffer=0, **options):
    return RowStream(DataOptions(dataset=dataset, **options), buffer)


def queries(taken):
    return [json.loads(one.text)["messages"][0]["content"] for one in taken]


def first(found, n):
    return queries(islice(iter(found), n))


def test_the_order_of_the_files_without_a_buffer(tmp_path):
    a, b = save(tmp_path / "a.jsonl", rows(3, "a")), save(tmp_path / "b.jsonl", rows(2, "b"))
    found = stream(a, b)
    once = ["qa0", "qa1", "qa2", "qb0", "qb1"]
    assert first(found, 12) == (once * 3)[:12]
    assert [found.place(t.row_id) for t in islice(iter(found), 5)] == [f"{a}:{i}" for i in (1, 2, 3)] + [
        f"{b}:{i}" for i in (1, 2)
    ]
    assert stream(a, buffer=50, dataset_shuffle=False).buffer == 0


@pytest.mark.parametrize("buffer", [1, 7, 30, 1000])
def test_a_buffer_shuffles_each_pass_by_the_seed(tmp_path, buffer):
    file = save(tmp_path / "x.jsonl", rows(30))
    found = first(stream(file, buffer=buffer, data_seed=1), 60)
    assert Counter(found[:30]) == Counter(found[30:]) == Counter(f"q{i}" for i in range(30))
    assert found == first(stream(file, buffer=buffer, data_seed=1), 60)
    if buffer > 1:
        assert found[:30] != found[30:] and found[:30] != first(stream(file, buffer=buffer, data_seed=2), 30)
    # nothing comes before it has been read
    assert all(int(query[1:]) <= place + buffer for place, query in enumerate(found[:30]))


def test_several_files_come_in_another_order_in_each_pass(tmp_path):
    for name in "abcdef":
        save(tmp_path / f"{name}.jsonl", rows(2, name))
    found = first(stream(str(tmp_path), buffer=1), 48)
    passes = [tuple(found[i : i + 12]) for i in range(0, 48, 12)]
    assert all(sorted(one) == sorted(passes[0]) for one in passes) and len(set(passes)) > 1


def test_data_sets_are_mixed_by_size(tmp_path):
    a, b = save(tmp_path / "a.jsonl", rows(300, "a")), save(tmp_path / "b.jsonl", rows(100, "b"))
    found = first(stream(a, b, buffer=1), 400)
    assert len(set(found)) == 400
    assert 10 < sum(query.startswith("qb") for query in found[:100]) < 45


def test_a_number_of_rows_and_more_than_there_are(tmp_path):
    file = save(tmp_path / "x.jsonl", rows(5))
    assert first(stream(f"{file}#2"), 5) == ["q0", "q1", "q0", "q1", "q0"]
    assert first(stream(f"{file}#7"), 7) == ["q0", "q1", "q2", "q3", "q4", "q0", "q1"]
    repeated = [taken.facts.repeated for taken in islice(iter(stream(f"{file}#7")), 7)]
    assert repeated == [False] * 5 + [True] * 2


@pytest.mark.parametrize("stopping", ["first_exhausted", "all_exhausted"])
def test_mixing_by_probabilities(tmp_path, stopping):
    a, b = save(tmp_path / "a.jsonl", rows(400, "a")), save(tmp_path / "b.jsonl", rows(50, "b"))
    found = stream(a, b, interleave_prob=(0.8, 0.2), stopping_strategy=stopping)
    taken = list(islice(iter(found), 200))
    assert 20 < sum(one.facts.dataset for one in taken) < 65
    many = list(islice(iter(found), 1500))
    ends = next(i for i, one in enumerate(many) if one.facts.repeated)
    whole = Counter(one.facts.dataset for one in many[:ends])
    assert whole[1] == 50  # it was used up; the other went on where its end was waited for
    with pytest.raises(UsageError):
        stream(a, interleave_prob=(0.5, 0.5))


def test_names_are_filled_as_when_all_rows_are_read(tmp_path):
    values = [{"query": "who?", "response": "I am {{NAME}} by {{AUTHOR}}"}, {"query": "你是谁", "response": "{{NAME}}"}]
    file = save(tmp_path / "x.jsonl", values)
    options = dict(model_name=("小黄", "Yellow"), model_author=("甲", "A"), dataset_shuffle=False)
    expected = [dict(row) for row in load_rows(DataOptions(dataset=(file,), **options)).train]
    taken = list(islice(iter(stream(file, **options)), 2))
    assert [json.loads(one.text) for one in taken] == expected and all(one.facts.filled for one in taken)


def test_nothing_to_use_is_an_error(tmp_path):
    for text in ("", '{"foo": 1}\n', "broken\n"):
        (tmp_path / "x.jsonl").write_text(text)
        with pytest.raises(DataError) as told:
            next(iter(stream(str(tmp_path / "x.jsonl"))))
        with pytest.raises(DataError) as loaded:
            load_rows(DataOptions(dataset=(str(tmp_path / "x.jsonl"),)))
        assert str(told.value) == str(loaded.value)
    file = save(tmp_path / "y.jsonl", [{"query": "drop", "response": "a"}] * 3)
    with pytest.raises(DataError, match="longer than"):
        next(examples(stream(file), CharacterEncoder()))


KINDS = [
    '{"query": "q", "response": "a"}',
    '{"query": "drop", "response": "a"}',
    '{"query": "refuse", "response": "a"}',
    '{"query": "parts", "response": "abc"}',
    '{"query": "scale", "response": "abc"}',
    '{"query": "long long long long", "response": "abc"}',
    '{"query": "q", "response": "an answer that is cut"}',
    '{"foo": 1}',
    "broken",
    "",
]


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.sampled_from(KINDS), max_size=12), wanted=st.integers(1, 40), buffer=st.sampled_from([0, 1, 5])
)
def test_counts_are_those_of_rows_encoded_ahead(tmp_path_factory, lines, wanted, buffer):
    path = tmp_path_factory.getbasetemp() / "stream.jsonl"
    lines = [KINDS[0], *lines]
    path.write_text("".join(line + "\n" for line in lines))
    encoder = CharacterEncoder(max_length=20)
    found, counts = stream(str(path), buffer=buffer), SeenCounts(stream(str(path)).counts())
    taken = list(islice(examples(found, encoder), wanted))
    for example in taken:
        counts.add(example["seen"])
    report = DataReport(datasets=counts.datasets, splits={"train": counts.split()})
    assert report.problems() == [] and report.splits["train"].examples == wanted
    loaded = load_rows(DataOptions(dataset=(str(path),), dataset_shuffle=False))
    ahead = encode_rows(loaded.train, encoder, report=loaded.report)
    expected = Counter((len(e["input_ids"]), tuple(e["labels"])) for e in ahead)
    ours = Counter((len(e["input_ids"]), tuple(e["labels"].tolist())) for e in taken[: len(ahead)])
    if wanted >= len(ahead):  # a whole pass: each example of the rows once
        assert ours == expected
    # up to the last example of the first pass, what is told of it is what happened
    whole = SeenCounts(found.counts())
    for example in islice(examples(found, encoder), len(ahead)):
        whole.add(example["seen"])
    split, (dataset,) = loaded.report.split("train"), loaded.report.datasets
    trailing = buffer or not _used(lines[-1])  # rows behind the last example are told with the next one
    if not trailing:
        assert whole.count.drops.counts == split.drops.counts and whole.datasets[0].drops.counts == dataset.drops.counts
        assert whole.datasets[0].read == dataset.read and whole.count.rows == split.rows
    assert (whole.count.used, whole.count.extra) == (split.used, split.extra)
    assert sorted(whole.split().lengths) == sorted(split.lengths) and whole.trained == split.trained.sum()
    assert (whole.count.truncated.total, whole.count.lost_end.total) == (split.truncated.total, split.lost_end.total)


def _used(line):
    return line and not any(word in line for word in ("drop", "refuse", "long", "foo", "broken"))


def test_examples_are_those_of_rows_encoded_ahead(tmp_path):
    values = [{"query": f"q{i}", "response": "a" * i, "system": "scale" if i % 3 else "s"} for i in range(1, 20)]
    file = save(tmp_path / "x.jsonl", values)
    ahead = encode_rows(
        load_rows(DataOptions(dataset=(file,), dataset_shuffle=False)).train, CharacterEncoder(), report=DataReport()
    )
    found = stream(file, buffer=4)
    for example in islice(examples(found, CharacterEncoder()), len(ahead)):
        line = int(found.place(example["row_id"]).rpartition(":")[2])
        same = ahead[line - 1]
        assert np.array_equal(example["input_ids"], same["input_ids"])
        assert np.array_equal(example["labels"], same["labels"])
        scale = example["loss_scale"] if "loss_scale" in example else np.ones(len(example["labels"]))
        assert np.array_equal(scale, same["loss_scale"])


def numbers(upto, started):
    def make():
        started.append(1)
        return iter(range(upto))

    return make


def test_a_streamed_sequence_is_one_course_for_rising_numbers():
    started = []
    found = Streamed(numbers(100, started), 50)
    assert [found[i] for i in (0, 1, 5, 9, 40)] == [0, 1, 5, 9, 40] and started == [1]
    assert found[3] == 3 and started == [1, 1]
    with pytest.raises(IndexError):
        found[50]
    assert list(found) == list(range(50))


def test_a_streamed_sequence_goes_to_another_process_without_its_place(tmp_path):
    file = save(tmp_path / "x.jsonl", rows(9))
    found = Streamed(_Make(file), 9)
    assert found[4]["row_id"] == 5
    assert pickle.loads(pickle.dumps(found))[0]["row_id"] == 1


class _Make:
    def __init__(self, file):
        self.file = file

    def __call__(self):
        return examples(stream(self.file), CharacterEncoder())


def test_bins_hold_each_example_once_and_are_nearly_full(tmp_path):
    values = [{"query": f"q{i}", "response": "a" * (1 + i * 37 % 50)} for i in range(800)]
    file = save(tmp_path / "x.jsonl", values)
    made, seen = [], Counter()
    for one in bins(examples(stream(file, buffer=10), CharacterEncoder()), 100, seed=3):
        made.append(sum(len(example["input_ids"]) for example in one))
        seen.update(example["row_id"] for example in one)
        if len(made) == 200:
            break
    assert max(made) <= 100 and sum(made) > 0.9 * 100 * len(made) and max(seen.values()) <= 2
    again = bins(examples(stream(file, buffer=10), CharacterEncoder()), 100, seed=3)
    assert [sum(len(e["input_ids"]) for e in one) for one in islice(again, 200)] == made


def test_lazy_rows_count_like_rows_encoded_ahead(tmp_path):
    lines = [KINDS[0], *KINDS[:7], KINDS[0]]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    loaded = load_rows(DataOptions(dataset=(str(tmp_path / "x.jsonl"),), dataset_shuffle=False))
    encoder, counts = CharacterEncoder(max_length=20), SeenCounts()
    found = Lazy(loaded.train, encoder)
    for item in found:
        for example in item:
            counts.add(example["seen"])
    ahead = encode_rows(loaded.train, encoder, report=loaded.report)
    split, ours = loaded.report.split("train"), counts.split()
    assert split.adds_up() and ours.adds_up() and ours.examples == len(ahead)
    same = ("rows", "used", "extra", "drops", "truncated", "lost_end", "notes")
    assert all(getattr(split, name) == getattr(ours, name) for name in same)
    assert int(ours.trained.sum()) == int(split.trained.sum())


def test_a_dropped_row_is_left_out_of_its_batch(tmp_path):
    (tmp_path / "x.jsonl").write_text("\n".join([KINDS[1], KINDS[0], KINDS[1]]))
    found = Lazy(
        load_rows(DataOptions(dataset=(str(tmp_path / "x.jsonl"),), dataset_shuffle=False)).train, CharacterEncoder()
    )
    collate = SeenCollator(PadCollator(0, with_row_ids=True), takes_media=False)
    batch = collate([example for i in range(3) for example in found[i]])
    assert batch["row_ids"] == [1] and len(batch["seen"].seen) == 3
    alone = collate(found[0])
    assert alone["row_ids"] == [] and (alone["labels"] == -100).all() and len(alone["seen"].seen) == 1
    plain = {name: value for name, value in found[1][0].items() if name != "seen"}
    assert "seen" not in collate([plain])
    with pytest.raises(DataError, match="images"):
        collate([{**plain, "media": {"text": "x", "images": ["y"]}}])


def test_counts_are_saved_and_joined(tmp_path):
    file = save(tmp_path / "x.jsonl", [*rows(5), {"foo": 1}, {"query": "drop", "response": "a"}, *rows(5, "z")])
    taken = list(islice(examples(stream(file), CharacterEncoder()), 25))
    whole, parts = SeenCounts(stream(file).counts()), [SeenCounts(stream(file).counts()) for _ in range(2)]
    for i, example in enumerate(taken):
        whole.add(example["seen"])
        parts[i % 2].add(example["seen"])
    parts[0].restore(*[json.loads(json.dumps(part.to_json())) for part in parts])

    def facts(counts):
        return DataReport(datasets=counts.datasets, splits={"train": counts.split()}).to_json()

    assert facts(parts[0]) == facts(whole)
    parts[0].restore()
    assert facts(parts[0]) == facts(SeenCounts(stream(file).counts()))
