"""Sampling against transformers' own logits processors, and the independence of rows."""

import pytest
import torch
from transformers import (
    GenerationConfig,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from swift.engines.protocol import RequestError, Sampling
from swift.engines.sampling import Sampler, SamplingRule, choose, exponentials, pick

VOCABULARY = 40


def logits(seed=0, rows=1, size=VOCABULARY):
    return 3 * torch.randn(rows, size, generator=torch.Generator().manual_seed(seed))


def reference(scores, prompt, rule):
    """The distribution of `generate`: processors in its order, then softmax."""
    ids = torch.tensor([prompt])
    steps = [RepetitionPenaltyLogitsProcessor(rule.repetition_penalty), TemperatureLogitsWarper(rule.temperature)]
    if rule.top_k:
        steps.append(TopKLogitsWarper(rule.top_k))
    if rule.top_p < 1:
        steps.append(TopPLogitsWarper(rule.top_p))
    if rule.min_p:
        steps.append(MinPLogitsWarper(rule.min_p))
    for step in steps:
        scores = step(ids, scores)
    return scores.softmax(-1)[0]


RULES = [
    SamplingRule(temperature=1.0),
    SamplingRule(temperature=0.6),
    SamplingRule(temperature=1.0, top_k=5),
    SamplingRule(temperature=1.3, top_p=0.8),
    SamplingRule(temperature=1.5, min_p=0.1),
    SamplingRule(temperature=0.9, top_k=7, top_p=0.7, min_p=0.02, repetition_penalty=1.4),
    SamplingRule(temperature=1.0, top_p=1e-6),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_distribution_is_that_of_generate(rule):
    scores, prompt, draws = logits(), [1, 5, 9], 4000
    expected = reference(scores.clone(), prompt, rule)
    counts = torch.zeros(VOCABULARY)
    for seed in range(draws):
        counts[pick(scores, [Sampler(rule, seed, prompt)])[0]] += 1
    assert counts[expected == 0].sum() == 0
    deviation = (counts / draws - expected).abs()
    assert (deviation <= 4.5 * (expected * (1 - expected) / draws).sqrt() + 1e-9).all()


@pytest.mark.parametrize("size", [500, 5000])
@pytest.mark.parametrize("top_p", [0.3, 0.99])
def test_the_nucleus_is_exact_for_large_flat_vocabularies(size, top_p):
    scores = 0.1 * logits(3, size=size)
    kept = set(
        torch.nonzero(reference(scores.clone(), [0], SamplingRule(temperature=1.0, top_p=top_p))).flatten().tolist()
    )
    samplers = [Sampler(SamplingRule(temperature=1.0, top_p=top_p), seed, [0]) for seed in range(300)]
    drawn = set(pick(scores.expand(300, -1), samplers))
    assert drawn <= kept
    assert len(drawn) > 50


def test_a_row_does_not_depend_on_the_rows_beside_it():
    rules = [*RULES, SamplingRule()]
    table = logits(1, len(rules))

    def run(order):
        samplers = {i: Sampler(rules[i], seed=i, prompt_ids=[2, 3]) for i in order}
        steps = [choose(table[order], [samplers[i] for i in order]) for _ in range(20)]
        return {row: [step[at].token_id for step in steps] for at, row in enumerate(order)}

    alone = {i: run([i])[i] for i in range(len(rules))}
    assert run(list(range(len(rules)))) == alone
    assert run(list(reversed(range(len(rules))))) == alone


def test_the_noise_is_exponential_and_independent_between_tokens_steps_and_seeds():
    samplers = [Sampler(SamplingRule(temperature=1.0), seed, []) for seed in range(8)]
    samplers[1].see(0)
    ids = torch.arange(60_000, dtype=torch.int32).expand(8, -1)
    noise = exponentials(ids, [sampler.noise_keys() for sampler in samplers]).double()
    assert (noise.mean(1) - 1).abs().max() < 0.02 and (noise.var(1) - 1).abs().max() < 0.05
    levels = torch.tensor([0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999], dtype=torch.float64)
    shares = (noise[:, :, None] < -torch.log1p(-levels)).double().mean(1)
    assert ((shares - levels).abs() <= 5 * (levels * (1 - levels) / 60_000).sqrt()).all()
    both = torch.corrcoef(torch.cat([noise, noise.roll(1, 1)]))
    assert (both - torch.eye(16)).abs().max() < 0.02


def test_temperature_zero_is_argmax_with_and_without_penalty():
    scores = logits(2)
    assert choose(scores, [Sampler(SamplingRule(), None, [])])[0].token_id == int(scores.argmax())
    best = int(scores.argmax())
    penalized = RepetitionPenaltyLogitsProcessor(5.0)(torch.tensor([[best]]), scores.clone())
    sampler = Sampler(SamplingRule(repetition_penalty=5.0), None, [best])
    assert choose(scores, [sampler])[0].token_id == int(penalized.argmax())


def test_logprobs_are_of_the_model_not_of_the_filters():
    scores = logits(4)
    rule = SamplingRule(temperature=0.5, top_k=3, logprobs=True, top_logprobs=4)
    choice = choose(scores, [Sampler(rule, 0, [])])[0]
    expected = scores[0].log_softmax(-1)
    assert choice.logprob == pytest.approx(float(expected[choice.token_id]))
    assert [i for i, _ in choice.top] == expected.argsort(descending=True)[:4].tolist()
    assert [p for _, p in choice.top] == pytest.approx(expected.sort(descending=True).values[:4].tolist())


def test_one_broken_row_leaves_the_others_alone():
    class Broken(Sampler):
        changes_logits = True

        def change(self, logits):
            raise ValueError("broken")

    table = logits(5, 2)
    first, second = choose(table, [Broken(SamplingRule(temperature=1.0), 0, []), Sampler(SamplingRule(), 0, [])])
    assert isinstance(first, ValueError)
    assert second.token_id == int(table[1].argmax())


def test_what_is_left_open_comes_from_the_model():
    greedy, sampling = GenerationConfig(), GenerationConfig(do_sample=True, temperature=0.6, top_k=20, top_p=0.95)
    assert SamplingRule.of(Sampling(), greedy) == SamplingRule()
    assert SamplingRule.of(Sampling(), sampling) == SamplingRule(temperature=0.6, top_k=20, top_p=0.95)
    assert SamplingRule.of(Sampling(temperature=0), sampling).temperature == 0
    assert SamplingRule.of(Sampling(top_p=0.5), greedy) == SamplingRule(temperature=1.0, top_p=0.5)
    assert SamplingRule.of(Sampling(temperature=1.2, top_k=0), sampling) == SamplingRule(1.2, 0, 0.95)


@pytest.mark.parametrize(
    "wrong",
    [
        Sampling(temperature=-1),
        Sampling(temperature=float("nan")),
        Sampling(top_p=0),
        Sampling(top_p=1.5),
        Sampling(min_p=2),
        Sampling(repetition_penalty=0),
        Sampling(top_logprobs=21),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(RequestError):
        SamplingRule.of(wrong, GenerationConfig())
