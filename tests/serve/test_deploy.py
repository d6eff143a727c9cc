"""`swift deploy` as a command: its checks, its end, TLS, and a tiny model behind it."""

import os
import re
import signal
import ssl
import subprocess
import sys
import time

import httpx
import openai
import pytest

from swift.config.commands import DeployConfig
from swift.config.parse import parse
from swift.errors import ResourceError, SwiftError
from swift.serve import deploy
from swift.serve.deploy import listen
from tests import tiny
from tests.serve.served import running


def config(*argv):
    return parse(DeployConfig, list(argv)).config


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("serve") / "tiny-llama")


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["--ssl_keyfile", "key.pem"], "both"),
        (["--ssl_keyfile", "key.pem", "--ssl_certfile", "cert.pem"], "certificate"),
        (["--logprobs", "true"], "itself"),
        (["--max_length", "100"], "max_model_len"),
        (["--api_key", ""], "empty"),
        (["--adapters", "a=x", "y"], "some have none"),
        (["--adapters", "a=x", "a=y"], "the same name"),
        (["--adapters", "a=x", "--merge_lora", "true"], "chosen by name"),
        (["--vllm_max_num_seqs", "4"], "option of vllm"),
        (["--infer_backend", "http"], "needs an address"),
        (["--infer_backend", "http", "--base_url", "http://x/v1", "--template", "chatml"], "no effect"),
        (["--infer_backend", "vllm", "--attn_impl", "eager"], "no effect"),
        (["--base_url", "http://x/v1"], "no effect"),
        (["--model", "/nowhere/at/all", "--infer_backend", "pt"], "nowhere"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_loaded(argv, word):
    with pytest.raises(SwiftError, match=word):
        deploy.main(config("--infer_backend", "fake", *argv))


def test_a_taken_port_is_an_error():
    with listen(config("--port", "0")) as taken, pytest.raises(ResourceError, match="in use"):
        taken.listen()
        listen(config("--port", str(taken.getsockname()[1])))


def test_dry_run_says_the_name_and_hides_the_key(checkpoint, capsys):
    assert deploy.main(config("--model", str(checkpoint), "--api_key", "zqsecret", "--dry_run", "true")) == 0
    shown = capsys.readouterr().out
    assert "served_model_name = tiny-llama" in shown
    assert "zqsecret" not in shown


def start(*argv):
    """The command as a process, and its address once it answers."""
    command = [sys.executable, "-m", "swift", "deploy", "--infer_backend", "fake", "--port", "0", *argv]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for line in process.stderr:
        if "serving" in line:
            return process, line.split(" at ")[1].strip().removesuffix("/v1")
    raise AssertionError("the server ended early")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(number):
    process, url = start()
    try:
        assert httpx.get(f"{url}/health").status_code == 200
        process.send_signal(number)
        assert process.wait(10) == 0
        assert "stopped" in process.stderr.read()
    finally:
        process.kill()
        process.stderr.close()


def test_tls(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    process, url = start("--ssl_keyfile", str(key), "--ssl_certfile", str(certificate))
    try:
        assert url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        assert httpx.get(f"{url}/v1/models", verify=trusted).json()["data"][0]["id"] == "fake"
    finally:
        process.terminate()
        process.wait(10)
        process.stderr.close()


def test_a_tiny_model_answers_as_generate_does(checkpoint):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = config("--model", str(checkpoint), "--served_model_name", "tiny", "--torch_dtype", "float32")
    served = deploy.build(*deploy.find_source(given))
    messages = [{"role": "user", "content": "What is one plus one?"}]
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        out = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    expected = tokenizer.decode(out, skip_special_tokens=False).replace("<|im_end|>", "").replace("<|endoftext|>", "")
    with running(served) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, temperature=0)
        chunks = list(
            client.chat.completions.create(model="tiny", messages=messages, max_tokens=12, temperature=0, stream=True)
        )
        assert whole.choices[0].message.content == expected
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
        assert whole.usage.prompt_tokens == ids["input_ids"].shape[1]
        with pytest.raises(openai.BadRequestError, match="context length"):
            client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "long " * 600}])
        with pytest.raises(openai.BadRequestError, match="no variable no_such_variable"):
            extra = {"chat_template_kwargs": {"no_such_variable": 1}}
            client.chat.completions.create(model="tiny", messages=messages, extra_body=extra)
        tokens = httpx.post(f"{url}/tokenize", json={"messages": messages}).json()["tokens"]
        assert tokens == ids["input_ids"][0].tolist()
        text = client.completions.create(model=str(checkpoint), prompt="The capital", max_tokens=4, temperature=0)
        assert text.usage.completion_tokens == 4
        with pytest.raises(openai.BadRequestError, match="out of range"):
            client.completions.create(model="tiny", prompt=[[10**6]], max_tokens=4)
        end = time.monotonic() + 10
        while httpx.get(f"{url}/health").json()["status"] != "ok":
            assert time.monotonic() < end


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_is_forced_also_where_the_template_knows_no_tools(checkpoint, stream):
    """The template of `checkpoint` shows no tools: the call is a bare JSON object that matches the tool's schema."""
    import json

    given = config("--model", str(checkpoint), "--served_model_name", "tiny", "--torch_dtype", "float32")
    served = deploy.build(*deploy.find_source(given))
    parameters = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "paint", "parameters": parameters}}
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Paint!"}],
        "tools": [tool],
        "tool_choice": {"type": "function", "function": {"name": "paint"}},
        "temperature": 0,
        "max_tokens": 300,
    }
    with running(served) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        if stream:
            with client.chat.completions.stream(**asked) as events:
                choice = events.get_final_completion().choices[0]
        else:
            choice = client.chat.completions.create(**asked).choices[0]
    assert choice.message.tool_calls, choice
    (call,) = choice.message.tool_calls
    assert call.function.name == "paint" and json.loads(call.function.arguments)["colour"] in ("red", "green")
    assert choice.finish_reason == "tool_calls" and not choice.message.content


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_forms_of_answers(checkpoint, path):
    """response_format as OpenAI has it, structured_outputs as vLLM has it, in both APIs."""
    served = deploy.build(*deploy.find_source(config("--model", str(checkpoint), "--torch_dtype", "float32")))
    chat = {"messages": [{"role": "user", "content": "colour?"}]} if "chat" in path else {"prompt": "colour"}

    def ask(**more):
        body = {"model": str(checkpoint), "max_tokens": 40, "temperature": 1.0, "seed": 3, **chat, **more}
        reply = httpx.post(f"{url}{path}", json=body, timeout=60)
        if reply.status_code != 200:
            return reply.status_code, reply.json()["error"]["param"]
        choice = reply.json()["choices"][0]
        return choice["message"]["content"] if "chat" in path else choice["text"]

    schema = {"enum": ["red", "green"]}
    with running(served) as url:
        form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": schema}}
        assert ask(response_format=form) in ('"red"', '"green"')
        assert ask(structured_outputs={"json": schema}) in ('"red"', '"green"')
        assert ask(structured_outputs={"choice": ["red", 'gr"n', "é"]}) in ("red", 'gr"n', "é")
        assert re.fullmatch("[ab]{3}-[0-9]", ask(structured_outputs={"regex": "[ab]{3}-[0-9]"}))
        assert ask(structured_outputs={"grammar": 'start: "a" "b"'}) == "ab"
        for wrong in (
            {},
            {"regex": 3},
            {"choice": []},
            {"regex": "a", "grammar": "b"},
            {"regex": "("},
            {"nothing": "a"},
        ):
            assert ask(structured_outputs=wrong)[0] == 400, wrong
        assert ask(structured_outputs={"regex": "a"}, response_format=form) == (400, "structured_outputs")
