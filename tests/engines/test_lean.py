"""The lean forward pass computes what the model's own does, and isn't used where it would not."""

import pytest
import torch

from swift.engines import lean
from swift.engines.protocol import GenerationRequest, Sampling, generate_all
from swift.engines.pt import PtEngine
from swift.engines.ragged import RaggedModel
from tests import tiny
from tests.engines.test_pt import ANSWER_LENGTHS, endless, greedy, prompts_of, reference
from tests.engines.test_ragged import MORE

KNOWN = ("llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "smollm3", "starcoder2")
# What the structure doesn't tell and the check finds, and what the structure tells.
COMPUTING = {"glm": {}, "gpt_oss": MORE["gpt_oss"], "granite": {"residual_multiplier": 0.5}, "ernie4_5": {}}
OTHERS = {
    "phi3": {},
    "cohere2": MORE["cohere2"],
    "olmo2": {},
    "nanochat": {},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
}


@pytest.mark.parametrize("family", KNOWN)
@pytest.mark.parametrize("copies", [False, True])
def test_layers_of_these_families_are_known(family, copies):
    found = RaggedModel(endless(family, **MORE.get(family, {})), copies=copies)
    assert (found.why_not, found.why_not_lean) == (None, None)


def test_positions_are_left_out_in_the_layers_that_have_none():
    """SmolLM3's every fourth layer turns nothing: one forward pass for all of them would be wrong."""
    found = RaggedModel(endless("smollm3", num_hidden_layers=4, no_rope_layers=[1, 1, 1, 0]))
    assert found.why_not is None and "SmolLM3DecoderLayer 3" in found.why_not_lean


@pytest.mark.parametrize("family", [*COMPUTING, *OTHERS])
def test_other_families_are_computed_by_their_own_forward_pass(family):
    found = RaggedModel(endless(family, **{**COMPUTING, **OTHERS}[family]), copies=True)
    assert found.why_not is None and found.lean is None
    assert ("known" if family in OTHERS or family == "granite" else "something else") in found.why_not_lean


@pytest.mark.parametrize("wrong", ["turn", "attend", "fast_norm"])
def test_an_error_in_one_operation_is_found(wrong, monkeypatch):
    plain = getattr(lean, wrong)
    if wrong == "fast_norm":
        monkeypatch.setattr(lean, wrong, lambda module: lambda x: plain(module)(x) * 1.001)
    else:
        monkeypatch.setattr(lean, wrong, lambda *a: plain(*a) * 1.001)
    found = RaggedModel(endless("qwen3"))
    assert found.lean is None and "something else" in found.why_not_lean


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "starcoder2"])
def test_answers_are_those_of_generate(family):
    model = endless(family, **MORE.get(family, {}))
    wanted = [reference(model, p, n) for p, n in zip(prompts_of(), ANSWER_LENGTHS, strict=True)]
    engine = PtEngine(model, tiny.tokenizer(), max_batch_size=6)
    try:
        assert any("a forward pass of our own" in note for note in engine.capabilities.notes)
        results = list(generate_all(engine, [greedy(p, n) for p, n in zip(prompts_of(), ANSWER_LENGTHS, strict=True)]))
    finally:
        engine.close()
    assert [list(r.token_ids) for r in results] == wanted


def test_prompt_logprobs_come_from_all_tokens_though_the_last_layer_computes_some(tmp_path):
    model, prompts = endless("llama"), prompts_of()[3:6]
    engine = PtEngine(model, tiny.tokenizer(), max_batch_size=4)
    asked = [Sampling(max_new_tokens=2, temperature=0, prompt_logprobs=k) for k in (None, 0, None)]
    try:
        requests = [GenerationRequest(prompt_ids=p, sampling=s) for p, s in zip(prompts, asked, strict=True)]
        results = list(generate_all(engine, requests))
    finally:
        engine.close()
    with torch.no_grad():
        table = model(torch.tensor([prompts[1]])).logits[0].log_softmax(-1)
    assert [list(r.token_ids) for r in results] == [reference(model, p, 2) for p in prompts]
    assert [p.logprob for p in results[1].prompt_logprobs[1:]] == pytest.approx(
        [float(row[i]) for row, i in zip(table, prompts[1][1:], strict=False)], abs=1e-4
    )
