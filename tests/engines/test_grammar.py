"""Structured output: a random model, which would write anything, writes what the grammar says; checked by parsers of
Python's own and by jsonschema's rules written out here.
"""

import json
import re

import pytest

from swift.engines.grammar import call_rules
from swift.engines.protocol import GenerationRequest, Grammar, RequestError, Sampling, generate, generate_all
from swift.engines.pt import PtEngine
from tests import tiny

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 6, "pattern": "^[a-c]+$"},
        "age": {"type": "integer", "minimum": 3, "maximum": 99, "multipleOf": 3},
        "tags": {"type": "array", "items": {"enum": ["x", "y", 7]}, "minItems": 1, "maxItems": 3},
        "inner": {"$ref": "#/$defs/inner"},
    },
    "required": ["name", "age", "tags", "inner"],
    "additionalProperties": False,
    "$defs": {"inner": {"anyOf": [{"type": "null"}, {"type": "boolean"}]}},
}
WORD = "(ab|cd){2,3}x?"


@pytest.fixture(scope="module")
def engine():
    engine = PtEngine(tiny.model("llama"), tiny.tokenizer(), max_batch_size=8)
    yield engine
    engine.close()


def asking(kind, source, seed=0, **more):
    settings = {"max_new_tokens": 150, "temperature": 1.0, "seed": seed, **more}
    return GenerationRequest(prompt_ids=[9, 30, 31], sampling=Sampling(grammar=Grammar(kind, source), **settings))


def test_answers_beside_each_other_each_follow_their_own_grammar(engine):
    plain = GenerationRequest(prompt_ids=[9, 30, 31], sampling=Sampling(max_new_tokens=30, temperature=0))
    alone = generate(engine, plain)
    requests = [asking("json_schema", json.dumps(PERSON), seed) for seed in range(4)]
    requests += [plain, *(asking("regex", WORD, seed) for seed in range(4))]
    results = list(generate_all(engine, requests))
    assert results[4] == alone
    for result in results[:4]:
        found = json.loads(result.text)
        assert result.finish_reason == "stop"
        assert set(found) == {"name", "age", "tags", "inner"}
        assert re.fullmatch("[a-c]{2,6}", found["name"])
        assert found["age"] in range(3, 100, 3) and found["inner"] in (None, True, False)
        assert 1 <= len(found["tags"]) <= 3 and all(tag in ("x", "y", 7) for tag in found["tags"])
    for result in results[5:]:
        assert re.fullmatch(WORD, result.text) and result.finish_reason == "stop"
    assert len({result.text for result in results[:4]}) > 1


def test_greedy_answers_and_logit_bias_stay_inside_the_grammar(engine):
    result = generate(engine, asking("regex", "[a-z]{5}", temperature=0, logit_bias={300: 100.0}))
    assert re.fullmatch("[a-z]{5}", result.text)


def test_forced_tool_calls_are_read_by_the_template_s_own_format(engine):
    parameters = {
        "type": "object",
        "properties": {"n": {"enum": [1, 2]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": name, "parameters": parameters}} for name in ("f", "g")]
    rules = call_rules(tiny.tokenizer(), tools, "<tool_call>\n", "\n</tool_call>")
    grammar = Grammar("lark", "\n".join(["start: call", *rules]))
    texts = [generate(engine, asking(grammar.kind, grammar.source, seed)).text for seed in range(3)]
    for text in texts:
        call = json.loads(re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", text, re.DOTALL)[1])
        assert call["name"] in ("f", "g") and call["arguments"]["n"] in (1, 2)


@pytest.mark.parametrize(
    ("kind", "source", "named"),
    [
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"type": "string", "format": "shoe-size"}', "shoe-size"),
        ("json_schema", '{"$ref": "#/nowhere"}', "nowhere"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", "[]", "object"),
        ("regex", "(a", "unclosed"),
        ("regex", "a(?!b)", "look-around"),
        ("lark", "start: <no_such_token>", "no_such_token"),
        ("ebnf", "x", "ebnf"),
    ],
)
def test_what_cannot_be_followed_is_an_error_of_the_request(engine, kind, source, named):
    with pytest.raises(RequestError, match=re.escape(named)) as caught:
        generate(engine, asking(kind, source))
    assert caught.value.param == "grammar"
