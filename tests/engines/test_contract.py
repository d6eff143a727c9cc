"""What every engine promises, asked of every engine that can run here: see swift/engines/protocol.py.

fake; pt with a tiny model; http against a server of ours; `child`: a managed process that speaks as vLLM does
(tests/engines/standin.py); and, among the slow tests, vLLM itself where `swift env create vllm` has been run.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from swift.config.commands import DeployConfig, InferConfig
from swift.config.parse import parse
from swift.engines import setup
from swift.engines.options import check_backend
from swift.engines.protocol import (
    Engine,
    EngineError,
    GenerationRequest,
    Grammar,
    RequestError,
    Sampling,
    Text,
    generate,
    generate_all,
)
from swift.environments import find
from tests import tiny
from tests.engines import standin
from tests.engines.test_lora import KINDS, save
from tests.engines.test_pt import endless

REAL = "SmolLM2-135M-Instruct"
QUESTIONS = [
    "Who are you?",
    "What is one plus one? One plus one is two.",
    "Write a short story about a cat and a dog.",
    "The capital of France is Paris, isn't it?",
]
# a value of each field of Sampling that isn't its default
OTHER = {
    "min_new_tokens": 2,
    "top_k": 3,
    "top_p": 0.5,
    "min_p": 0.1,
    "repetition_penalty": 1.3,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.0,
    "logit_bias": {40: 5.0},
    "num_beams": 2,
    "stop": ("zz",),
    "stop_token_ids": (40,),
    "seed": 3,
    "logprobs": True,
    "top_logprobs": 2,
    "prompt_logprobs": 1,
    "grammar": Grammar("regex", "a"),
}


@dataclass(frozen=True)
class Subject:
    """`ids` makes a prompt of a text, `text` the text of tokens. `tells_ids`: deltas have token ids. `chooses`: there
    is a distribution to sample from, and long answers are long.
    """

    name: str
    engine: Engine
    ids: Callable[[str], list[int]]
    text: Callable[[list[int]], str]
    tells_ids: bool = True
    chooses: bool = True

    def ask(self, text: str = QUESTIONS[0], **more: object) -> GenerationRequest:
        adapter = more.pop("adapter", None)
        sampling = Sampling(**({"temperature": 0.0, "max_new_tokens": 8} | more))  # type: ignore[arg-type]
        return GenerationRequest(prompt_ids=self.ids(text), sampling=sampling, adapter=adapter)  # type: ignore[arg-type]

    def endless(self) -> GenerationRequest:
        """A request that runs for long if nobody stops it."""
        return self.ask(max_new_tokens=440) if self.chooses else self.ask("WAIT")


def built(*words: str | Path, adapters: tuple[str, ...] | None = None) -> Engine:
    config = parse(InferConfig, list(map(str, words))).config
    check_backend(config)
    source = None
    if config.engine.infer_backend not in ("fake", "http"):
        config, source = setup.find_source(config)
    return setup.build_engine(config, source, adapters, patience=2.0)[0]


def with_tokenizer(name: str, engine: Engine, tokenizer, **more: bool) -> Subject:
    def ids(text: str) -> list[int]:
        talk = [{"role": "user", "content": text}]
        return tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)

    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    return Subject(name, engine, ids, text, **more)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("contract") / "tiny"
    endless("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@contextlib.contextmanager
def fake(folder, tmp_path) -> Iterator[Subject]:
    engine = built("--infer_backend", "fake")
    yield Subject("fake", engine, lambda t: list(map(ord, t)), lambda ids: "".join(map(chr, ids)), chooses=False)


@contextlib.contextmanager
def pt(folder, tmp_path) -> Iterator[Subject]:
    law = save("llama", tmp_path / "law", **KINDS["wide"])
    engine = built("--model", folder, "--torch_dtype", "float32", "--adapters", law, adapters=("law",))
    yield with_tokenizer("pt", engine, tiny.tokenizer())


@contextlib.contextmanager
def http(folder, tmp_path) -> Iterator[Subject]:
    from swift.serve import deploy
    from tests.serve.served import running

    words = ["--model", str(folder), "--torch_dtype", "float32", "--served_model_name", "tiny"]
    with running(deploy.build(*deploy.find_source(parse(DeployConfig, words).config))) as url:
        engine = built("--infer_backend", "http", "--base_url", f"{url}/v1", "--max_model_len", "512")
        yield with_tokenizer("http", engine, tiny.tokenizer(), tells_ids=False)
        engine.close()


@contextlib.contextmanager
def child(folder, tmp_path) -> Iterator[Subject]:
    law = save("llama", tmp_path / "law", **KINDS["wide"])
    words = ("--infer_backend", "vllm", "--engine_python", sys.executable, "--model", folder, "--adapters", law)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", standin.install(tmp_path / "path"))
        patch.setenv("SWIFT_LOG_DIR", str(tmp_path / "logs"))
        engine = built(*words, adapters=("law",))
    yield with_tokenizer("child", engine, tiny.tokenizer())


@contextlib.contextmanager
def vllm(folder, tmp_path) -> Iterator[Subject]:
    from swift.engines.setup import resolve_options
    from swift.models.gguf import as_directory
    from swift.models.load import load_tokenizer

    if find("vllm") is None:
        pytest.skip("there is no environment for vLLM: swift env create vllm")
    words = ("--infer_backend", "vllm", "--model", REAL, "--torch_dtype", "float32", "--max_model_len", "1024")
    words += ("--vllm_enforce_eager", "true", "--vllm_max_num_seqs", "16")
    config = parse(InferConfig, ["--model", REAL]).config
    directory = as_directory(resolve_options(config.model).path)
    yield with_tokenizer("vllm", built(*words), load_tokenizer(directory))


MAKERS = {"fake": fake, "pt": pt, "http": http, "child": child, "vllm": vllm}
PARAMS = [pytest.param(name, marks=pytest.mark.slow if name == "vllm" else ()) for name in MAKERS]


@pytest.fixture(scope="module", params=PARAMS)
def subject(request, folder, tmp_path_factory) -> Iterator[Subject]:
    with MAKERS[request.param](folder, tmp_path_factory.mktemp(request.param)) as subject:
        yield subject
        subject.engine.close()


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_last_delta_says_how_it_ended_and_what_it_cost(subject):
    request = subject.ask()
    deltas = list(subject.engine.submit(request))
    assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert [d.usage for d in deltas[:-1]] == [None] * (len(deltas) - 1)
    last = deltas[-1]
    assert last.finish_reason in ("stop", "length")
    assert last.usage.prompt_tokens == len(request.prompt_ids)
    assert last.usage.completion_tokens == 8 or last.finish_reason == "stop"
    if subject.tells_ids:
        assert sum(len(d.token_ids) for d in deltas) == last.usage.completion_tokens
        ids = [i for d in deltas for i in d.token_ids]
        if "\ufffd" not in subject.text(ids):
            assert "".join(d.text for d in deltas) == subject.text(ids if last.finish_reason == "length" else ids[:-1])


def test_one_token(subject):
    result = generate(subject.engine, subject.ask(max_new_tokens=1))
    assert (result.finish_reason, result.usage.completion_tokens) == ("length", 1)


def test_answers_are_the_same_alone_and_in_company_and_in_order(subject):
    requests = [subject.ask(text, max_new_tokens=4 + i) for i, text in enumerate(QUESTIONS)] * 3
    alone = [generate(subject.engine, request) for request in requests[: len(QUESTIONS)]] * 3
    together = list(generate_all(subject.engine, requests))
    assert [r.text for r in together] == [r.text for r in alone]
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]


def test_more_requests_than_places_are_all_answered(subject):
    many = min(4 * subject.engine.capabilities.max_concurrency, 80)
    results = list(generate_all(subject.engine, [subject.ask(max_new_tokens=2) for _ in range(many)], ahead=many))
    assert len(results) == many and not any(result.error for result in results)


def test_a_seed_is_repeatable_whatever_else_runs(subject):
    def seeded(seed):
        return subject.ask(temperature=1.0, seed=seed, max_new_tokens=12)

    alone = generate(subject.engine, seeded(7)).text
    texts = [r.text for r in generate_all(subject.engine, [seeded(7), seeded(8), seeded(9), seeded(7)])]
    assert texts[0] == texts[3] == alone
    assert len(set(texts)) > 1 or not subject.chooses


def test_a_stop_text_ends_the_answer_and_is_not_in_it(subject):
    whole = generate(subject.engine, subject.ask(QUESTIONS[2], max_new_tokens=40)).text
    stop = next(found[0] for found in re.finditer(r"[a-z]{2}", whole) if found.start() > 2)
    result = generate(subject.engine, subject.ask(QUESTIONS[2], max_new_tokens=40, stop=(stop, "\u2603")))
    assert result.text == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"
    assert result.stop_text in (stop, None if subject.name == "http" else stop)  # OpenAI's API doesn't say it


def test_what_the_engine_knows_of_sampling_it_does(subject):
    engine, unsupported = subject.engine, subject.engine.capabilities.unsupported
    token = subject.ids("cat")[-3] if subject.name == "fake" else 100
    if "logit_bias" not in unsupported:
        pushed = generate(engine, subject.ask(logit_bias={token: 100.0}, max_new_tokens=3))
        assert pushed.text == subject.text([token] * 3)
    if "stop_token_ids" not in unsupported and subject.tells_ids:
        ids = generate(engine, subject.ask(max_new_tokens=12)).token_ids
        stop = next(i for i in ids[2:] if i not in ids[:2])
        stopped = generate(engine, subject.ask(max_new_tokens=12, stop_token_ids=(stop,)))
        assert (stopped.finish_reason, stopped.token_ids) == ("stop", ids[: ids.index(stop) + 1])


@pytest.mark.parametrize("name", list(OTHER))
def test_what_the_engine_does_not_know_it_refuses(subject, name):
    """A field is honoured or refused, and a refusal names it."""
    more = {name: OTHER[name]} | ({"logprobs": True} if name == "top_logprobs" else {})
    refused = name in subject.engine.capabilities.unsupported
    if name == "grammar":
        refused = refused or "regex" not in subject.engine.capabilities.grammars
    elif not refused:
        return  # other tests see what it does
    with pytest.raises(RequestError) as error:
        generate(subject.engine, subject.ask(**more)) if refused else subject.engine.capabilities.check(
            subject.ask(grammar=Grammar("a kind that nobody knows", ""))
        )
    assert error.value.param == name


def test_logprobs(subject):
    if "logprobs" in subject.engine.capabilities.unsupported:
        pytest.skip("it knows none")
    result = generate(subject.engine, subject.ask(logprobs=True, top_logprobs=2))
    assert len(result.logprobs) == result.usage.completion_tokens
    for found in result.logprobs:
        assert found.logprob <= 1e-4
        if subject.chooses:  # greedy: the likeliest was taken, and there is another
            assert found.top[0][2] == pytest.approx(found.logprob, abs=1e-3)
            assert [p for _, _, p in found.top] == sorted((p for _, _, p in found.top), reverse=True)
            assert len({token for token, _, _ in found.top}) == 2 or not subject.tells_ids  # OpenAI's keys are texts
    plain = generate(subject.engine, subject.ask())
    assert plain.text == result.text and not plain.logprobs


def test_prompt_logprobs_are_those_that_the_answer_had(subject):
    if "prompt_logprobs" in subject.engine.capabilities.unsupported:
        pytest.skip("it knows none")
    request = subject.ask(logprobs=True, max_new_tokens=4)
    answer = generate(subject.engine, request)
    made = answer.token_ids or tuple(subject.ids("a"))
    scored = GenerationRequest(
        prompt_ids=[*request.prompt_ids, *made], sampling=Sampling(max_new_tokens=0, prompt_logprobs=1)
    )
    result = generate(subject.engine, scored)
    assert (result.text, result.token_ids, result.usage.completion_tokens) == ("", (), 0)
    assert len(result.prompt_logprobs) == len(scored.prompt_ids)
    assert result.prompt_logprobs[0] is None
    if answer.token_ids:
        found = [item.logprob for item in result.prompt_logprobs[-len(made) :]]
        assert found == pytest.approx([item.logprob for item in answer.logprobs], abs=1e-3)


@pytest.mark.parametrize("kind", ["json_schema", "regex", "lark"])
def test_grammars_hold_the_answer(subject, kind):
    source = {
        "json_schema": json.dumps({"enum": ["red", "green"]}),
        "regex": "(red|green)",
        "lark": 'start: "red" | "green"',
    }[kind]
    if kind not in subject.engine.capabilities.grammars or subject.name == "child":
        pytest.skip("it has none of this kind")
    result = generate(subject.engine, subject.ask(grammar=Grammar(kind, source), max_new_tokens=30))
    assert result.text in (('"red"', '"green"') if kind == "json_schema" else ("red", "green"))


def test_a_bad_request_fails_alone_and_says_why(subject):
    good = subject.ask()
    bad = [
        GenerationRequest(),
        GenerationRequest(prompt_ids=[]),
        GenerationRequest(prompt_ids=good.prompt_ids, messages=[{"role": "user", "content": "x"}]),
        GenerationRequest(prompt_ids=good.prompt_ids, adapter="nobody"),
        GenerationRequest(prompt_ids=good.prompt_ids, sampling=Sampling(max_new_tokens=0)),
    ]
    failed = subject.engine.stats().failed
    results = list(generate_all(subject.engine, [good, *bad, good]))
    assert results[0].text == results[-1].text == generate(subject.engine, good).text
    for result in results[1:-1]:
        assert isinstance(result.error, RequestError) and str(result.error)
    wait_until(lambda: subject.engine.stats().failed == failed + len(bad))


def test_a_prompt_that_is_too_long_is_refused(subject):
    context = subject.engine.capabilities.context_length
    if context is None:
        pytest.skip("it doesn't know")
    ids = (subject.ids("word ") * context)[: context + 1]
    with pytest.raises(RequestError, match="context"):
        generate(subject.engine, GenerationRequest(prompt_ids=ids, sampling=Sampling(max_new_tokens=1)))


@pytest.mark.parametrize("how", ["cancel", "leave", "cancel before reading"])
def test_cancelling_ends_it_and_frees_its_place(subject, how):
    engine, before = subject.engine, subject.engine.stats()
    stream = engine.submit(subject.endless())
    if how == "leave":
        with stream:
            if subject.chooses:
                next(stream)
    else:
        if subject.chooses and how == "cancel":
            next(stream)
        stream.cancel()
    deltas = list(stream)
    assert deltas[-1].finish_reason == "cancelled"
    stream.cancel()  # no effect
    wait_until(lambda: engine.stats().running == engine.stats().waiting == 0)
    assert engine.stats().cancelled == before.cancelled + 1
    assert engine.stats().finished == before.finished


def test_cancelling_one_of_two_equal_requests_leaves_the_other(subject):
    request = subject.ask(max_new_tokens=60)
    wanted = generate(subject.engine, request).text
    for _ in range(5):  # at once, before the engine has begun
        first, second = subject.engine.submit(request), subject.engine.submit(request)
        second.cancel()
        assert "".join(delta.text for delta in first) == wanted
        assert list(second)[-1].finish_reason in ("cancelled", "length", "stop")


def test_an_event_loop_reads_many_at_once(subject):
    async def one(text):
        async with subject.engine.submit(subject.ask(text)) as stream:
            return "".join([delta.text async for delta in stream])

    async def main():
        return await asyncio.gather(*map(one, QUESTIONS))

    assert asyncio.run(main()) == [generate(subject.engine, subject.ask(text)).text for text in QUESTIONS]


def test_an_answer_that_nobody_reads_holds_nobody_up(subject):
    unread = [subject.engine.submit(subject.ask(max_new_tokens=60)) for _ in range(3)]
    assert generate(subject.engine, subject.ask(QUESTIONS[1])).text
    wait_until(lambda: all(stream.ended for stream in unread), 60)
    assert len({"".join(d.text for d in stream) for stream in unread}) == 1


def test_streams_are_read_in_other_threads(subject):
    texts: dict[int, str] = {}

    def read(i, stream):
        texts[i] = "".join(delta.text for delta in stream)

    threads = [
        threading.Thread(target=read, args=(i, subject.engine.submit(subject.ask(text))))
        for i, text in enumerate(QUESTIONS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [texts[i] for i in range(len(QUESTIONS))] == [
        generate(subject.engine, subject.ask(text)).text for text in QUESTIONS
    ]


def test_what_was_done_is_counted(subject):
    before = subject.engine.stats()
    results = [generate(subject.engine, subject.ask(text)) for text in QUESTIONS]

    def counted():
        after = subject.engine.stats()
        return (
            after.finished == before.finished + len(results)
            and after.prompt_tokens == before.prompt_tokens + sum(r.usage.prompt_tokens for r in results)
            and (after.running, after.waiting, after.silent) == (0, 0, 0.0)
        )

    wait_until(counted)
    if subject.tells_ids:
        made = subject.engine.stats().generated_tokens - before.generated_tokens
        assert made == sum(r.usage.completion_tokens for r in results)
    assert subject.engine.stats().alive and subject.engine.stats().restarts == 0


def test_messages_are_put_through_the_template(subject):
    talk = [{"role": "user", "content": QUESTIONS[0]}]
    asked = GenerationRequest(messages=talk, sampling=Sampling(max_new_tokens=8, temperature=0.0))
    result = generate(subject.engine, asked)
    assert result.text == generate(subject.engine, subject.ask()).text
    assert result.usage.prompt_tokens == len(subject.ids(QUESTIONS[0]))


def test_vectors_or_a_clear_refusal(subject):
    texts = [Text(tuple(subject.ids(text))) for text in QUESTIONS]
    if "embed" not in subject.engine.capabilities.tasks:
        with pytest.raises(RequestError, match="writes text"):
            subject.engine.numbers(texts)
        return
    vectors = [future.result(60) for future in subject.engine.numbers(texts)]
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1.0] * len(texts), abs=1e-4)
    again = subject.engine.numbers(texts[:1])[0].result(60)
    assert again == pytest.approx(vectors[0], abs=1e-4)


def test_adapters_mixed_in_a_batch_answer_as_each_alone(subject):
    if "law" not in subject.engine.capabilities.adapters:
        pytest.skip("it has none here")
    requests = [subject.ask(text, adapter=name) for text in QUESTIONS for name in ("law", None)]
    alone = [generate(subject.engine, request).text for request in requests]
    assert [r.text for r in generate_all(subject.engine, requests)] == alone
    assert alone[0::2] != alone[1::2]


def test_adapters_come_and_go(subject, tmp_path):
    engine = subject.engine
    if not engine.capabilities.loads_adapters:
        with pytest.raises(RequestError, match="adapter"):
            engine.load_adapter("new", tmp_path)
        return
    engine.load_adapter("new", save("llama", tmp_path / "new", **KINDS["wide"]))
    assert "new" in engine.capabilities.adapters
    assert generate(engine, subject.ask(adapter="new")).finish_reason in ("stop", "length")
    engine.unload_adapter("new")
    assert "new" not in engine.capabilities.adapters
    with pytest.raises(RequestError, match="new"):
        generate(engine, subject.ask(adapter="new"))
    with pytest.raises(RequestError, match="new"):
        engine.unload_adapter("new")


def test_closing_ends_everything_and_nothing_hangs(subject):
    """The last of these tests: afterwards the engine is closed."""
    engine = subject.engine
    streams = [engine.submit(subject.endless()) for _ in range(3)]
    engine.close()
    for stream in streams:
        assert list(stream)[-1].finish_reason == "cancelled"
    with pytest.raises((EngineError, RequestError)):
        generate(engine, subject.ask())
    engine.close()  # twice does no harm
