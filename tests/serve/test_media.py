"""Requests with images over HTTP, in the shapes of both APIs, to a tiny model that sees."""

from __future__ import annotations

import base64
import copy
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from swift.chat import ChatEncoder
from swift.engines.pt import PtEngine
from swift.serve.deploy import kinds_of, template_variables, with_variables
from swift.serve.formats import learn_format
from swift.serve.prompts import TemplatePrompts
from swift.serve.service import Service, Settings
from tests import tiny_vlm
from tests.serve.served import running


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, processor, model)"""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    path = tiny_vlm.checkpoint(tmp_path_factory.mktemp("model"))
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    processor = AutoProcessor.from_pretrained(path)
    shared = ChatEncoder(processor.tokenizer, processor=processor)
    engine = PtEngine(model, processor.tokenizer, shared)
    encoder = copy.deepcopy(shared)
    prompts = TemplatePrompts(
        encoder, None, template_variables(encoder), partial(with_variables, encoder), kinds_of(engine, encoder)
    )
    service = Service(engine, prompts, learn_format(encoder, encoder.parse), Settings(names=("tiny",)))
    with running(service) as address:
        yield address, processor, model
    engine.close()


@pytest.fixture
def picture(tmp_path):
    return tiny_vlm.picture(tmp_path / "picture.png", 3)


def data_of(path: str) -> str:
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode()


def expected(served, path: str, question: str) -> str:
    _, processor, model = served
    talk = [{"role": "user", "content": [{"type": "image", "image": path}, {"type": "text", "text": question}]}]
    inputs = processor.apply_chat_template(
        talk, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
    )
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=8, pad_token_id=0)
    return processor.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def ask(served, content, path="/v1/chat/completions", **more):
    body = {"model": "tiny", "max_tokens": 8, "temperature": 0, **more}
    body["messages"] = [{"role": "user", "content": content}]
    return httpx.post(served[0] + path, json=body, timeout=60)


def test_a_data_url_is_seen(served, picture):
    url = f"data:image/png;base64,{data_of(picture)}"
    content = [{"type": "image_url", "image_url": {"url": url, "detail": "auto"}}, {"type": "text", "text": "What?"}]
    answer = ask(served, content).json()
    assert answer["choices"][0]["message"]["content"] == expected(served, picture, "What?")
    assert answer["usage"]["prompt_tokens"] > 4
    other = tiny_vlm.picture(picture.replace("picture", "other"), 4)
    content[0]["image_url"]["url"] = f"data:image/png;base64,{data_of(other)}"
    assert ask(served, content).json()["choices"][0]["message"]["content"] == expected(served, other, "What?")


def test_an_address_is_read(served, picture, tmp_path):
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *args: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/picture.png"
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
            answer = ask(served, content).json()
            assert answer["choices"][0]["message"]["content"] == expected(served, picture, "What?")
            content[0]["image_url"]["url"] += "x"
            refused = ask(served, content)
            assert refused.status_code == 400 and "404" in refused.text
        finally:
            server.shutdown()


def test_anthropics_blocks_and_responses_say_the_same(served, picture):
    source = {"type": "base64", "media_type": "image/png", "data": data_of(picture)}
    blocks = [{"type": "image", "source": source}, {"type": "text", "text": "What?"}]
    answer = ask(served, blocks, "/v1/messages").json()
    assert answer["content"][0]["text"] == expected(served, picture, "What?")
    image = {"type": "input_image", "image_url": f"data:image/png;base64,{data_of(picture)}"}
    item = {"role": "user", "content": [image, {"type": "input_text", "text": "What?"}]}
    body = {"model": "tiny", "input": [item], "max_output_tokens": 8, "temperature": 0}
    found = httpx.post(served[0] + "/v1/responses", json=body, timeout=60).json()
    assert "output" in found, found
    assert found["output"][0]["content"][0]["text"] == expected(served, picture, "What?")


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"type": "image_url", "image_url": {"url": "/etc/hostname"}}, "data: URL or an http"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/hostname"}}, "data: URL or an http"),
        ({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}, "can't be read"),
        ({"type": "image_url", "image_url": {}}, "names nothing"),
        (
            {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
            "takes text, image, not input_audio",
        ),
    ],
)
def test_what_can_t_be_seen_is_a_clear_refusal(served, part, says):
    refused = ask(served, [part, {"type": "text", "text": "What?"}])
    assert refused.status_code in (400, 422) and says in refused.json()["error"]["message"]
