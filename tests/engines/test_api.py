"""`from swift import Engine`: the same answers as transformers, in a loop, a batch and an event loop."""

import asyncio
import subprocess
import sys

import pytest
import torch

from swift import Engine
from swift.errors import SwiftError, UsageError
from tests import tiny
from tests.engines.test_lora import KINDS, save
from tests.engines.test_pt import endless

QUESTIONS = ["Who are you?", "What is one plus one?", "你好"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    model = endless("llama")
    model.save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def engine(folder):
    with Engine(folder, max_new_tokens=8, torch_dtype="float32") as engine:
        yield engine


def wanted(question, length=8, model=None):
    tokenizer = tiny.tokenizer()
    talk = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    model = model or endless("llama")
    output = model.generate(torch.tensor([ids]), max_new_tokens=length, do_sample=False, pad_token_id=0)[0, len(ids) :]
    return tokenizer.decode([i for i in output.tolist() if i not in (0, 2)])


def test_chat_stream_and_batch(engine):
    answer = engine.chat(QUESTIONS[0])
    assert str(answer) == answer.message["content"] == wanted(QUESTIONS[0])
    assert answer.result.usage.completion_tokens <= 8
    assert "".join(engine.stream(QUESTIONS[1], max_tokens=5)) == wanted(QUESTIONS[1], 5)
    assert [a.text for a in engine.batch(QUESTIONS)] == [wanted(q) for q in QUESTIONS]
    talk = [{"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "content": "I"}]
    assert engine.chat([*talk, {"role": "user", "content": "and?"}]).text


def test_an_event_loop(engine):
    async def main():
        pieces = [piece async for piece in engine.astream(QUESTIONS[0])]
        answers = await asyncio.gather(*(engine.achat(q) for q in QUESTIONS))
        return "".join(pieces), [answer.text for answer in answers]

    assert asyncio.run(main()) == (wanted(QUESTIONS[0]), [wanted(q) for q in QUESTIONS])


def test_what_is_wrong_is_said(engine):
    with pytest.raises(SwiftError, match="temprature.*|temperature"):
        engine.chat("hi", temprature=1)
    with pytest.raises(SwiftError, match="temperature"):
        engine.chat("hi", temperature=-1)
    failed = engine.batch(["hi", "x" * 3000])
    assert failed[0].error is None and "tokens" in str(failed[1].error)
    with pytest.raises(UsageError, match="max_new_tokenz"):
        Engine("/nowhere", max_new_tokenz=3)
    with pytest.raises(SwiftError):
        Engine("/nowhere")


def test_adapters_by_name(folder, tmp_path):
    from peft import PeftModel

    path = save("llama", tmp_path / "a", **KINDS["wide"])
    with Engine(folder, adapters={"a": path}, max_new_tokens=8, torch_dtype="float32") as engine:
        assert engine.adapters == ("a",)
        tuned = PeftModel.from_pretrained(endless("llama"), path).eval()
        assert engine.chat(QUESTIONS[0], adapter="a").text == wanted(QUESTIONS[0], model=tuned)
        assert engine.chat(QUESTIONS[0]).text == wanted(QUESTIONS[0])


def test_importing_swift_imports_nothing_heavy():
    code = "import sys, swift; print('torch' in sys.modules, swift.__version__ != '', 'Engine' in swift.__all__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True"]
