"""Packing loses nothing, leaks nothing, and is close to the best that is possible."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift.data import DataReport, PadCollator, Rows, encode_rows
from swift.data.pack import OpenBins, PackedDataset, best_fit_bins
from swift.errors import DataError
from tests.data.fakes import CharacterEncoder


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 64), max_size=80), seed=st.integers(0, 9))
def test_bins_hold_everything_once_and_no_more_than_fits(lengths, seed):
    bins = best_fit_bins(lengths, 64, seed)
    assert sorted(i for group in bins for i in group) == list(range(len(lengths)))
    sums = [sum(lengths[i] for i in group) for group in bins]
    assert all(0 < s <= 64 for s in sums)
    # best-fit decreasing needs at most 11/9 of the least possible number of bins, plus 6/9
    assert len(bins) <= 11 / 9 * best_possible(lengths, 64) + 6 / 9 + 1e-9 or len(lengths) > 12
    assert best_fit_bins(lengths, 64, seed) == bins


def best_possible(lengths, capacity):
    """The least number of bins, by trying all ways (few lengths only; a lower bound for more)."""
    if len(lengths) > 12:
        return math.ceil(sum(lengths) / capacity)
    ordered, best = sorted(lengths, reverse=True), len(lengths)

    def place(i, rooms):
        nonlocal best
        if len(rooms) >= best and i < len(ordered):
            return
        if i == len(ordered):
            best = min(best, len(rooms))
            return
        for j, room in enumerate(rooms):
            if room >= ordered[i]:
                place(i + 1, [*rooms[:j], room - ordered[i], *rooms[j + 1 :]])
        place(i + 1, [*rooms, capacity - ordered[i]])

    place(0, [])
    return best


def test_real_lengths_pack_tightly():
    lengths = np.random.RandomState(0).lognormal(5.3, 0.8, 5000).astype(int).clip(5, 1024)
    bins = best_fit_bins(lengths, 1024)
    assert len(bins) <= math.ceil(lengths.sum() / 1024) * 1.01
    assert best_fit_bins(lengths, 1024, 1) != bins


def test_what_does_not_fit_is_an_error():
    with pytest.raises(DataError, match="65 tokens"):
        best_fit_bins([3, 65], 64)


def encoded_rows(words=26, vocab=200):
    texts = [("q" * (1 + i % 7), "ab" * (1 + (i * 5) % 13)) for i in range(words)]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in texts] + [
        {"text": "plain text, learned from its first token on"}
    ]
    return encode_rows(Rows.of(rows), CharacterEncoder(), report=DataReport())


def test_bins_hold_every_example_and_open_into_padded_batches():
    pytest.importorskip("torch")
    encoded = encoded_rows()
    packed = PackedDataset(encoded, 64)
    assert packed.lengths.sum() == encoded.lengths.sum() and "27 examples" in packed.describe()
    batch = OpenBins(PadCollator(0, with_row_ids=True))([packed[0], packed[1]])
    rows = [*packed.bins[0], *packed.bins[1]]
    assert batch["row_ids"] == [int(encoded.row_ids[i]) for i in rows]
    for line, i in enumerate(rows):
        size = int(encoded.lengths[i])
        assert batch["input_ids"][line, :size].tolist() == encoded[i]["input_ids"].tolist()
        assert batch["attention_mask"][line].sum() == size
    alone = OpenBins(PadCollator(0))([encoded[0], encoded[1]])
    assert alone["input_ids"].shape[0] == 2
