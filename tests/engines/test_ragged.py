"""Rows computed side by side without padding: which models, shared beginnings, little memory, failures."""

from types import SimpleNamespace

import pytest
import torch

from swift.engines.protocol import GenerationRequest, Sampling, generate, generate_all
from swift.engines.pt import PtEngine
from swift.engines.ragged import Beginnings, RaggedModel, Rows
from swift.engines.ragged_attention import RaggedCache, Strip
from tests import tiny
from tests.engines.test_pt import ANSWER_LENGTHS, FAMILIES, endless, greedy, prompts_of, reference

SIDE_BY_SIDE = ("llama", "qwen2", "qwen3", "qwen3_moe", "gemma3_text", "mistral", "gpt2")
MORE = {
    "gemma2": {"sliding_window": 8, "attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 16},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "phi3": {},
    "cohere2": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_oss": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"], "num_local_experts": 4},
    "deepseek_v3": {  # latent attention: what its cache gets isn't what its attention sees
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "num_key_value_heads": 4,
        "q_lora_rank": 24,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "head_dim": 8,
        "v_head_dim": 10,
    },
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture(autouse=True)
def nothing_is_computed_another_way(caplog):
    yield
    assert not [r for r in caplog.get_records("call") if "failed" in r.getMessage()]


@pytest.fixture(scope="module")
def llama():
    return endless("llama")


@pytest.mark.parametrize("family", SIDE_BY_SIDE)
def test_models_whose_answers_stay_the_same_are_used(family):
    assert RaggedModel(endless(family)).why_not is None


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(SIDE_BY_SIDE)))
def test_other_models_are_not_and_say_why(family):
    assert RaggedModel(endless(family)).why_not


@pytest.mark.parametrize("family", MORE)
def test_more_families_answer_as_generate_does(family, tokenizer):
    model = endless(family, **MORE[family])
    assert RaggedModel(model).why_not is None
    wanted = [reference(model, p, n) for p, n in zip(prompts_of(), ANSWER_LENGTHS, strict=True)]
    engine = PtEngine(model, tokenizer, max_batch_size=6)
    try:
        results = list(generate_all(engine, [greedy(p, n) for p, n in zip(prompts_of(), ANSWER_LENGTHS, strict=True)]))
    finally:
        engine.close()
    assert [list(r.token_ids) for r in results] == wanted


def test_a_model_that_looks_at_padding_differently_is_refused(llama, monkeypatch):
    """The check computes: attention that is a little off is found."""
    plain = RaggedCache.attend
    monkeypatch.setattr(RaggedCache, "attend", lambda *a: plain(*a) * 1.1)
    found = RaggedModel(llama)
    assert "nats" in found.why_not and "something else" in found.why_not_lean


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("chunk", [5, 512])
def test_a_common_beginning_is_computed_once_and_changes_nothing(family, chunk, tokenizer, monkeypatch):
    monkeypatch.setattr("swift.engines.pt.PREFILL_CHUNK", chunk)
    model = endless(family)
    system = prompts_of(5)[-1] + prompts_of(6)[3]  # 110 tokens
    prompts = [system + p for p in prompts_of(7)[:6]]
    engine = PtEngine(model, tokenizer, max_batch_size=4)
    try:
        results = list(generate_all(engine, [greedy(p, 10) for p in prompts]))
        again = generate(engine, greedy(prompts[0] + list(results[0].token_ids), 5))
        stats = engine.stats()
    finally:
        engine.close()
    assert stats.prefix_hits == len(prompts) and 110 <= stats.kept_tokens <= stats.kv_capacity // 16
    assert [list(r.token_ids) for r in results] == [reference(model, p, 10) for p in prompts]
    cached = [r.usage.cached_tokens for r in results]
    assert stats.cached_tokens == sum(cached) + again.usage.cached_tokens
    assert cached[0] == 0 and all(n >= len(system) for n in cached[1:])
    assert list(again.token_ids) == reference(model, prompts[0] + list(results[0].token_ids), 5)
    assert again.usage.cached_tokens == len(prompts[0]) + 9  # the last token of an answer was never computed


def test_a_conversation_in_bfloat16_goes_on_from_its_earlier_turns(tokenizer):
    """Keys and values that were float32 while their row ran are the model's again when another row begins with them."""
    model = endless("llama").bfloat16()
    engine = PtEngine(model, tokenizer, max_batch_size=2)
    try:
        talk = prompts_of()[-1]
        for turn in range(3):
            answer = generate(engine, greedy(talk, 6))
            assert answer.usage.cached_tokens == (len(talk) - 4 if turn else 0)  # all but the newest three and the last
            talk = talk + list(answer.token_ids) + [7, 8, 9]
    finally:
        engine.close()


def test_too_little_memory_for_all_makes_some_wait_and_loses_nothing(llama, tokenizer, monkeypatch):
    """Room for three small rows: later ones wait, growing ones push the newest out, which begins again."""
    monkeypatch.setattr("swift.engines.pt.kv_capacity", lambda model, context: 3 * 128)
    prompts = [p + p for p in prompts_of(8)[:5]]
    engine = PtEngine(llama, tokenizer, max_batch_size=8)
    try:
        results = list(generate_all(engine, [greedy(p, 130) for p in prompts]))
        stats = engine.stats()
    finally:
        engine.close()
    assert [list(r.token_ids) for r in results] == [reference(llama, p, 130) for p in prompts]
    assert (stats.kv_capacity, stats.finished) == (384, 5)


def test_nothing_is_held_when_nothing_runs(llama, tokenizer):
    engine = PtEngine(llama, tokenizer, max_batch_size=8)
    try:
        list(generate_all(engine, [greedy(p, 5) for p in prompts_of()]))
        engine.in_model_thread(lambda model: None).result(10)  # the step of the last answer is over
        assert engine.stats().kv_tokens == 0
    finally:
        engine.close()


def test_the_model_is_as_it_was_between_steps(llama):
    rows = Rows(RaggedModel(llama), 1000)
    assert llama.config._attn_implementation == "sdpa"
    assert rows.states == []


def test_a_short_prompt_is_not_held_up_by_a_long_one(llama, tokenizer, monkeypatch):
    monkeypatch.setattr("swift.engines.pt.PREFILL_CHUNK", 16)
    order = []
    long, short = [3] * 400, prompts_of()[0]
    engine = PtEngine(llama, tokenizer, max_batch_size=4)
    try:
        first = engine.submit(greedy(long, 1))
        second = engine.submit(greedy(short, 1))
        for name, stream in (("short", second), ("long", first)):
            list(stream)
            order.append((name, first.ended))
    finally:
        engine.close()
    assert order[0] == ("short", False)


def test_prompt_logprobs_are_computed_even_where_the_prompt_is_known(llama, tokenizer):
    prompt = prompts_of()[-1]
    engine = PtEngine(llama, tokenizer, max_batch_size=2)
    request = GenerationRequest(
        prompt_ids=prompt, sampling=Sampling(max_new_tokens=1, temperature=0, prompt_logprobs=0)
    )
    try:
        generate(engine, greedy(prompt, 3))
        result = generate(engine, request)
    finally:
        engine.close()
    with torch.no_grad():
        table = llama(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert [p.logprob for p in result.prompt_logprobs[1:]] == pytest.approx(
        [float(row[i]) for row, i in zip(table, prompt[1:], strict=False)], abs=1e-4
    )


def test_kept_beginnings_make_way_oldest_first():
    def asking(i, length=20):
        return SimpleNamespace(ids=[i] * length, adapter=None)

    def strip(length):
        made = Strip(length)
        made.done = length
        return made

    kept = Beginnings()
    for i in range(4):
        kept.put(asking(i), strip(20))
    assert kept.find(asking(0, 30))[1] == 20  # now the last used
    kept.put(asking(0, 25), strip(25))  # stands for the shorter one too
    kept.shrink(50)
    assert [kept.find(asking(i, 30))[1] for i in range(4)] == [25, 0, 0, 20]
    kept.shrink(0)
    assert kept.find(asking(0, 30)) == (None, 0)
