"""A server under unkind load: is every valid request answered, and is everything given back afterwards?

    python benchmarks/serve_load.py --model DIR [--requests 1000] [--clients 200] [--rounds 3]

Starts `swift deploy` with the model and lets `clients` openai clients send `requests` requests between them: a tenth
is invalid, a fifth of the clients leave before they have their answer, half stream, answers have 1 to 512 tokens.
/health is asked all the time; the memory after each round shows whether it grows or levels off. Exits non-zero when a
valid request isn't answered, a wrong one is not a 400, /health fails, or something is still held at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import openai

ROOT = Path(__file__).resolve().parents[1]


def resident(pid: int) -> float:
    """MB that the process holds in memory."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


async def one(client: openai.AsyncOpenAI, number: int, longest: int) -> str:
    chance = random.Random(number)
    text = "word " * chance.randint(1, 120)
    length = chance.choice((1, 2, 8, chance.randint(1, 64), chance.randint(1, longest)))
    asked = {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": length, "temperature": 0}
    if number % 10 == 9:
        try:
            await client.chat.completions.create(**{**asked, "temperature": -1})
        except openai.BadRequestError:
            return "invalid, told so"
        return "INVALID, NOT TOLD"
    leaves = number % 5 == 0
    while True:
        try:
            if leaves:
                asked["max_tokens"] = longest
                stream = await client.chat.completions.create(**asked, stream=True)
                await anext(aiter(stream))
                await stream.close()
                return "left"
            if number % 2:
                stream = await client.chat.completions.create(**asked, stream=True)
                reasons = [c.choices[0].finish_reason async for c in stream if c.choices]
                return "answered" if reasons[-1] in ("stop", "length") else "CUT"
            reply = await client.chat.completions.create(**asked)
            return "answered" if reply.choices[0].finish_reason in ("stop", "length") else "CUT"
        except openai.RateLimitError as error:  # the queue is full: come back when the server says
            await asyncio.sleep(float(error.response.headers["retry-after"]) * chance.random())


async def load(url: str, args: argparse.Namespace) -> tuple[Counter[str], Counter[int]]:
    health: Counter[int] = Counter()

    async def worker(numbers: list[int]) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=3000) as client:
            return [await one(client, number, args.longest) for number in numbers]

    async def watch() -> None:
        async with httpx.AsyncClient(timeout=60) as http:
            while True:
                health[(await http.get(f"{url}/health")).status_code] += 1
                await asyncio.sleep(0.5)

    watching = asyncio.ensure_future(watch())
    numbers = list(range(args.requests))
    outcomes = await asyncio.gather(*(worker(numbers[k :: args.clients]) for k in range(args.clients)))
    watching.cancel()
    return Counter(outcome for part in outcomes for outcome in part), health


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--longest", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "swift", "deploy", "--model", args.model, "--port", str(port)]
    command += ["--served_model_name", "m", "--max_batch_size", "32", "--log_level", "warning"]
    command += ["--request_timeout", "3000"]
    server = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        while not _up(url):
            assert server.poll() is None, "the server ended"
            time.sleep(0.5)
        asyncio.run(load(url, argparse.Namespace(**{**vars(args), "requests": 40, "clients": 40})))  # warm
        memory, outcomes, health = [resident(server.pid)], Counter[str](), Counter[int]()
        began = time.monotonic()
        for _ in range(args.rounds):
            for total, part in zip((outcomes, health), asyncio.run(load(url, args)), strict=True):
                total.update(part)
            time.sleep(3)
            memory.append(resident(server.pid))
        seconds = time.monotonic() - began
        held = httpx.get(f"{url}/health").json()
        metrics = dict(line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics").text.splitlines() if line[0] != "#")
    finally:
        server.terminate()
        server.wait(60)
    kept = {name: metrics[f"swift_{name}"] for name in ("requests_active", "engine_kv_tokens")}
    print(f"{seconds:.0f} s; {dict(outcomes)}; /health {dict(health)}; {held}; {kept}")
    shown = ", ".join(f"{megabytes:.0f}" for megabytes in memory[1:])
    print(f"resident memory {memory[0]:.0f} MB after 40 requests, then after each {args.requests}: {shown} MB")
    fine = set(outcomes) <= {"answered", "left", "invalid, told so"} and set(health) == {200}
    return 0 if fine and held["running"] == held["waiting"] == 0 and set(map(float, kept.values())) == {0.0} else 1


def _up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


if __name__ == "__main__":
    sys.exit(main())
