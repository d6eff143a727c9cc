"""/v1/chat/completions as the real openai client reads it."""

import asyncio
import json
from dataclasses import replace

import openai
import pytest

from swift.engines.fake import FakeEngine, echo
from tests.serve.served import FORM, running, service

CALLS = (
    'I look.<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>\n'
    '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>'
)
SCRIPT = {
    "call": CALLS,
    "think": "<think>\nlet me see < 3\n</think>\n\nyes",
    "think and call": "<think>which?</think>\n\n" + CALLS,
    "broken": "see <tool_call>{not json",
}
TOOL = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def answer(messages):
    asked = echo(messages)
    return SCRIPT.get(asked, asked)


@pytest.fixture(scope="module")
def url():
    with running(service(FakeEngine(answer))) as address:
        yield f"{address}/v1"


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as found:
        yield found


def ask(client, text, **more):
    return client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": text}], **more)


def test_a_whole_answer(client):
    reply = ask(client, "hello")
    assert reply.choices[0].message.content == "hello"
    assert reply.choices[0].message.tool_calls is None
    assert reply.choices[0].finish_reason == "stop"
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (5, 5, 10)
    assert reply.model == "tiny"


def test_a_streamed_answer_has_a_role_once_and_usage_only_when_asked(client):
    chunks = list(ask(client, "hello", stream=True))
    assert [c.choices[0].delta.role for c in chunks] == ["assistant"] + [None] * (len(chunks) - 1)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "hello"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(c.usage is None for c in chunks)
    assert len({c.id for c in chunks}) == 1
    chunks = list(ask(client, "hello", stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens == 10
    assert all(c.usage is None for c in chunks[:-1])


def test_length_and_stop(client):
    assert ask(client, "hello", max_tokens=2).choices[0].finish_reason == "length"
    assert ask(client, "hello", max_completion_tokens=2).choices[0].message.content == "he"
    reply = ask(client, "hello", stop="ll")
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == ("he", "stop")
    assert ask(client, "hello", stop=["o", "l"]).choices[0].message.content == "he"


def test_tool_calls_whole(client):
    reply = ask(client, "call", tools=[TOOL]).choices[0]
    assert reply.finish_reason == "tool_calls"
    assert reply.message.content == "I look."
    assert [json.loads(c.function.arguments)["city"] for c in reply.message.tool_calls] == ["Paris", "Rome"]
    assert len({c.id for c in reply.message.tool_calls}) == 2


def test_tool_calls_streamed_are_put_together_by_the_client(client):
    messages = [{"role": "user", "content": "call"}]
    with client.chat.completions.stream(model="tiny", messages=messages, tools=[TOOL]) as stream:
        kinds = [event.type for event in stream]
        reply = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.done" in kinds
    assert reply.finish_reason == "tool_calls"
    assert reply.message.content == "I look."
    assert [json.loads(c.function.arguments)["city"] for c in reply.message.tool_calls] == ["Paris", "Rome"]


def test_the_indices_of_streamed_calls_count_up(client):
    deltas = [c.choices[0].delta for c in ask(client, "call", tools=[TOOL], stream=True)]
    assert [call.index for d in deltas for call in d.tool_calls or ()] == [0, 1]


def test_parallel_tool_calls_false_gives_one_call(client):
    assert len(ask(client, "call", tools=[TOOL], parallel_tool_calls=False).choices[0].message.tool_calls) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_without_tools_the_same_text_is_content(client, stream):
    for more in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        reply = ask(client, "call", stream=stream, **more)
        content = (
            "".join(c.choices[0].delta.content or "" for c in reply) if stream else reply.choices[0].message.content
        )
        assert content == CALLS


@pytest.mark.parametrize("stream", [False, True])
def test_a_broken_call_is_content_or_an_error_never_lost(stream):
    def reading(text, tools):
        return {"role": "assistant", "content": text}

    with (
        running(service(FakeEngine(answer), form=replace(FORM, parse=reading))) as address,
        openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client,
    ):
        reply = ask(client, "broken", tools=[TOOL], stream=stream)
        content = (
            "".join(c.choices[0].delta.content or "" for c in reply) if stream else reply.choices[0].message.content
        )
        assert content == SCRIPT["broken"]


def test_reasoning_stands_apart(client):
    message = ask(client, "think").choices[0].message
    assert (message.reasoning_content, message.content) == ("let me see < 3", "yes")
    deltas = [c.choices[0].delta for c in ask(client, "think", stream=True)]
    assert "".join(d.content or "" for d in deltas) == "yes"
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "let me see < 3"


def test_reasoning_then_calls(client):
    message = ask(client, "think and call", tools=[TOOL]).choices[0].message
    assert message.reasoning_content == "which?"
    assert message.content == "I look."
    assert len(message.tool_calls) == 2


def test_several_choices(client):
    reply = ask(client, "abc", n=3)
    assert [c.index for c in reply.choices] == [0, 1, 2]
    assert [c.message.content for c in reply.choices] == ["abc"] * 3
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 9)
    texts = {0: "", 1: "", 2: ""}
    for chunk in ask(client, "abc", n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert set(texts.values()) == {"abc"}


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_cover_every_token(client, stream):
    reply = ask(client, "héy", logprobs=True, top_logprobs=2, stream=stream)
    parts = [c.choices[0].logprobs for c in reply] if stream else [reply.choices[0].logprobs]
    content = [entry for part in parts if part for entry in part.content]
    assert [entry.token for entry in content] == ["h", "é", "y"]
    assert content[1].bytes == list("é".encode())
    assert content[0].logprob == 0.0


def test_logprobs_of_held_back_text_are_not_lost(client):
    chunks = list(ask(client, "call", tools=[TOOL], logprobs=True, stream=True))
    content = [e.token for c in chunks if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert "".join(content) == CALLS


def test_a_conversation_with_tool_results_is_taken(client):
    made = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "tool_calls": [made]},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    reply = client.chat.completions.create(model="tiny", messages=messages, tools=[TOOL])
    assert reply.choices[0].message.content == "one\ntwo"


def test_the_async_client_runs_many_at_once(url):
    async def main():
        async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:

            async def one(i):
                stream = await ask(client, f"number {i}", stream=True)
                return "".join([c.choices[0].delta.content or "" async for c in stream])

            return await asyncio.gather(*map(one, range(20)))

    assert asyncio.run(main()) == [f"number {i}" for i in range(20)]


def test_harmless_parameters_are_accepted(client):
    reply = ask(client, "hi", user="me", store=False, metadata={"a": "b"}, presence_penalty=0, logit_bias={}, seed=3)
    assert reply.choices[0].message.content == "hi"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"presence_penalty": 5}, "presence_penalty"),
        ({"logit_bias": {"five": 1}}, "logit_bias"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "retrieval", "function": {}}]}, "tools[0].type"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"temprature": 1}}, "temprature"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_what_is_not_supported_is_named(client, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "hi", **more)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    assert caught.value.body["message"]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "boss", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages[0].content[0]"),
        ([{"role": "tool", "content": "x", "tool_call_id": "none"}], "messages[0]"),
        (["hi"], "messages[0]"),
        ([{"role": "user", "content": "x", "weight": 1}], "messages[0].weight"),
    ],
)
def test_bad_messages_are_named(client, messages, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=messages)
    assert caught.value.param == param


def test_an_unknown_model_is_404(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="huge", messages=[{"role": "user", "content": "hi"}])
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_the_engines_refusal_is_a_400_of_that_request_alone(client, stream):
    with pytest.raises(openai.BadRequestError, match="asked to fail"):
        ask(client, "FAIL", stream=stream)
    assert ask(client, "hi").choices[0].message.content == "hi"
