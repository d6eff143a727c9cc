"""The chat speaks to `swift deploy` children over HTTP, streams what they say, and leaves none of them behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from swift.engines.fake import FakeEngine
from swift.engines.protocol import Sampling
from swift.errors import SwiftError, UsageError
from swift.web import supervise
from swift.web.api import Api
from swift.web.chat import Chat, ChatApi, Spec, base_of, messages_of, sampling_of
from tests.serve.served import PacedEngine, running, service

ROOT = str(Path(__file__).resolve().parents[2])
HELLO = [{"role": "user", "content": "hello there"}]


def wait_for(condition, seconds=40.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def whole(chat, id):
    return wait_for(lambda: chat.fetch(id) if chat.fetch(id).done else None)


@pytest.fixture
def chat(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ROOT)
    chat = Chat(tmp_path)
    yield chat
    chat.close()


def test_an_answer_grows_and_ends_like_the_endpoints(chat):
    with running(service(FakeEngine())) as address:
        api = Api("en", ChatApi(chat).table)
        spec = {"model": f"{address}/v1", "options": ""}
        assert api.call({"what": "chat_load", "args": {"spec": spec}})["state"] == "ready"
        asked = {"spec": spec, "messages": HELLO, "system": "", "sampling": {"max_new_tokens": "40"}}
        id = api.call({"what": "chat_send", "args": asked})["id"]
        text, got = "", {"done": False}
        while not got["done"]:
            got = api.call({"what": "chat_fetch", "args": {"id": id, "have": len(text)}})
            text += got["more"]
        assert got["failure"] == "" and "hello there" in text and got["length"] == len(text)


def test_stopping_ends_an_answer_early(chat):
    with running(service(PacedEngine(pause=0.02, answer=lambda request: "x" * 2000))) as address:
        spec = Spec(address)
        chat.load(spec)
        id = chat.send(spec, HELLO, Sampling(max_new_tokens=2000))
        wait_for(lambda: len(chat.fetch(id).text) > 3)
        chat.stop(id)
        answer = whole(chat, id)
        assert answer.reason == "cancelled" and 3 < len(answer.text) < 1500


def test_what_an_endpoint_refuses_is_said_in_the_language_of_the_page(chat):
    with running(service(FakeEngine())) as address:
        spec, table = {"model": address, "options": ""}, ChatApi(chat).table
        asked = {"spec": spec, "messages": [{**HELLO[0], "images": ["data:image/png;base64,AAAA"]}], "system": ""}
        for lang, words in (("en", "takes text only"), ("zh", "这个模型只接受文本")):
            api = Api(lang, table)
            api.call({"what": "chat_load", "args": {"spec": spec}})
            id = api.call({"what": "chat_send", "args": asked})["id"]
            whole(chat, id)
            said = api.call({"what": "chat_fetch", "args": {"id": id}})["failure"]
            assert words in said, said


def test_an_endpoint_that_is_not_there_is_said(chat):
    spec = Spec("http://127.0.0.1:9")
    chat.load(spec)
    with pytest.raises(SwiftError, match="no model is served there"):
        chat.send(spec, HELLO, Sampling())


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_model_is_served_by_a_child_with_a_key_that_ends_with_us(chat, tmp_path, monkeypatch, lang):
    monkeypatch.setenv("SWIFT_LANG", lang)  # nobody reads the child's words
    spec = Spec("anything", "--infer_backend fake")
    assert chat.load(spec)[0] == "loading"
    wait_for(lambda: chat.state(spec)[0] == "ready")
    child = chat._servers[spec]._child
    line = Path(f"/proc/{child.pid}/cmdline").read_text() if Path("/proc").exists() else ""
    assert chat._servers[spec]._key not in line
    assert "hello" in whole(chat, chat.send(spec, HELLO, Sampling(max_new_tokens=30))).text
    chat.load(Spec("http://127.0.0.1:9"), keep=())
    assert child.poll() is not None and chat.state(spec)[0] == "none"
    assert not list(tmp_path.glob("chat-*"))


def test_a_model_that_can_not_be_loaded_says_why(chat):
    spec = Spec("./no/such/model")
    chat.load(spec)
    wait_for(lambda: chat.state(spec)[0] == "failed")
    assert "no/such/model" in chat.state(spec)[1]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_page_server_leaves_no_model_server(tmp_path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from swift.web.chat import Chat, Spec
        chat, spec = Chat(Path(sys.argv[1])), Spec("anything", "--infer_backend fake")
        while chat.load(spec, [spec])[0] != "ready":
            time.sleep(0.05)
        print(chat._servers[spec]._child.pid, flush=True)
        time.sleep(60)
    """)
    page = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    pid = int(page.stdout.readline())
    assert supervise.birth(pid)
    page.send_signal(signal.SIGKILL)
    page.wait()
    wait_for(lambda: supervise.birth(pid) == "", 20)
    assert list(tmp_path.glob("chat-*"))
    Chat(tmp_path)
    assert not list(tmp_path.glob("chat-*"))


def test_adapters_and_their_base_are_told_from_files(tmp_path):
    run = tmp_path / "run"
    adapter = run / "checkpoint-2"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "by-peft"}')
    assert Spec(str(adapter)).argv() == ["deploy", "--adapters", str(adapter)]
    assert Spec(str(run)).argv() == ["deploy", "--adapters", str(run)]
    assert Spec("some/name").argv() == ["deploy", "--model", "some/name"]
    assert base_of(str(adapter)) == "by-peft"
    (run / "args.json").write_text('{"model_path": "/by/swift", "options": {"model": "x"}}')
    assert base_of(str(adapter)) == "/by/swift"
    (adapter / "adapter_config.json").write_text("{")
    (run / "args.json").write_text("[]")
    assert base_of(str(adapter)) == base_of("nothing") == ""


@pytest.mark.parametrize(
    "options", ["--host 0.0.0.0", "--api_key x", "--port 1", "--modle x", "'", "--max_batch_size 0"]
)
def test_options_that_can_not_be_or_are_the_chats_own_are_refused(options):
    with pytest.raises(UsageError):
        Spec("m", options).argv()


def test_what_a_page_sends_is_checked():
    for bad in (None, [], "x", [{"role": "system", "content": "x"}], [{"role": "user", "content": 3}], [3]):
        with pytest.raises(UsageError):
            messages_of(bad, "")
    for bad in ({"temperature": "hot"}, {"temperature": "-1"}, {"top_p": "2"}, {"seed": "nan"}, {"temperature": "nan"}):
        with pytest.raises(UsageError):
            sampling_of(bad)
    assert sampling_of({"temperature": "0", "top_k": "", "x": "y"}) == Sampling(temperature=0.0)
    image = {"role": "user", "content": "what?", "images": ["data:image/png;base64,AA", "file:///etc/passwd", 3]}
    (message,) = messages_of([image], None)
    assert [part["type"] for part in message["content"]] == ["image_url", "text"]
