"""/v1/completions, /v1/responses and /v1/messages as their real clients read them, and the small routes."""

import json

import anthropic
import httpx
import openai
import pytest

from swift.engines.fake import FakeEngine
from tests.serve.served import running, service
from tests.serve.test_chat import CALLS, TOOL, answer

FUNCTION = TOOL["function"]
CLAUDE_TOOL = {"name": "weather", "input_schema": FUNCTION["parameters"]}
RESPONSE_TOOL = {"type": "function", **FUNCTION}


@pytest.fixture(scope="module")
def url():
    with running(service(FakeEngine(answer))) as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as found:
        yield found


@pytest.fixture(scope="module")
def claude(url):
    with anthropic.Anthropic(base_url=url, api_key="none", max_retries=0) as found:
        yield found


# --- completions


def test_completions_of_one_and_several_prompts(client):
    reply = client.completions.create(model="tiny", prompt="hello", max_tokens=3)
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("hel", "length")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (5, 3)
    reply = client.completions.create(model="tiny", prompt=["ab", "cde"], n=2)
    assert [c.text for c in reply.choices] == ["ab", "ab", "cde", "cde"]
    assert [c.index for c in reply.choices] == [0, 1, 2, 3]
    reply = client.completions.create(model="tiny", prompt=[[104, 105], [111]])
    assert [c.text for c in reply.choices] == ["hi", "o"]


def test_completions_stream(client):
    chunks = list(
        client.completions.create(
            model="tiny", prompt=["ab", "cd"], stream=True, echo=True, stream_options={"include_usage": True}
        )
    )
    texts = {0: "", 1: ""}
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {0: "abab", 1: "cdcd"}
    assert chunks[-1].usage.total_tokens == 8 and chunks[-1].choices == []


def test_completions_echo_and_logprobs(client):
    assert client.completions.create(model="tiny", prompt="hey", echo=True, max_tokens=1).choices[0].text == "heyh"
    reply = client.completions.create(model="tiny", prompt="hey", echo=True, max_tokens=0)
    assert (reply.choices[0].text, reply.usage.completion_tokens) == ("hey", 0)
    logprobs = client.completions.create(model="tiny", prompt="hey", logprobs=1).choices[0].logprobs
    assert logprobs.tokens == ["h", "e", "y"]
    assert logprobs.token_logprobs == [0.0] * 3
    assert logprobs.text_offset == [0, 1, 2]
    with pytest.raises(openai.BadRequestError, match="prompt_logprobs"):
        client.completions.create(model="tiny", prompt="hey", echo=True, logprobs=1)


# --- responses


def test_responses_whole_and_streamed(client):
    reply = client.responses.create(model="tiny", input="hello", instructions="Be kind.")
    assert (reply.output_text, reply.status) == ("hello", "completed")
    assert reply.usage.output_tokens == 5
    assert client.responses.create(model="tiny", input="hello", max_output_tokens=2).status == "incomplete"
    with client.responses.stream(model="tiny", input="hello") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == "hello"
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == "hello"
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")


def test_responses_with_reasoning_and_tools(client):
    reply = client.responses.create(model="tiny", input="think and call", tools=[RESPONSE_TOOL])
    assert [item.type for item in reply.output] == ["reasoning", "message", "function_call", "function_call"]
    assert reply.output[0].content[0].text == "which?"
    assert [json.loads(item.arguments)["city"] for item in reply.output[2:]] == ["Paris", "Rome"]
    with client.responses.stream(model="tiny", input="think and call", tools=[RESPONSE_TOOL]) as stream:
        streamed = stream.get_final_response() if not list(stream) else stream.get_final_response()
    assert [item.type for item in streamed.output] == [item.type for item in reply.output]
    # the whole output goes back in, as agents do it
    items = [{"role": "user", "content": "call"}, *reply.output]
    items += [{"type": "function_call_output", "call_id": i.call_id, "output": "sunny"} for i in reply.output[2:]]
    items.append({"role": "user", "content": [{"type": "input_text", "text": "thanks"}]})
    assert client.responses.create(model="tiny", input=items, tools=[RESPONSE_TOOL]).output_text == "thanks"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "json_object"}}}, "response_format"),
        ({"truncation": "auto"}, "truncation"),
    ],
)
def test_responses_name_what_they_cannot_do(client, more, param):
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model="tiny", input="hi", **more)
    assert caught.value.param == param


# --- messages


def say(claude, text, **more):
    return claude.messages.create(model="tiny", max_tokens=999, messages=[{"role": "user", "content": text}], **more)


def test_messages_whole_and_streamed(claude):
    reply = say(claude, "hello", system="Be kind.")
    assert (reply.content[0].text, reply.stop_reason) == ("hello", "end_turn")
    assert (reply.usage.input_tokens, reply.usage.output_tokens) == (13, 5)
    short = claude.messages.create(model="tiny", max_tokens=2, messages=[{"role": "user", "content": "hello"}])
    assert (short.content[0].text, short.stop_reason) == ("he", "max_tokens")
    with claude.messages.stream(model="tiny", max_tokens=99, messages=[{"role": "user", "content": "hello"}]) as stream:
        assert "".join(stream.text_stream) == "hello"
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.input_tokens, final.usage.output_tokens) == ("end_turn", 5, 5)


@pytest.mark.parametrize("stream", [False, True])
def test_messages_with_thinking_and_tools(claude, stream):
    asked = {"model": "tiny", "max_tokens": 999, "tools": [CLAUDE_TOOL]}
    messages = [{"role": "user", "content": "think and call"}]
    if stream:
        with claude.messages.stream(messages=messages, **asked) as events:
            reply = events.get_final_message()
    else:
        reply = claude.messages.create(messages=messages, **asked)
    assert [block.type for block in reply.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert reply.content[0].thinking == "which?"
    assert [block.input for block in reply.content[2:]] == [{"city": "Paris"}, {"city": "Rome"}]
    assert reply.stop_reason == "tool_use"
    results = [{"type": "tool_result", "tool_use_id": b.id, "content": "sunny"} for b in reply.content[2:]]
    messages += [
        {"role": "assistant", "content": [block.model_dump(exclude_none=True) for block in reply.content]},
        {"role": "user", "content": [*results, {"type": "text", "text": "thanks"}]},
    ]
    for message in messages[1]["content"]:
        message.pop("caller", None)
    assert claude.messages.create(messages=messages, **asked).content[0].text == "thanks"


def test_thinking_disabled_leaves_it_out(claude):
    assert [b.type for b in say(claude, "think", thinking={"type": "disabled"}).content] == ["text"]


def test_messages_errors_and_counting(claude):
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="huge", max_tokens=1, messages=[{"role": "user", "content": "x"}])
    with pytest.raises(anthropic.BadRequestError, match="tool_choice"):
        say(claude, "x", tools=[CLAUDE_TOOL], tool_choice={"type": "any"})
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\] is empty"):
        say(claude, [])
    with pytest.raises(anthropic.BadRequestError, match="asked to fail"):
        say(claude, "FAIL")
    counted = claude.messages.count_tokens(model="tiny", messages=[{"role": "user", "content": "hello"}])
    assert counted.input_tokens == 5
    assert [m.id for m in claude.models.list()] == ["tiny"]


# --- the small routes


def test_models_tokenize_health_metrics(url, client):
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "swift"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    http = httpx.Client(base_url=url)
    assert http.post("/tokenize", json={"prompt": "hi"}).json()["tokens"] == [104, 105]
    assert http.post("/detokenize", json={"tokens": [104, 105]}).json()["prompt"] == "hi"
    assert http.post("/detokenize", json={"tokens": [-1]}).status_code == 400
    assert http.get("/health").json()["status"] == "ok"
    assert http.get("/ping").status_code == 200
    before = http.get("/metrics").text
    client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": CALLS}])
    after = http.get("/metrics").text
    counted = 'swift_http_requests_total{endpoint="/v1/chat/completions",status="200"} '
    assert counted not in before and counted + "1" in after
    assert f"swift_completion_tokens_total {len(CALLS)}" not in before
    names = {line.split(" ")[2] for line in after.splitlines() if line.startswith("# TYPE")}
    samples = {line.split("{")[0].split(" ")[0] for line in after.splitlines() if not line.startswith("#")}
    assert {s.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count") for s in samples} <= names


def test_the_openapi_page_lists_the_routes_and_their_fields(url):
    page = httpx.get(f"{url}/openapi.json").json()
    body = page["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["messages"]
    assert body["properties"]["temperature"] == {"type": ["number", "null"], "minimum": 0}
    assert {"/v1/messages", "/v1/responses", "/health", "/metrics"} <= page["paths"].keys()
    forms = body["properties"]["messages"]["items"]["anyOf"]
    assert {"user", "tool"} <= {role for form in forms for role in form["properties"]["role"]["enum"]}
    for path, operations in page["paths"].items():
        for operation in operations.values():
            assert ("{" in path) == bool(operation.get("parameters")), path
