"""A program that stands for vLLM's server in tests: its command line, its bodies and chunks, and no model.

The next token depends on the last one alone (and on the adapter): a Markov chain whose log-probabilities are known
exactly. A prompt that holds POISON makes it print an error and die. Starts in a fraction of a second.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

POISON = 5  # a token id (<tool_call>'s in tiny.tokenizer)
LAST_WORDS = "RuntimeError: the stand-in was given poison"
SPECIAL, VOCABULARY, BRANCHES = 7, 512, 12


def install(folder: Path) -> str:
    """Make `folder` a place where vllm.entrypoints.openai.api_server is this file; the PYTHONPATH for it."""
    package = folder / "vllm" / "entrypoints" / "openai"
    package.mkdir(parents=True)
    for path in (package, package.parent, package.parent.parent):
        (path / "__init__.py").touch()
    (package / "api_server.py").write_text("from tests.engines.standin import main\n\nmain()\n")
    return os.pathsep.join([str(folder), str(Path(__file__).resolve().parents[2])])


def chain(last: int, salt: str, bias: dict[int, float]) -> dict[int, float]:
    """token -> log-probability after `last`."""
    chance = random.Random(f"{salt}{last}")
    scores = {chance.randrange(SPECIAL, VOCABULARY): chance.uniform(0, 4) for _ in range(BRANCHES)}
    for token, more in bias.items():
        scores[token] = scores.get(token, -10.0) + more
    total = math.log(sum(map(math.exp, scores.values())))
    return {token: score - total for token, score in sorted(scores.items(), key=lambda item: -item[1])}


class Answer:
    """What a body of /v1/completions asks for, token by token."""

    def __init__(self, server: Server, body: dict):
        self.body, self.prompt = body, list(body["prompt"])
        self.salt = "" if body["model"] == server.name else body["model"]
        self.bias = {int(token): value for token, value in (body.get("logit_bias") or {}).items()}
        self.chance = random.Random(body.get("seed", time.time_ns()))
        self.decode = lambda ids: server.tokenizer.decode(ids, skip_special_tokens=False)

    def choose(self, scores: dict[int, float]) -> int:
        temperature = self.body.get("temperature", 1.0)
        if temperature == 0:
            return next(iter(scores))
        return self.chance.choices(list(scores), [math.exp(score / temperature) for score in scores.values()])[0]

    def steps(self):
        """(new text, token, its scores without bias, finish_reason, stop_reason)"""
        body, ids, shown = self.body, [], ""
        limit, stops = body["max_tokens"], body.get("stop") or []
        while True:
            last = (self.prompt + ids)[-1]
            token = self.choose(chain(last, self.salt, self.bias))
            ids.append(token)
            reason = stopped = None
            text = self.decode(ids)
            if token in body.get("stop_token_ids", ()) and len(ids) > body.get("min_tokens", 0):
                reason, stopped, text = "stop", token, self.decode(ids[:-1])
            for stop in stops:
                if reason is None and stop in text:
                    reason, stopped, text = "stop", stop, text[: text.index(stop)]
            if reason is None and len(ids) == limit:
                reason = "length"
            held = 0 if reason else max((len(stop) - 1 for stop in stops), default=0)
            ready = max(len(shown), len(text) - held)
            if reason is None and text.endswith("\ufffd"):
                ready = len(shown)  # the end of a character is still to come
            new, shown = text[len(shown) : ready], text[:ready]
            yield new, token, chain(last, self.salt, {}), reason, stopped
            if reason is not None:
                return

    def logprobs(self, token: int, scores: dict[int, float]) -> dict | None:
        count = self.body.get("logprobs")
        if count is None:
            return None
        top = {**dict(list(scores.items())[:count]), token: scores.get(token, -99.0)}
        named = {f"token_id:{i}": value for i, value in top.items()}
        return {
            "tokens": [f"token_id:{token}"],
            "token_logprobs": [scores.get(token, -99.0)],
            "top_logprobs": [named],
            "text_offset": [0],
        }

    def prompt_logprobs(self) -> list | None:
        count = self.body.get("prompt_logprobs")
        if count is None:
            return None
        found: list[dict | None] = [None]
        for last, token in zip(self.prompt, self.prompt[1:], strict=False):
            scores = chain(last, self.salt, {})
            top = {**dict(list(scores.items())[:count]), token: scores.get(token, -99.0)}
            found.append({str(i): {"logprob": value, "rank": 1} for i, value in top.items()})
        return found


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, args: argparse.Namespace):
        from tokenizers import Tokenizer

        super().__init__((args.host, args.port), Handler)
        self.tokenizer = Tokenizer.from_file(str(Path(args.model) / "tokenizer.json"))
        self.name, self.length, self.pause = args.served_model_name, args.max_model_len, args.pause
        self.adapters = {pair.partition("=")[0] for pair in args.lora_modules}
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/health":
            return self.reply(200, b"")
        names = [self.server.name, *sorted(self.server.adapters)]
        models = [{"id": name, "object": "model", "max_model_len": self.server.length} for name in names]
        return self.reply(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        if self.path == "/v1/load_lora_adapter":
            server.adapters.add(body["lora_name"])
            return self.reply(200, b"Success")
        if self.path == "/v1/unload_lora_adapter":
            server.adapters.discard(body["lora_name"])
            return self.reply(200, b"Success")
        if self.path != "/v1/completions":
            return self.refuse(404, "Not Found")
        if POISON in body["prompt"]:
            print(f"Traceback (most recent call last):\n{LAST_WORDS}", file=sys.stderr, flush=True)
            os._exit(1)
        if body["model"] not in (server.name, *server.adapters):
            return self.refuse(404, f"The model `{body['model']}` does not exist.")
        if len(body["prompt"]) + body["max_tokens"] > server.length:
            return self.refuse(400, f"This model's maximum context length is {server.length} tokens.")
        return self.stream(body) if body.get("stream") else self.whole(body)

    def whole(self, body: dict) -> None:
        answer = Answer(self.server, body)
        steps = list(answer.steps())
        scores = [answer.logprobs(token, found) for _, token, found, _, _ in steps]
        joined = None if scores[0] is None else {key: [s[key][0] for s in scores] for key in scores[0]}
        choice = {
            "index": 0,
            "text": "".join(step[0] for step in steps),
            "token_ids": [step[1] for step in steps],
            "logprobs": joined,
            "prompt_logprobs": answer.prompt_logprobs(),
            "finish_reason": steps[-1][3],
            "stop_reason": steps[-1][4],
        }
        self.reply(200, {"choices": [choice], "usage": usage(body, len(steps))})

    def stream(self, body: dict) -> None:
        answer, count = Answer(self.server, body), 0
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        for text, token, scores, reason, stopped in answer.steps():
            count += 1
            choice = {"index": 0, "text": text, "token_ids": [token], "logprobs": answer.logprobs(token, scores)}
            self.send({"choices": [choice | {"finish_reason": reason, "stop_reason": stopped}]})
            time.sleep(self.server.pause)
        self.send({"choices": [], "usage": usage(body, count)})
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True

    def send(self, value: dict) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()

    def refuse(self, status: int, message: str) -> None:
        self.reply(status, {"error": {"message": message, "type": "BadRequestError", "param": None, "code": status}})

    def reply(self, status: int, value: dict | bytes) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def usage(body: dict, count: int) -> dict:
    return {"prompt_tokens": len(body["prompt"]), "completion_tokens": count}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--model", "--host", "--served-model-name", "--dtype"):
        parser.add_argument(name)
    for name in ("--port", "--max-model-len", "--max-num-seqs", "--max-lora-rank", "--max-loras"):
        parser.add_argument(name, type=int, default=512)
    parser.add_argument("--enable-lora", action="store_true")
    parser.add_argument("--lora-modules", nargs="*", default=[])
    parser.add_argument("--pause", type=float, default=0.002)
    parser.add_argument("--ready-after", type=float, default=0.0)
    args = parser.parse_args()
    time.sleep(args.ready_after)
    Server(args).serve_forever()
