"""Seeded random conversations: system or none, several turns, unicode, code, empty turns, tools, reasoning."""

from __future__ import annotations

import random

TEXTS = [
    "Hello!",
    "What is 1+1?",
    "你好，请介绍一下你自己。",
    "Ünïcödé — “quotes” 🙂👩‍👩‍👧 e\u0301",
    "def add(a, b):\n    return a + b\n\n# done\n",
    "  leading and trailing spaces  ",
    "\nstarts with a newline",
    "a | b\n--|--\n1 | 2\n\n\nthe end",
    '{"json": [1, 2, {"x": null}]} <b>html</b> & more',
    "مرحبا بالعالم",
    "x" * 40,
]
THOUGHTS = ["Let me think.", "First 1.\nThen 2.\n\nSo 3.", "我想一想", 'It is "easy".']
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Current weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name of the city."},
                    "days": {"type": "integer", "description": "How many days."},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search the web.",
            "parameters": {
                "type": "object",
                "properties": {"query": {"type": "string", "description": "What to look for."}},
                "required": ["query"],
            },
        },
    },
]


def conversation(
    seed: int,
    *,
    system: bool = True,
    reasoning: bool = False,
    tools: bool = False,
    parallel: bool = False,
    empty: bool = False,
    rounds: int | None = None,
) -> dict:
    """A row {"messages", "tools"?} that alternates user and assistant and ends with an assistant message.

    system: may begin with a system message. empty: replies may be empty. parallel: up to three calls in a message.
    """
    rng = random.Random(seed)
    messages: list[dict] = []
    if system and rng.random() < 0.5:
        messages.append({"role": "system", "content": rng.choice(TEXTS[:5])})
    for _ in range(rounds or rng.randint(1, 4)):
        messages.append({"role": "user", "content": rng.choice(TEXTS)})
        if tools and rng.random() < 0.6:
            for _ in range(rng.randint(1, 2)):
                messages += _calls(rng, rng.randint(1, 3) if parallel else 1, reasoning)
        content = "" if empty and rng.random() < 0.2 else rng.choice(TEXTS)
        messages.append(_thinking({"role": "assistant", "content": content}, rng, reasoning))
    row: dict = {"messages": messages}
    if tools:
        row["tools"] = TOOLS
    return row


def _calls(rng: random.Random, count: int, reasoning: bool) -> list[dict]:
    calls, results = [], []
    for _ in range(count):
        identity = "".join(rng.choice("abcdefghij0123456789") for _ in range(9))
        if rng.random() < 0.5:
            name, arguments = "get_weather", {"city": rng.choice(["Paris", "北京"]), "days": rng.randint(1, 9)}
        else:
            name, arguments = "search", {"query": rng.choice(TEXTS[:5])}
        calls.append({"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}})
        result = rng.choice(['{"temperature": 20}', "sunny", "没有结果"])
        results.append({"role": "tool", "name": name, "tool_call_id": identity, "content": result})
    return [_thinking({"role": "assistant", "content": "", "tool_calls": calls}, rng, reasoning), *results]


def _thinking(message: dict, rng: random.Random, reasoning: bool) -> dict:
    if reasoning and rng.random() < 0.8:
        return {**message, "reasoning_content": rng.choice(THOUGHTS)}
    return message
