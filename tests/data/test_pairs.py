"""Rows that set texts against each other, in the columns of each tool that writes them."""

from __future__ import annotations

from collections import Counter

import pytest

from swift.data.formats import canonical_row
from swift.data.rows import RowError

USER = [{"role": "user", "content": "q"}]
YES, NO = [{"role": "user", "content": "yes"}], [{"role": "user", "content": "no"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": USER, "positive_messages": [YES], "negative_messages": [NO, NO]},
        {"anchor": "q", "positive": "yes", "negative": ["no", "no"]},
        {"query": "q", "pos": ["yes"], "neg": ["no", "no"]},
        {"query": "q", "positive_messages": YES, "negatives": '["no", "no"]'},
    ],
)
def test_every_form_gives_the_same_row(row):
    found = canonical_row(row).data
    assert found == {"messages": USER, "positive_messages": [YES], "negative_messages": [NO, NO]}


def test_a_scored_pair_keeps_its_score():
    found = canonical_row({"sentence1": "q", "sentence2": "yes", "score": 0.25}).data
    assert found == {"messages": USER, "positive_messages": [YES], "label": 0.25}
    assert canonical_row({"sentence1": "q", "sentence2": "yes", "score": "0.25"}).data["label"] == 0.25


def test_a_row_of_another_kind_keeps_its_columns():
    notes: Counter[str] = Counter()
    row = {"query": "a", "response": "b", "score": 3, "anchor": "c"}
    assert [m["content"] for m in canonical_row(row, notes=notes).data["messages"]] == ["a", "b"]


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"query": "q", "positive": 5}, "no text and no conversation"),
        ({"query": "q", "positive": ["yes", ""]}, "empty text in positive"),
        ({"query": "q", "positive": "see <image>", "images": ["a.png"]}, "media"),
    ],
)
def test_what_is_no_candidate_is_refused(row, reason):
    with pytest.raises(RowError, match=reason):
        canonical_row(row)
