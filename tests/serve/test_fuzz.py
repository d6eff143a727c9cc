"""Whatever stands in a body, the answer is a result or a 4xx that says why, in the API's own shape: never a 5xx."""

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swift.engines.fake import FakeEngine
from swift.serve.app import ROUTES
from tests.serve.served import running, service
from tests.serve.test_chat import TOOL, answer

BODIES = [(path, params) for method, path, _, params, _, _ in ROUTES if params]
TEXT = st.sampled_from(["", "a", "user", "text", "call", "function", "auto", "tiny", "é", "\x00"])
KEYS = st.sampled_from(["role", "content", "type", "text", "name", "function", "tool_calls", "id", "input", "format"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.just(10**30) | st.floats(-2, 2) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)
VALID = {
    "messages": [{"role": "user", "content": "call"}],
    "input": "call",
    "prompt": "call",
    "max_tokens": 30,
    "tokens": [97],
    "tools": [TOOL],
    "query": "call",
    "documents": ["call", "a"],
}


@pytest.fixture(scope="module")
def http():
    with running(service(FakeEngine(answer))) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.mark.parametrize(("path", "params"), BODIES, ids=[path for path, _ in BODIES])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_body_breaks_the_server(http, path, params, data):
    names = data.draw(st.lists(st.sampled_from([param.name for param in params]), max_size=4, unique=True))
    body = {p.name: VALID[p.name] for p in params if p.name in VALID and (p.required or p.name == "tools")}
    body = {k: v for k, v in body.items() if k != "tools" or path == "/v1/chat/completions"}
    body |= {name: data.draw(JSON) for name in names}
    reply = http.post(path, json=body)
    assert reply.status_code < 500, (reply.text, body)
    if reply.status_code >= 400:
        assert reply.json()["error"]["message"]
