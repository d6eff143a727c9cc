"""Adapters chosen by request: mixed in one batch each answers as peft's model with it alone does; they come and go."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from swift.engines.protocol import GenerationRequest, RequestError, Sampling, generate, generate_all, stream
from swift.engines.pt import PtEngine
from swift.errors import CheckpointError
from tests import tiny
from tests.engines.test_pt import ANSWER_LENGTHS, endless, prompts_of, reference

KINDS = {
    "small": {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "wide": {"r": 8, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": True},
    "mixed": {"r": 2, "target_modules": ["down_proj", "o_proj"], "rank_pattern": {"down_proj": 5}, "lora_alpha": 9},
}


def save(family, path, seed=0, **settings):
    torch.manual_seed(seed)
    tuned = get_peft_model(endless(family), LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **settings))
    tuned.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


@pytest.fixture
def adapters(tmp_path):
    return {name: save("llama", tmp_path / name, i, **kind) for i, (name, kind) in enumerate(KINDS.items())}


def asking(prompt, length, adapter):
    return GenerationRequest(
        prompt_ids=prompt, sampling=Sampling(max_new_tokens=length, temperature=0), adapter=adapter
    )


def alone(family, path, prompt, length):
    model = endless(family) if path is None else PeftModel.from_pretrained(endless(family), path).eval()
    model.generation_config.eos_token_id = None
    return reference(model, prompt, length)


@pytest.mark.parametrize("padded", [False, True])
def test_adapters_mixed_in_one_batch_answer_as_each_alone(adapters, tokenizer, padded, monkeypatch):
    if padded:
        monkeypatch.setattr("swift.engines.ragged.RaggedModel._difference", lambda self: "not in this test")
    names = [None, "small", "wide", "mixed"] * 3
    work = list(zip(prompts_of(), ANSWER_LENGTHS, names, strict=False))
    wanted = [alone("llama", adapters.get(name), p, n) for p, n, name in work]
    engine = PtEngine(endless("llama"), tokenizer, max_batch_size=8)
    try:
        for name, path in adapters.items():
            engine.load_adapter(name, path)
        assert engine.capabilities.adapters == tuple(KINDS)
        results = list(generate_all(engine, [asking(*one) for one in work]))
        beams = Sampling(max_new_tokens=6, temperature=0, num_beams=2)
        found = generate(engine, GenerationRequest(prompt_ids=work[2][0], sampling=beams, adapter="wide"))
    finally:
        engine.close()
    assert [r.error for r in results] == [None] * len(work)
    assert [list(r.token_ids) for r in results] == wanted
    tuned = PeftModel.from_pretrained(endless("llama"), adapters["wide"]).eval()
    assert list(found.token_ids) == reference(tuned, work[2][0], 6, num_beams=2)


@pytest.mark.parametrize("family", ["gpt2", "qwen3_next"])
def test_other_families_and_other_kinds_of_layers(family, tmp_path, tokenizer):
    targets = ["c_attn", "c_proj"] if family == "gpt2" else ["in_proj_qkvz", "q_proj", "o_proj", "out_proj"]
    path = save(family, tmp_path / "a", r=4, target_modules=targets, fan_in_fan_out=family == "gpt2")
    work = list(zip(prompts_of()[:6], ANSWER_LENGTHS, [None, "a"] * 3, strict=False))
    engine = PtEngine(endless(family), tokenizer, max_batch_size=4)
    try:
        engine.load_adapter("a", path)
        results = list(generate_all(engine, [asking(*one) for one in work]))
    finally:
        engine.close()
    wanted = [alone(family, path if name else None, p, n) for p, n, name in work]
    assert [list(r.token_ids) for r in results] == wanted


def test_a_common_prompt_is_not_shared_between_adapters(adapters, tokenizer):
    prompt = prompts_of()[-1]
    engine = PtEngine(endless("llama"), tokenizer, max_batch_size=4)
    try:
        for name, path in adapters.items():
            engine.load_adapter(name, path)
        for name in (None, *KINDS):
            result = generate(engine, asking(prompt, 8, name))
            assert list(result.token_ids) == alone("llama", adapters.get(name), prompt, 8)
            assert result.usage.cached_tokens == 0
        assert generate(engine, asking(prompt, 8, "wide")).usage.cached_tokens == len(prompt) - 1
        engine.unload_adapter("wide")
        engine.load_adapter("wide", adapters["small"])
        again = generate(engine, asking(prompt, 8, "wide"))
        assert (list(again.token_ids), again.usage.cached_tokens) == (alone("llama", adapters["small"], prompt, 8), 0)
    finally:
        engine.close()


def test_adapters_come_and_go_while_requests_run(adapters, tokenizer):
    model = endless("llama")
    before = {name: p.clone() for name, p in model.state_dict().items()}
    modules = {name: type(m) for name, m in model.named_modules()}
    engine = PtEngine(model, tokenizer, max_batch_size=4)
    prompt = prompts_of()[0]
    try:
        engine.load_adapter("one", adapters["wide"])
        running = stream(engine, asking(prompt, 60, "one"))
        got = list(next(running).token_ids)
        engine.load_adapter("two", adapters["small"])
        engine.unload_adapter("one")
        got += [i for delta in running for i in delta.token_ids]
        assert got == alone("llama", adapters["wide"], prompt, 60)
        with pytest.raises(RequestError, match="'one'"):
            generate(engine, asking(prompt, 5, "one"))
        with pytest.raises(RequestError, match="already"):
            engine.load_adapter("two", adapters["wide"])
        with pytest.raises(RequestError, match="'three'"):
            engine.unload_adapter("three")
        assert list(generate(engine, asking(prompt, 5, None)).token_ids) == alone("llama", None, prompt, 5)
    finally:
        engine.close()
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert {name: type(m) for name, m in model.named_modules()} == modules


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_dora": True, "target_modules": ["q_proj"]}, "DoRA"),
        ({"target_modules": ["embed_tokens"]}, "no linear layer"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "whole layers"),
    ],
)
def test_what_cannot_be_mixed_is_refused_and_leaves_no_trace(settings, words, tmp_path, tokenizer):
    engine = PtEngine(endless("llama"), tokenizer)
    try:
        with pytest.raises(RequestError, match=words):
            engine.load_adapter("a", save("llama", tmp_path / "a", r=4, **settings))
        assert list(generate(engine, asking([5, 6, 7], 5, None)).token_ids) == alone("llama", None, [5, 6, 7], 5)
        assert engine.capabilities.adapters == ()
    finally:
        engine.close()


def test_an_adapter_of_another_model_is_refused(tmp_path, tokenizer):
    torch.manual_seed(0)
    other = tiny.model("llama", hidden_size=32)
    get_peft_model(other, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    engine = PtEngine(endless("llama"), tokenizer)
    try:
        with pytest.raises(CheckpointError):
            engine.load_adapter("a", tmp_path)
    finally:
        engine.close()
