"""Adapters by HTTP: chosen by the model's name, loaded and unloaded while the server runs."""

import httpx
import openai
import pytest

from swift.engines.fake import FakeEngine
from swift.engines.pt import PtEngine
from tests import tiny
from tests.engines.test_lora import KINDS, alone, save
from tests.engines.test_pt import endless, prompts_of
from tests.serve.served import PacedEngine, running, service

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


def test_an_adapter_comes_answers_and_goes(tmp_path):
    path = save("llama", tmp_path / "a", **KINDS["wide"])
    prompt = prompts_of()[1]
    tokenizer = tiny.tokenizer()
    engine = PtEngine(endless("llama"), tokenizer)
    with running(service(engine)) as url, httpx.Client(base_url=url) as http:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def ask(model):
            return client.completions.create(model=model, prompt=prompt, max_tokens=9, temperature=0).choices[0].text

        def text(adapter):
            return tokenizer.decode(alone("llama", adapter, prompt, 9))

        reply = http.post(LOAD, json={"lora_name": "tuned", "lora_path": str(path)})
        assert (reply.status_code, "'tuned' added" in reply.text) == (200, True)
        assert [m.id for m in client.models.list()] == ["tiny", "tuned"]
        assert ask("tuned") == text(path) != ask("tiny") == text(None)
        again = {"lora_name": "tuned", "lora_path": str(path)}
        assert http.post(LOAD, json=again).json()["error"]["code"] == "already_loaded"
        assert http.post(LOAD, json={**again, "load_inplace": True}).status_code == 200
        assert http.post(UNLOAD, json={"lora_name": "tuned"}).status_code == 200
        with pytest.raises(openai.NotFoundError):
            ask("tuned")
        assert http.post(UNLOAD, json={"lora_name": "tuned"}).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"lora_name": "a"}, 400, "lora_path"),
        ({"lora_name": "a", "lora_path": "/no/such/place"}, 404, "lora_path"),
        ({"lora_name": "tiny", "lora_path": "/tmp"}, 400, "lora_name"),
        ({"lora_name": "", "lora_path": "/tmp"}, 400, "lora_name"),
    ],
)
def test_what_cannot_be_loaded(body, status, param):
    with running(service(FakeEngine())) as url:
        reply = httpx.post(url + LOAD, json=body)
        assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)


def test_an_empty_directory_is_no_adapter(tmp_path):
    engine = PtEngine(endless("llama"), tiny.tokenizer())
    with running(service(engine)) as url:
        reply = httpx.post(url + LOAD, json={"lora_name": "a", "lora_path": str(tmp_path)})
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "bad_adapter")
        assert [model["id"] for model in httpx.get(url + "/v1/models").json()["data"]] == ["tiny"]


def test_an_engine_that_loads_none_says_so():
    with running(service(PacedEngine())) as url:
        reply = httpx.post(url + LOAD, json={"lora_name": "a", "lora_path": "/tmp"})
        assert (reply.status_code, reply.json()["error"]["code"]) == (400, "unsupported")
