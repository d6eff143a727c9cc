"""The figures are those that one counts by hand; the three forms of the report show them."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swift.config.data import DataOptions
from swift.data import encode_rows, load_rows
from swift.data.report import DataReport, SplitCount
from tests.data.fakes import CharacterEncoder


@pytest.fixture
def report(tmp_path):
    rows = [{"query": "q", "response": "a" * n} for n in (1, 1, 5, 30, 200)]
    rows += [{"foo": "<b>"}, {"query": "q", "response": "refuse"}]
    file = tmp_path / "x.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{oops\n")
    loaded = load_rows(DataOptions(dataset=(str(file),), dataset_shuffle=False))
    encode_rows(loaded.train, CharacterEncoder(max_length=100), report=loaded.report)
    loaded.report.expect_steps(2, 2, 3)
    return loaded.report


def test_json(report):
    facts = json.loads(json.dumps(report.to_json()))
    assert (facts["rows_read"], facts["dropped"], facts["duplicates"]) == (8, 3, 1)
    assert set(facts["datasets"][0]["dropped_by_reason"]) == {"unknown columns", "broken JSON"}
    train = facts["train"]
    assert (train["rows"], train["used"], train["dropped"], train["truncated"], train["lost_end_token"]) == (
        6,
        5,
        1,
        1,
        1,
    )
    lengths = [4, 4, 8, 33, 100]
    assert train["tokens"] == sum(lengths) and train["trained_tokens"] == sum(lengths) - 5 * 2
    assert train["length"]["mean"] == pytest.approx(sum(lengths) / 5)
    assert (train["length"]["p0"], train["length"]["p50"], train["length"]["p100"]) == (4, 8, 100)
    assert facts["schedule"] == {"batches_per_epoch": 3, "steps_per_epoch": 2, "total_steps": 6}
    assert report.problems() == []


def test_text_and_html(report):
    text = report.to_text()
    for line in ("8 rows read, 3 dropped", "x.jsonl:6", "x.jsonl:8", "x.jsonl:7", "5 of 6 rows used", "3 batches"):
        assert line in text
    assert text.count("█") > 4
    page = report.to_html()
    assert "x.jsonl:6" in page and "has: foo" in page and "<script" not in page and page.count("<table>") > 3


def test_html_shows_text_as_text(tmp_path):
    file = tmp_path / "<i>.jsonl"
    file.write_text('{"query": "q", "response": "a"}\n{"<script>": 1}\n')
    report = load_rows(DataOptions(dataset=(str(file),))).report
    assert "<script>" not in report.to_html() and "&lt;script&gt;" in report.to_html()


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_histogram_and_percentiles(lengths):
    count = SplitCount("train", lengths=np.array(lengths))
    bins = count.histogram()
    assert sum(n for _, _, n in bins) == len(lengths) and len(bins) <= 10
    for low, high, n in bins:
        assert n == sum(low <= length < high for length in lengths)
    reference = {f"p{p}": np.percentile(lengths, p, method="inverted_cdf") for p in (0, 5, 25, 50, 75, 95, 99, 100)}
    assert count.percentiles() == reference


@given(
    examples=st.integers(1, 300),
    batch=st.integers(1, 9),
    accumulation=st.integers(1, 9),
    epochs=st.sampled_from([0.5, 1, 2.5, 3]),
)
def test_steps_are_those_of_transformers(examples, batch, accumulation, epochs):
    report = DataReport()
    report.split("train").lengths = np.ones(examples, np.int64)
    schedule = report.expect_steps(batch, accumulation, epochs)
    batches = len(range(0, examples, batch))
    updates = batches // accumulation + int(batches % accumulation > 0)  # as Trainer.set_initial_training_values counts
    assert (schedule.batches_per_epoch, schedule.total_steps) == (batches, math.ceil(epochs * max(updates, 1)))
