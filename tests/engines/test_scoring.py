"""Log-likelihoods by trees of tokens against plain forward passes, one sequence at a time."""

import random

import pytest
import torch

from swift.engines.scoring import LogLikelihoods, common_length
from tests import tiny

FAMILIES = {
    "llama": ({}, True),
    "qwen3_moe": ({}, True),
    "gemma3_text": ({"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}, True),
    "mistral": ({"sliding_window": 8}, True),
    "gpt2": ({"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}, True),
    "bloom": ({"n_layer": 2, "n_head": 4}, False),  # no positions to place a branch at
    "llama4_text": ({"attention_chunk_size": 16}, False),  # a mask that we don't write
}


def questions(shared: int = 70, count: int = 8) -> list[tuple[list[int], list[int]]]:
    """Questions with four options each; half of them begin with the same `shared` tokens."""
    rng = random.Random(0)

    def ids(n):
        return [rng.randrange(7, 512) for _ in range(n)]

    beginning, pairs = ids(shared), []
    for number in range(count):
        context = (beginning if number % 2 else []) + ids(rng.randrange(1, 30))
        pairs += [(context, ids(rng.randrange(1, 6))) for _ in range(4)]
    return pairs


def plain(model, context, continuation):
    with torch.no_grad():
        logprobs = model(torch.tensor([context + continuation])).logits[0].log_softmax(-1)
    rows = [logprobs[len(context) - 1 + i] for i in range(len(continuation))]
    return sum(float(row[t]) for row, t in zip(rows, continuation, strict=True)), all(
        int(row.argmax()) == t for row, t in zip(rows, continuation, strict=True)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_plain_passes(family):
    changes, as_trees = FAMILIES[family]
    model, pairs = tiny.model(family, **changes), questions()
    scorer = LogLikelihoods(model, tree_tokens=100)
    scores = dict(scorer.score(pairs))
    assert scorer.as_trees is as_trees and sorted(scores) == list(range(len(pairs)))
    for index, pair in enumerate(pairs):
        logprob, greedy = plain(model, *pair)
        assert scores[index].logprob == pytest.approx(logprob, abs=1e-4)
        assert scores[index].greedy is greedy


def test_every_distinct_token_is_computed_once_and_the_head_runs_where_it_is_asked():
    model, pairs = tiny.model(), questions(count=4)
    rows = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: rows.append(output.shape[1]))
    scorer = LogLikelihoods(model, tree_tokens=10_000)
    scorer._checked = True  # no plain passes beside it
    dict(scorer.score(pairs))
    beginnings = {tuple((c + k)[:-1][: i + 1]) for c, k in pairs for i in range(len(c + k) - 1)}
    assert scorer.tokens == len(beginnings)
    predicted = {tuple((c + k)[: len(c) + i]) for c, k in pairs for i in range(len(k))}
    assert rows == [len(predicted)]


def test_one_token_options_cost_no_token_of_their_own():
    scorer = LogLikelihoods(tiny.model(), tree_tokens=500)
    scorer._checked = True
    dict(scorer.score([([9, 8, 7], [letter]) for letter in (20, 21, 22, 23)]))
    assert scorer.tokens == 3


def test_a_greedy_continuation_is_told():
    model = tiny.model()
    context = [10, 11, 12]
    with torch.no_grad():
        best = int(model(torch.tensor([context])).logits[0, -1].argmax())
    scores = dict(LogLikelihoods(model).score([(context, [best]), (context, [best + 1])]))
    assert scores[0].greedy and not scores[1].greedy and scores[0].logprob > scores[1].logprob


def test_of_a_long_sequence_the_end_is_kept():
    model = tiny.model()
    context, continuation = list(range(10, 60)), [70, 71]
    scorer = LogLikelihoods(model, max_length=20)
    score = dict(scorer.score([(context, continuation)]))[0]
    assert score.logprob == pytest.approx(plain(model, context[-19:], continuation)[0], abs=1e-4)
    assert scorer.truncated == 1


def test_a_model_that_disagrees_is_scored_the_plain_way(caplog):
    model = tiny.model()
    forward = model.forward

    def ignores_masks(*args, attention_mask=None, **kwargs):
        return forward(*args, **kwargs)

    ignores_masks.__signature__ = __import__("inspect").signature(forward)
    model.forward = ignores_masks
    pairs = questions(count=2)
    scorer = LogLikelihoods(model)
    scores = dict(scorer.score(pairs))
    assert not scorer.as_trees and "plain way" in caplog.text
    for index, pair in enumerate(pairs):
        assert scores[index].logprob == pytest.approx(plain(model, *pair)[0], abs=1e-4)


def test_common_length():
    rng = random.Random(1)
    for _ in range(200):
        one = [rng.randrange(2) for _ in range(rng.randrange(9))]
        other = [rng.randrange(2) for _ in range(rng.randrange(9))]
        expected = 0
        while expected < min(len(one), len(other)) and one[expected] == other[expected]:
            expected += 1
        assert common_length(one, other) == expected
