"""It keeps working: keys, limits, full queues, lost clients, time limits, dead engines, shutdown, and load."""

import asyncio
import json
import threading
import time

import httpx
import openai
import pytest

from swift.engines.protocol import Sampling
from swift.serve.health import Watch
from swift.serve.service import Limits, Settings
from tests.serve.served import PacedEngine, running, service


def settings(**more):
    limits = Limits(**{k: more.pop(k) for k in list(more) if k in Limits.__dataclass_fields__})
    return Settings(names=("tiny",), limits=limits, **more)


def chat(text="hi", **more):
    return {"messages": [{"role": "user", "content": text}], **more}


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


PATH = "/v1/chat/completions"


def test_the_key():
    with running(service(settings=settings(api_key="secret"))) as url, httpx.Client(base_url=url) as http:
        wrong = http.post(PATH, json=chat())
        assert wrong.status_code == 401
        assert wrong.json()["error"]["code"] == "invalid_api_key"
        assert http.get("/v1/models", headers={"Authorization": "Bearer other"}).status_code == 401
        assert http.get("/metrics").status_code == 401
        assert http.post("/v1/messages", json={}).json()["type"] == "error"
        assert http.get("/v1/models", headers={"Authorization": "Bearer secret"}).status_code == 200
        assert http.get("/v1/models", headers={"x-api-key": "secret"}).status_code == 200
        assert http.get("/health").status_code == 200
        assert http.get("/nowhere").status_code == 401


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{", {"Content-Type": "application/json"}, 400),
        (b"[]", {"Content-Type": "application/json"}, 400),
        (b'{"messages": NaN}', {"Content-Type": "application/json"}, 400),
        (b"[" * 100_000, {"Content-Type": "application/json"}, 400),
        (b'{"messages":[{"role":"user","content":"\\ud800"}]}', {"Content-Type": "application/json"}, 400),
        (b'{"messages":[{"role":"user","content":"\xff"}]}', {"Content-Type": "application/json"}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b" " * 5000, {"Content-Type": "application/json"}, 413),
    ],
)
def test_bodies_that_are_none(content, headers, status):
    with running(service(settings=settings(max_body=4096 if status == 413 else 2**20))) as url:
        reply = httpx.post(url + PATH, content=content, headers=headers)
        assert reply.status_code == status
        assert set(reply.json()["error"]) == {"message", "type", "param", "code"}
        assert httpx.post(url + PATH, json=chat()).status_code == 200


def test_a_body_without_a_length_is_limited_too():
    def parts():
        yield from [b" " * 1000] * 100

    with running(service(settings=settings(max_body=4096))) as url:
        reply = httpx.post(url + PATH, content=parts(), headers={"Content-Type": "application/json"})
        assert reply.status_code == 413


def test_paths_and_methods_that_are_not_there():
    with running(service()) as url:
        for reply, status in (
            (httpx.get(url + "/v2"), 404),
            (httpx.get(url + PATH), 405),
            (httpx.put(url + "/health"), 405),
        ):
            assert reply.status_code == status
            assert reply.json()["error"]["message"]


def test_a_full_queue_is_429_with_retry_after():
    engine = PacedEngine(rows=1)
    with running(service(engine, settings(max_queue=1))) as url:
        engine.frozen = True
        threads = [threading.Thread(target=httpx.post, args=(url + PATH,), kwargs={"json": chat()}) for _ in range(2)]
        for thread in threads:
            thread.start()
        wait_until(lambda: engine.stats().waiting == 2)
        reply = httpx.post(url + PATH, json=chat())
        assert reply.status_code == 429
        assert int(reply.headers["retry-after"]) >= 1
        assert reply.json()["error"]["code"] == "queue_full"
        engine.frozen = False
        for thread in threads:
            thread.join()
        assert httpx.post(url + PATH, json=chat()).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_request(stream):
    engine = PacedEngine(pause=0.005)
    served = service(engine)
    with running(served) as url, httpx.Client() as http:
        if stream:
            with http.stream("POST", url + PATH, json=chat("x" * 5000, stream=True)) as reply:
                next(reply.iter_bytes())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(url + PATH, json=chat("x" * 5000), timeout=0.2)
        wait_until(lambda: engine.stats().cancelled == 1)
        wait_until(lambda: served.active == 0 and not served.open)
        assert engine.stats().running == 0


def test_a_client_that_leaves_the_queue_is_never_computed():
    engine = PacedEngine(rows=1)
    with running(service(engine)) as url:
        engine.frozen = True
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url + PATH, json=chat("abc"), timeout=0.1)
        engine.frozen = False
        wait_until(lambda: engine.stats().cancelled == 3)
        assert engine.stats().generated_tokens == 0


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_the_time_limit_ends_a_request_even_when_the_engine_is_dead(stream, frozen):
    engine = PacedEngine()
    served = service(engine, settings(request_timeout=0.2))
    with running(served) as url:
        engine.frozen = frozen
        reply = httpx.post(url + PATH, json=chat("x" * 5000, stream=stream))
        if stream and not frozen:
            events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line]
            assert events[-1] == "[DONE]"
            assert json.loads(events[-2])["error"]["code"] == "timeout"
        else:
            assert reply.status_code == 503
            assert reply.json()["error"]["code"] == "timeout"
        engine.frozen = False
        wait_until(lambda: engine.stats().cancelled == 1)
        assert served.active == 0


def test_slow_readers_hold_nobody_up():
    """One client takes nothing of a long answer; others are answered meanwhile, and it is given up."""
    import socket

    engine = PacedEngine(pause=0.0005, answer=lambda messages: str(messages[-1]["content"]) * 300)
    served = service(engine, settings(reader_timeout=0.5))
    with running(served) as url:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps(chat("y" * 20, stream=True, max_tokens=6000)).encode()
        with socket.create_connection((host, int(port))) as lazy:
            lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            lines = (
                f"POST {PATH} HTTP/1.1",
                "Host: x",
                "Content-Type: application/json",
                f"Content-Length: {len(body)}",
            )
            head = "\r\n".join((*lines, "", ""))
            lazy.sendall(head.encode() + body)
            wait_until(lambda: engine.stats().generated_tokens > 10)
            reply = httpx.post(url + PATH, json=chat("z", max_tokens=20), timeout=5)
            assert reply.status_code == 200
            wait_until(lambda: served.active == 0, 15)
        assert not served.open


def test_health_tells_the_truth():
    engine = PacedEngine()
    served = service(engine)

    async def main():
        watch = Watch(served, fresh=0.0, answer_within=0.3, patience=0.3)
        idle = await watch.check()
        engine.frozen = True
        dead = await watch.check()
        stuck = engine.submit(served.probe)
        await asyncio.sleep(0.35)
        busy = await watch.check()
        engine.frozen = False
        stuck.cancel()
        await asyncio.sleep(0.1)
        back = await watch.check()
        return idle, dead, busy, back

    idle, dead, busy, back = asyncio.run(main())
    assert idle.ok and back.ok
    assert not dead.ok and "didn't answer" in dead.reason
    assert not busy.ok and "no token" in busy.reason
    served.close()


def test_shutdown_lets_what_runs_finish_and_refuses_the_rest():
    engine = PacedEngine(pause=0.005)
    served = service(engine)
    replies = []
    with running(served) as url:
        thread = threading.Thread(target=lambda: replies.append(httpx.post(url + PATH, json=chat("a" * 100))))
        thread.start()
        wait_until(lambda: engine.stats().running == 1)
        served.draining = True
        assert httpx.post(url + PATH, json=chat()).status_code == 503
        assert httpx.get(url + "/health").status_code == 503
    thread.join()
    assert replies[0].status_code == 200


def test_stopping_ends_what_runs_with_an_error():
    engine = PacedEngine()
    served = service(engine)
    replies = []
    with running(served) as url:
        post = {"json": chat("a" * 5000)}
        thread = threading.Thread(target=lambda: replies.append(httpx.post(url + PATH, **post)))
        thread.start()
        wait_until(lambda: engine.stats().running == 1)
        engine.frozen = True
        served.stop()
        thread.join()
    assert replies[0].status_code == 503
    assert replies[0].json()["error"]["code"] == "shutting_down"


def test_prompts_are_logged_only_when_asked(caplog):
    for verbose in (False, True):
        caplog.clear()
        with caplog.at_level("INFO"), running(service(settings=settings(verbose=verbose))) as url:
            httpx.post(url + PATH, json=chat("zqsecret"))
        assert ("zqsecret" in caplog.text) == verbose
        assert PATH in caplog.text


def test_the_servers_defaults_stand_behind_a_request():
    defaults = Sampling(max_new_tokens=3)
    with running(service(settings=settings(defaults=defaults))) as url:
        assert httpx.post(url + PATH, json=chat("abcdef")).json()["choices"][0]["message"]["content"] == "abc"
        reply = httpx.post(url + PATH, json=chat("abcdef", max_tokens=5)).json()
        assert reply["choices"][0]["message"]["content"] == "abcde"


def test_load_with_leavers_and_bad_requests():
    """100 requests from 20 clients; a fifth leaves, a tenth is invalid: all others answered, nothing left running."""
    engine = PacedEngine(pause=0.001, rows=8)
    served = service(engine, settings(max_queue=200))
    health = []

    async def one(client, i):
        text = f"{i} " + "abcdefgh" * (1 + i % 7)
        if i % 10 == 9:
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": text}], temperature=-1
                )
            return "invalid"
        if i % 5 == 0:
            endless = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 9000}]}
            if i % 2:
                stream = await client.chat.completions.create(**endless, stream=True)
                await anext(aiter(stream))
                await stream.close()
            else:
                with pytest.raises(openai.APITimeoutError):
                    await client.with_options(timeout=0.5).chat.completions.create(**endless)
            return "left"
        if i % 2:
            stream = await client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": text}], stream=True
            )
            shown = "".join([c.choices[0].delta.content or "" async for c in stream])
        else:
            reply = await client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}])
            shown = reply.choices[0].message.content
        assert shown == text
        return "answered"

    async def worker(url, numbers):
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            return [await one(client, i) for i in numbers]

    async def main(url):
        numbers = list(range(100))
        workers = [worker(url, numbers[k::20]) for k in range(20)]
        async with httpx.AsyncClient() as http:

            async def watch():
                while True:
                    health.append((await http.get(f"{url}/health")).status_code)
                    await asyncio.sleep(0.05)

            watching = asyncio.ensure_future(watch())
            outcomes = await asyncio.gather(*workers)
            watching.cancel()
        return [outcome for part in outcomes for outcome in part]

    with running(served) as url:
        outcomes = asyncio.run(main(url))
        wait_until(lambda: served.active == 0 and not served.open)
        wait_until(lambda: engine.stats().running == engine.stats().waiting == 0)
    assert (outcomes.count("answered"), outcomes.count("left"), outcomes.count("invalid")) == (70, 20, 10)
    assert set(health) == {200}
    assert 0 < engine.stats().cancelled <= 20  # who leaves before the engine has his request needs no cancelling
    assert engine.stats().finished - 70 <= len(health)  # the rest are the questions of /health
