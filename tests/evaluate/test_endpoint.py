"""Benchmarks asked of an OpenAI-style endpoint that isn't ours: a small HTTP server over plain transformers."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("lm_eval")

import torch

from swift.cli import main
from swift.evaluate.endpoint import Endpoint, EndpointError, base_of, continuation_score
from tests import tiny
from tests.evaluate.material import arc, write_jsonl


class Server:
    """Completions with echo (if `echoes`) and chat of a tiny model. From request number `dies_at` on it answers 500."""

    def __init__(self, echoes: bool = True, dies_at: int | None = None, reply: str = "B"):
        self.model, self.tokenizer = tiny.model(), tiny.tokenizer()
        self.echoes, self.dies_at, self.reply = echoes, dies_at, reply
        self.bodies: list[dict] = []
        self.lock = threading.Lock()

    def answer(self, path: str, body: dict) -> tuple[int, dict]:
        with self.lock:
            self.bodies.append(body)
            if self.dies_at is not None and len(self.bodies) > self.dies_at:
                return 500, {"error": {"message": "out of order"}}
            if body["model"] != "tiny":
                return 404, {"error": {"message": "no such model"}}
            if path.endswith("chat/completions"):
                if "max_tokens" in body:
                    return 400, {"error": {"message": "use 'max_completion_tokens' instead"}}
                message = {"role": "assistant", "content": self.reply}
                return 200, {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 5}}
            if body.get("echo") and not self.echoes:
                return 400, {"error": {"message": "echo is not supported"}}
            return 200, self.echo(body["prompt"])

    def echo(self, prompt: str) -> dict:
        encoded = self.tokenizer(prompt, return_offsets_mapping=True)
        ids = encoded["input_ids"]
        with torch.no_grad():
            logits = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        values = [None, *(float(logits[i - 1, ids[i]]) for i in range(1, len(ids)))]
        tops = [None, *({"x": float(logits[i - 1].max())} for i in range(1, len(ids)))]
        made = int(logits[-1].argmax())
        tokens = [prompt[a:b] for a, b in encoded["offset_mapping"]]
        logprobs = {
            "tokens": [*tokens, "made"],
            "token_logprobs": [*values, -1.0],
            "top_logprobs": [*tops, {"x": -1.0}],
            "text_offset": [*(a for a, _ in encoded["offset_mapping"]), len(prompt)],
        }
        text = prompt + self.tokenizer.decode([made])
        return {"choices": [{"text": text, "logprobs": logprobs}], "usage": {"prompt_tokens": len(ids)}}

    @contextlib.contextmanager
    def running(self):
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def send(self, status, content):
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self):
                self.send(200, {"data": [{"id": "tiny"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.send(*outer.answer(self.path, body))

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


@pytest.fixture
def evaluate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("swift.evaluate.endpoint.FIRST_PAUSE_SECONDS", 0.0)
    write_jsonl(tmp_path / "data" / "arc_challenge.jsonl", arc(8))

    def run(*words):
        options = ["--local_dataset", "data", "--eval_dataset", "ARC_c", "--eval_limit", "8", "--eval_num_proc", "3"]
        code = main(["eval", *options, *words])
        runs = sorted((tmp_path / "eval_output").rglob("results/ARC_c.json"), key=lambda p: p.stat().st_mtime)
        out = capsys.readouterr()
        return code, json.loads(runs[-1].read_text()) if runs else None, out.err

    return run


def test_the_score_is_that_of_the_same_model_loaded_here(evaluate, tmp_path):
    tiny.checkpoint(tmp_path / "model")
    with Server().running() as url:
        code, there, err = evaluate("--eval_url", url)
    assert code == 0, err
    code, here, err = evaluate("--model", "model", "--torch_dtype", "float32")
    assert code == 0, err
    assert there["mode"] == here["mode"] == "log-likelihood"
    assert (
        there["metrics"]["acc_norm"] == here["metrics"]["acc_norm"]
        and there["metrics"]["acc"] == here["metrics"]["acc"]
    )
    samples = sorted((tmp_path / "eval_output").rglob("samples/ARC_c.jsonl"))
    one, other = ([json.loads(line)["logprobs"] for line in path.read_text().splitlines()] for path in samples)
    for ours, theirs in zip(one, other, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)


def test_without_echo_questions_are_asked_by_generation_and_that_is_said(evaluate):
    server = Server(echoes=False, reply="<think>A?</think>The answer is B")
    with server.running() as url:
        code, result, err = evaluate("--eval_url", f"{url}/chat/completions", "--model", "tiny")
    assert code == 0, err
    assert result["mode"] == "generation" and result["prompts"] == "chat template" and "by generation" in err
    assert result["score"] == pytest.approx(2 / 8) and result["unparsed"] == 0 and result["tokens"]["prompt"] == 40
    assert "max_completion_tokens" in server.bodies[-1]


def test_an_endpoint_that_dies_loses_nothing(evaluate, tmp_path):
    dying = Server(dies_at=14)
    with dying.running() as url:
        code, result, err = evaluate("--eval_url", url)
        assert code == 4 and result is None and "goes on from there" in err and "out of order" in err
        dying.dies_at = None
        dying.bodies.clear()
        code, result, err = evaluate("--eval_url", url)
    assert code == 0 and result["n"] == 8, err
    assert "going on with" in err
    asked = sum("Question" in body.get("prompt", "") for body in dying.bodies)
    assert asked == 32 - (14 - 2)  # two requests found out what it can


@pytest.mark.parametrize(
    "words, code, told",
    [
        (["--model", "large"], 2, "it has: tiny"),
        (["--eval_dataset_args", '{"arc_c": {"mode": "generation", "few_shot_num": 5}}'], 2, "no examples"),
        (["--merge_lora", "true"], 2, "runs elsewhere"),
    ],
)
def test_mistakes(evaluate, words, code, told):
    with Server().running() as url:
        found, _, err = evaluate("--eval_url", url, *words)
    assert found == code and told in err


def test_nobody_at_the_address(evaluate):
    code, _, err = evaluate("--eval_url", "http://127.0.0.1:9/v1")
    assert code == 4 and "no answer" in err


def test_bases():
    for url in ("http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "http://h:1/v1/chat/completions"):
        assert base_of(url) == "http://h:1/v1"
    assert base_of("https://h/api/v3/") == "https://h/api/v3"


def test_a_token_over_the_border_counts_and_the_generated_one_does_not():
    logprobs = {
        "tokens": ["a", "b c", "d", "made"],
        "token_logprobs": [None, -1.0, -2.0, -9.0],
        "text_offset": [0, 1, 4, 5],
    }
    assert continuation_score(logprobs, 2, 5)[0] == -3.0
    logprobs.pop("text_offset")
    assert continuation_score(logprobs, 4, 5)[0] == -2.0
    with pytest.raises(EndpointError):
        continuation_score({"tokens": ["x"], "token_logprobs": [-1.0], "text_offset": [5]}, 2, 5)


def test_stops_beyond_the_limit_of_the_api_are_cut_here(monkeypatch):
    from swift.evaluate.answering import Ask
    from swift.evaluate.endpoint import Client

    client = Client("http://h/v1", None)
    bodies = []
    answer = {"choices": [{"text": "one STOP two", "finish_reason": "stop"}]}
    monkeypatch.setattr(client, "call", lambda path, body, attempts=1: bodies.append(body) or answer)
    endpoint = Endpoint(client, "m", 1, True, True)
    made = next(endpoint.generate([Ask("p", until=("a", "b", "c", "d", "STOP"))]))[1]
    assert made.text == "one " and bodies[0]["stop"] == ["a", "b", "c", "d"]
