"""Packing loses nothing, leaks nothing, and is close to the best that is possible."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swift.chat import IGNORED
from swift.data import DataReport, PadCollator, Rows, encode_rows
from swift.data.pack import FlatCollator, PackedDataset, best_fit_bins
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


def test_a_flat_batch():
    pytest.importorskip("torch")
    encoded = encoded_rows()
    packed = PackedDataset(encoded, 64)
    assert packed.lengths.sum() == encoded.lengths.sum() and "27 examples" in packed.describe()
    batch = FlatCollator(flash=True, with_row_ids=True)([packed[0], packed[1]])
    assert len(batch["row_ids"]) == len(packed.bins[0]) + len(packed.bins[1])
    bounds = batch["cu_seq_lens_q"].tolist()
    assert bounds[-1] == batch["input_ids"].shape[1] == packed.lengths[:2].sum()
    for row_id, a, b in zip(batch["row_ids"], bounds, bounds[1:], strict=False):
        assert batch["input_ids"][0, a:b].tolist() == encoded[row_id]["input_ids"].tolist()
        assert batch["position_ids"][0, a:b].tolist() == list(range(b - a))
        assert batch["labels"][0, a] == IGNORED
        assert batch["labels"][0, a + 1 : b].tolist() == encoded[row_id]["labels"][1:].tolist()
    alone = FlatCollator()([encoded[0], encoded[1]])
    assert set(alone) == {"input_ids", "labels", "position_ids"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_loss_and_gradients_are_those_of_padded_batches(attention):
    torch = pytest.importorskip("torch")
    from tests.tiny import model

    encoded = encoded_rows()
    packed = PackedDataset(encoded, 96)
    results = []
    for batches, collate in (
        ([[encoded[i] for i in range(k, min(k + 4, len(encoded)))] for k in range(0, len(encoded), 4)], PadCollator(0)),
        ([[packed[i]] for i in range(len(packed))], FlatCollator()),
    ):
        net = model("qwen2")
        net.set_attn_implementation(attention)
        total, learned = 0.0, 0
        for examples in batches:
            batch = collate(examples)
            labels = batch.pop("labels")
            logits = net(**batch, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
            )
            loss.backward()
            total, learned = total + loss.item(), learned + int((labels[:, 1:] != IGNORED).sum())
        gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        results.append((total / learned, learned, gradient / learned))
    (loss_a, count_a, grad_a), (loss_b, count_b, grad_b) = results
    assert count_a == count_b and abs(loss_a - loss_b) < 1e-5
    assert torch.allclose(grad_a, grad_b, atol=1e-6)
