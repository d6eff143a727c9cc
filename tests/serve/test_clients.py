"""Frameworks that speak to servers like this one, each skipped where it isn't installed:

pip install langchain-openai langchain-anthropic litellm openai-agents
"""

from __future__ import annotations

import asyncio

import pytest

from swift.engines.fake import FakeEngine
from tests.serve.served import running, service

CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>'


def answer(messages):
    last = messages[-1]
    if last["role"] == "tool":
        return f"The tool said {last['content']}."
    return CALL if "weather" in str(last["content"]) else f"<think>hm</think>You said: {last['content']}"


@pytest.fixture(scope="module")
def url():
    with running(service(FakeEngine(answer))) as address:
        yield address


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


def test_langchain_over_openai(url):
    module = pytest.importorskip("langchain_openai")
    for responses in (False, True):
        model = module.ChatOpenAI(base_url=f"{url}/v1", model="tiny", api_key="x", use_responses_api=responses)
        assert model.invoke("hello").text == "You said: hello"
        assert "".join(chunk.text for chunk in model.stream("hello")) == "You said: hello"
        assert [reply.text for reply in model.batch(["a", "b"])] == ["You said: a", "You said: b"]
        (call,) = model.bind_tools([get_weather]).invoke("the weather?").tool_calls
        assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})


def test_langchain_over_anthropic(url):
    module = pytest.importorskip("langchain_anthropic")
    model = module.ChatAnthropic(base_url=url, model="tiny", api_key="x", max_tokens=200)
    thought, text = model.invoke("hello").content
    assert (thought["thinking"], text["text"]) == ("hm", "You said: hello")
    (call,) = model.bind_tools([get_weather]).invoke("the weather?").tool_calls
    assert call["args"] == {"city": "Paris"}


@pytest.mark.parametrize("provider", ["openai/tiny", "hosted_vllm/tiny", "anthropic/tiny"])
def test_litellm(url, provider):
    litellm = pytest.importorskip("litellm")
    base = url if provider.startswith("anthropic") else f"{url}/v1"
    asked = {"model": provider, "api_base": base, "api_key": "x", "messages": [{"role": "user", "content": "hello"}]}
    message = litellm.completion(**asked).choices[0].message
    assert (message.content, message.reasoning_content) == ("You said: hello", "hm")
    chunks = litellm.completion(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "You said: hello"


@pytest.mark.parametrize("kind", ["OpenAIChatCompletionsModel", "OpenAIResponsesModel"])
def test_openai_agents_call_a_tool_and_read_its_result(url, kind):
    agents = pytest.importorskip("agents")
    from openai import AsyncOpenAI

    agents.set_tracing_disabled(True)
    tool = agents.function_tool(get_weather)

    async def ask(streamed: bool) -> str:
        client = AsyncOpenAI(base_url=f"{url}/v1", api_key="x")
        agent = agents.Agent(name="a", model=getattr(agents, kind)(model="tiny", openai_client=client), tools=[tool])
        if not streamed:
            return (await agents.Runner.run(agent, "the weather?")).final_output
        run = agents.Runner.run_streamed(agent, "the weather?")
        async for _ in run.stream_events():
            pass
        return run.final_output

    for streamed in (False, True):
        assert asyncio.run(ask(streamed)) == "The tool said sunny in Paris."
