"""The pt engine against plain transformers: every greedy answer is `generate`'s, whatever runs beside it; nothing
harms its neighbour.
"""

import asyncio
import threading

import pytest
import torch

from swift.engines.protocol import (
    EngineError,
    EngineUnavailable,
    GenerationRequest,
    PromptTooLong,
    RequestError,
    Sampling,
    generate,
    generate_all,
    stream,
)
from swift.engines.pt import PtEngine
from tests import tiny

FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "mistral": {"sliding_window": 8},
    "qwen3_next": {
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mamba": {"state_size": 8},  # recurrent only, its cache has another name
    "openai-gpt": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},  # no cache: `generate` itself
}
PROMPT_LENGTHS = (3, 17, 9, 40, 1, 25, 6, 33, 12, 70)
ANSWER_LENGTHS = (20, 3, 30, 10, 25, 7, 1, 15, 40, 12)


def prompts_of(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(7, 512, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


def greedy(prompt, length):
    return GenerationRequest(prompt_ids=prompt, sampling=Sampling(max_new_tokens=length, temperature=0))


def reference(model, prompt, length, **settings):
    output = model.generate(
        torch.tensor([prompt]), max_new_tokens=length, pad_token_id=0, **{"do_sample": False, **settings}
    )
    return output[0, len(prompt) :].tolist()


def endless(family, **changes):
    """A tiny model that no token ends, so that answers are as long as they are asked to be."""
    model = tiny.model(family, eos_token_id=None, **{**FAMILIES.get(family, {}), **changes})
    model.generation_config.eos_token_id = None
    return model


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def llama():
    return endless("llama")


@pytest.fixture
def engine(llama, tokenizer):
    engine = PtEngine(llama, tokenizer, max_batch_size=4)
    yield engine
    engine.close()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rows", [1, 4, 16])
def test_greedy_answers_are_those_of_generate(family, rows, tokenizer):
    model = endless(family)
    wanted = [reference(model, p, n) for p, n in zip(prompts_of(), ANSWER_LENGTHS, strict=True)]
    assert len(set(sum(wanted, []))) > 20, "the random model must say more than a few tokens for this to mean anything"
    engine = PtEngine(model, tokenizer, max_batch_size=rows)
    try:
        results = list(generate_all(engine, [greedy(p, n) for p, n in zip(prompts_of(), ANSWER_LENGTHS, strict=True)]))
    finally:
        engine.close()
    assert [result.error for result in results] == [None] * len(results)
    assert [list(result.token_ids) for result in results] == wanted
    assert {result.finish_reason for result in results} == {"length"}


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_long_prompt_computed_in_chunks_is_the_same_prompt(family, tokenizer, monkeypatch):
    monkeypatch.setattr("swift.engines.pt.PREFILL_CHUNK", 16)
    model = endless(family)
    engine = PtEngine(model, tokenizer, max_batch_size=4)
    try:
        results = list(generate_all(engine, [greedy(p, 12) for p in prompts_of(2)]))
    finally:
        engine.close()
    assert [list(r.token_ids) for r in results] == [reference(model, p, 12) for p in prompts_of(2)]


def test_requests_that_come_while_others_run_join_them(engine, llama):
    """Ten threads, each starting when the one before has its third token."""
    prompts, answers, third = prompts_of(), {}, [threading.Event() for _ in PROMPT_LENGTHS]
    third[0].set()

    def ask(i):
        third[i].wait(30)
        got = []
        for delta in stream(engine, greedy(prompts[i], 25)):
            got += delta.token_ids
            if len(got) == 3 and i + 1 < len(third):
                third[i + 1].set()
        answers[i] = got

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answers[i] for i in range(len(prompts))] == [reference(llama, p, 25) for p in prompts]


def test_sampling_with_a_seed_is_the_same_alone_and_in_company(engine):
    prompts = prompts_of(3)

    def sampled(prompt, seed):
        return GenerationRequest(
            prompt_ids=prompt, sampling=Sampling(max_new_tokens=15, temperature=0.9, top_p=0.95, top_k=50, seed=seed)
        )

    alone = [generate(engine, sampled(p, i)).token_ids for i, p in enumerate(prompts)]
    together = [r.token_ids for r in generate_all(engine, [sampled(p, i) for i, p in enumerate(prompts)])]
    reversed_ = [
        r.token_ids for r in generate_all(engine, [sampled(p, i) for i, p in reversed(list(enumerate(prompts)))])
    ]
    assert alone == together == reversed_[::-1]
    assert generate(engine, sampled(prompts[1], 1)).token_ids != generate(engine, sampled(prompts[1], 2)).token_ids


def test_repetition_penalty_and_end_tokens_as_in_generate(engine, llama):
    prompt = prompts_of()[3]
    request = GenerationRequest(
        prompt_ids=prompt, sampling=Sampling(max_new_tokens=20, temperature=0, repetition_penalty=1.3)
    )
    assert list(generate(engine, request).token_ids) == reference(llama, prompt, 20, repetition_penalty=1.3)
    plain = reference(llama, prompt, 20)
    end = plain[7]
    request = GenerationRequest(
        prompt_ids=prompt, sampling=Sampling(max_new_tokens=20, temperature=0, stop_token_ids=(end,))
    )
    result = generate(engine, request)
    assert list(result.token_ids) == reference(llama, prompt, 20, eos_token_id=end)
    assert result.finish_reason == "stop"


def asking(prompt, **sampling):
    return GenerationRequest(
        prompt_ids=prompt, sampling=Sampling(**{"max_new_tokens": 20, "temperature": 0, **sampling})
    )


def test_bias_and_least_length_as_in_generate(engine, llama):
    prompt = prompts_of()[3]
    plain = reference(llama, prompt, 20)
    bias = {plain[0]: -100.0, plain[4]: 3.5, 9: 2.0}
    wanted = reference(llama, prompt, 20, sequence_bias={(i,): b for i, b in bias.items()})
    assert list(generate(engine, asking(prompt, logit_bias=bias)).token_ids) == wanted != plain
    ends = (plain[3], plain[7])
    wanted = reference(llama, prompt, 20, eos_token_id=list(ends), min_new_tokens=6)
    assert list(generate(engine, asking(prompt, stop_token_ids=ends, min_new_tokens=6)).token_ids) == wanted
    assert len(wanted) >= 6


def test_presence_and_frequency_penalties_count_the_answer_alone(engine, llama):
    """The OpenAI API's formula, step by step on logits of plain forward passes."""
    prompt = prompts_of()[2]
    ids, counts = list(prompt), torch.zeros(512)
    for _ in range(12):
        with torch.no_grad():
            logits = llama(torch.tensor([ids])).logits[0, -1]
        token = int((logits - 1.5 * counts - 0.7 * (counts > 0)).argmax())
        counts[token] += 1
        ids.append(token)
    answer = generate(engine, asking(prompt, max_new_tokens=12, frequency_penalty=1.5, presence_penalty=0.7))
    assert list(answer.token_ids) == ids[len(prompt) :] != reference(llama, prompt, 12)


@pytest.mark.parametrize("chunk", [512, 7])
def test_prompt_logprobs_are_those_of_a_forward_pass(llama, tokenizer, monkeypatch, chunk):
    monkeypatch.setattr("swift.engines.pt.PREFILL_CHUNK", chunk)
    engine = PtEngine(llama, tokenizer, max_batch_size=4)
    requests = [
        asking(p, max_new_tokens=n, prompt_logprobs=2) for p, n in zip(prompts_of(), [0, 1, 2, 0, 1] * 2, strict=True)
    ]
    try:
        results = list(generate_all(engine, requests))
    finally:
        engine.close()
    for prompt, request, result in zip(prompts_of(), requests, results, strict=True):
        with torch.no_grad():
            table = llama(torch.tensor([prompt])).logits[0].log_softmax(-1)
        assert result.prompt_logprobs[0] is None
        found = result.prompt_logprobs[1:]
        assert [p.token_id for p in found] == prompt[1:]
        assert [p.logprob for p in found] == pytest.approx(
            [float(row[i]) for row, i in zip(table, prompt[1:], strict=False)], abs=1e-4
        )
        assert [[i for i, _, _ in p.top] for p in found] == table[:-1].topk(2).indices.tolist()
        assert (len(result.token_ids), result.finish_reason) == (request.sampling.max_new_tokens, "length")


def test_work_in_the_models_thread_between_steps(engine, llama):
    running = engine.submit(greedy(prompts_of()[0], 200))
    next(running)
    assert engine.in_model_thread(lambda model: (model is llama, threading.current_thread().name)).result(20) == (
        True,
        "swift-pt-engine",
    )
    with pytest.raises(ZeroDivisionError):
        engine.in_model_thread(lambda model: 1 / 0).result(20)
    assert sum(len(delta.token_ids) for delta in running) == 199


def test_beam_search_is_that_of_generate(engine, llama):
    for prompt in prompts_of()[:3]:
        request = GenerationRequest(prompt_ids=prompt, sampling=Sampling(max_new_tokens=12, temperature=0, num_beams=3))
        assert list(generate(engine, request).token_ids) == reference(llama, prompt, 12, num_beams=3)


def test_streamed_text_is_the_final_text_and_stop_words_are_not_in_it(engine, tokenizer):
    prompt = prompts_of()[0]
    deltas = list(stream(engine, greedy(prompt, 60)))
    text = "".join(delta.text for delta in deltas)
    whole = generate(engine, greedy(prompt, 60))
    assert text == whole.text == tokenizer.decode(list(whole.token_ids), clean_up_tokenization_spaces=False)
    assert [d.finish_reason for d in deltas[:-1]] == [None] * 59
    word = text[len(text) // 2 :][:3]
    stopped = generate(
        engine, GenerationRequest(prompt_ids=prompt, sampling=Sampling(max_new_tokens=60, temperature=0, stop=(word,)))
    )
    assert stopped.text == text[: text.index(word)]
    assert (stopped.finish_reason, stopped.stop_text, whole.stop_text) == ("stop", word, None)


def test_logprobs_are_those_of_a_forward_pass(engine, llama):
    prompt = prompts_of()[1]
    request = GenerationRequest(
        prompt_ids=prompt, sampling=Sampling(max_new_tokens=8, temperature=0, logprobs=True, top_logprobs=3)
    )
    result = generate(engine, request)
    ids = torch.tensor([prompt + list(result.token_ids)])
    with torch.no_grad():
        table = llama(ids).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]
    assert [p.token_id for p in result.logprobs] == list(result.token_ids)
    assert [p.logprob for p in result.logprobs] == pytest.approx(
        [float(row[i]) for row, i in zip(table, result.token_ids, strict=True)], abs=1e-4
    )
    assert [[i for i, _, _ in p.top] for p in result.logprobs] == table.topk(3).indices.tolist()


def test_a_failing_request_fails_alone(engine, llama):
    """Each says what is wrong with it, and no neighbour notices."""
    good = prompts_of()
    requests = [greedy(p, 10) for p in good]
    requests[2:2] = [
        greedy([5, 99999], 10),
        greedy([], 10),
        GenerationRequest(prompt_ids=[1], sampling=Sampling(top_p=7)),
    ]
    requests.append(greedy([4] * 600, 10))
    results = list(generate_all(engine, requests))
    assert [type(r.error) for r in results[2:5]] == [RequestError] * 3
    assert [r.error.param for r in results[2:5]] == ["prompt_ids", "prompt", "top_p"]
    assert isinstance(results[-1].error, PromptTooLong)
    assert (results[-1].error.tokens, results[-1].error.limit) == (600, 511)
    assert [list(r.token_ids) for r in results[:2] + results[5:-1]] == [reference(llama, p, 10) for p in good]
    assert list(generate(engine, greedy(good[0], 5)).token_ids) == reference(llama, good[0], 5)
    assert engine.stats().running == engine.stats().waiting == 0


def test_a_model_that_fails_once_in_a_batch_loses_no_answer(llama, tokenizer, monkeypatch):
    """The rows of the failed step are computed again, from the tokens they had."""
    from swift.engines.batch import CausalModel

    plain, calls = CausalModel.logits, []

    def failing(self, ids, *rest, **named):
        calls.append(ids.shape)
        if len(calls) == 6 and ids.shape[0] > 1:
            raise RuntimeError("out of memory, say")
        return plain(self, ids, *rest, **named)

    monkeypatch.setattr(CausalModel, "logits", failing)
    engine = PtEngine(llama, tokenizer, max_batch_size=4)
    try:
        results = list(generate_all(engine, [greedy(p, 12) for p in prompts_of()[:4]]))
    finally:
        engine.close()
    assert [list(r.token_ids) for r in results] == [reference(llama, p, 12) for p in prompts_of()[:4]]


def test_cancelling_ends_the_stream_and_frees_the_row(engine):
    deltas = engine.submit(greedy(prompts_of()[0], 400))
    got = [next(deltas) for _ in range(3)]
    deltas.cancel()
    rest = list(deltas)
    assert [d.finish_reason for d in (*got, *rest)][-1] == "cancelled"
    assert len(rest) < 50
    assert list(generate(engine, greedy([9, 8], 3)).token_ids)
    assert (engine.stats().running, engine.stats().cancelled) == (0, 1)


def test_an_event_loop_reads_many_answers_at_once(engine, llama):
    async def ask(prompt):
        return [i async for delta in engine.submit(greedy(prompt, 9)) for i in delta.token_ids]

    async def everything():
        return await asyncio.gather(*(ask(p) for p in prompts_of()))

    assert asyncio.run(everything()) == [reference(llama, p, 9) for p in prompts_of()]


def test_closing_ends_everything_that_runs(llama, tokenizer):
    engine = PtEngine(llama, tokenizer, max_batch_size=2)
    streams = [engine.submit(greedy(p, 400)) for p in prompts_of()[:5]]
    next(streams[0])
    engine.close()
    assert [list(s)[-1].finish_reason for s in streams] == ["cancelled"] * 5
    with pytest.raises(EngineUnavailable, match="closed"):
        generate(engine, greedy([1], 1))


def test_a_loop_that_dies_goes_on_and_says_so(engine, llama, monkeypatch, caplog):
    """An error outside of any request's computation: all are answered in the end, and the count tells."""
    plain, calls = engine._scheduler._admit, []

    def dying():
        calls.append(None)
        plain()
        if len(calls) in (2, 5):
            raise SystemExit("as of a signal")

    monkeypatch.setattr(engine._scheduler, "_admit", dying)
    results = list(generate_all(engine, [greedy(p, 12) for p in prompts_of()[:6]]))
    stats = engine.stats()
    assert stats.alive and stats.restarts == 2 and "as of a signal" in stats.last_death
    assert [list(r.token_ids) for r in results] == [reference(llama, p, 12) for p in prompts_of()[:6]]
    assert "died" in caplog.text
    assert list(generate(engine, greedy([1, 2], 3)).token_ids) == reference(llama, [1, 2], 3)


def test_a_loop_that_always_dies_fails_its_requests(engine, monkeypatch):
    def dying():
        raise RuntimeError("broken")

    monkeypatch.setattr(engine._scheduler, "_admit", dying)
    with pytest.raises(EngineError, match="died.*broken"):
        generate(engine, greedy([1, 2], 3))
    monkeypatch.undo()
    assert generate(engine, greedy([1, 2], 3)).finish_reason == "length"


def test_a_hanging_model_is_seen_in_the_stats(engine, monkeypatch):
    release = threading.Event()
    held = engine.in_model_thread(lambda model: release.wait(10))
    engine.submit(greedy([1, 2], 2))
    threading.Event().wait(0.15)
    assert engine.stats().silent > 0.1 and engine.stats().alive
    release.set()
    held.result(10)
    generate(engine, greedy([1], 1))
    assert engine.stats().silent < 0.1


def test_tokens_are_counted_while_they_come_and_once(engine):
    before = engine.stats().generated_tokens
    with engine.submit(greedy([9, 8, 7], 40)) as deltas:
        seen = [before]
        for delta in deltas:
            seen.append(engine.stats().generated_tokens)
            if delta.finish_reason is None:
                assert seen[-1] > before
    assert seen == sorted(seen)
    end = engine.stats()
    assert end.generated_tokens - before == delta.usage.completion_tokens
