"""Fillers: whole shares for every process, no row twice, nothing learned from them."""

from __future__ import annotations

import pickle

import pytest

from swift.train.losses import IGNORED
from swift.train.shares import EpochOrder, Filled, Filler, WithoutFillers
from tests.train import support


@pytest.mark.parametrize("count", [1, 7, 8, 9])
@pytest.mark.parametrize("batch, processes", [(1, 2), (2, 2), (3, 4)])
def test_every_row_is_in_one_batch_and_all_processes_have_as_many(count, batch, processes):
    rows = support.encoded_rows(count)
    filled = Filled(rows, batch * processes)
    order = EpochOrder(count, 0, shuffle=True, places=len(filled))
    collate = WithoutFillers(support.collate)
    places = list(order)
    assert len(places) == len(order) == len(filled)
    batches = [places[i : i + batch] for i in range(0, len(places), batch)]
    assert len(batches) % processes == 0 and all(len(b) == batch for b in batches)
    made = [collate([filled[place] for place in b]) for b in batches]
    assert sorted(row for b in made for row in b["row_ids"]) == list(range(count))
    for b in made:
        assert b["row_ids"] or (b["labels"] == IGNORED).all()
        assert len(b["row_ids"]) in (0, len(b["input_ids"]))


def test_bins_are_filled_by_a_bin_without_labels():
    rows = support.encoded_rows(5)
    bins = [[rows[0], rows[1]], [rows[2]], [rows[3], rows[4]]]
    filled = pickle.loads(pickle.dumps(Filled(bins, 2)))
    assert filled[2] == bins[2]
    extra = filled[3]
    assert isinstance(extra, Filler) and set(extra.row[0]["labels"]) == {IGNORED}
    with pytest.raises(IndexError):
        filled[4]
