"""Answers that must match a JSON schema, a regular expression or a grammar: which tokens may come next (llguidance).

Promises: an answer that ends by itself matches; what a grammar can't express (a keyword of JSON schema that
llguidance doesn't know, say) is a RequestError before anything is generated, never ignored. Knows nothing of models.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from swift.engines.protocol import EngineError, Grammar, RequestError

# Between the parts of JSON. Unbounded, a small model may write nothing but spaces; json.dumps with indent fits.
WHITESPACE = r"[ \n\r\t]{0,20}"
KINDS = frozenset({"json_schema", "regex", "lark"})


def grammars_of(tokenizer: Any) -> frozenset[str]:
    """The kinds of grammars that answers in this tokenizer's tokens can be held to: none for a slow tokenizer."""
    return KINDS if getattr(tokenizer, "is_fast", False) else frozenset()


class GrammarCompiler:
    """Makes grammars ready for one tokenizer. `vocabulary`: how many logits the model has; `end_ids` end an answer."""

    def __init__(self, tokenizer: Any, vocabulary: int, end_ids: Iterable[int]):
        self._tokenizer, self._vocabulary, self._end_ids = tokenizer, vocabulary, sorted(end_ids)
        self._lock = threading.Lock()
        self._tokens: Any = None
        self._compiled = lru_cache(64)(self._compile)

    def start(self, grammar: Grammar) -> GrammarState:
        """A fresh state at the beginning of an answer; RequestError when the grammar can't be used."""
        matcher = self._compiled(grammar).deep_copy()
        return GrammarState(matcher, self._vocabulary)

    def _known_tokens(self) -> Any:
        """llguidance's own form of the vocabulary, made once (about half a second for a large one)."""
        with self._lock:
            if self._tokens is None:
                from llguidance.hf import from_tokenizer

                size = max(self._vocabulary, len(self._tokenizer))
                self._tokens = from_tokenizer(self._tokenizer, n_vocab=size, eos_token=self._end_ids or None)
            return self._tokens

    def _compile(self, grammar: Grammar) -> Any:
        from llguidance import LLMatcher

        tokens = self._known_tokens()
        if grammar.kind == "json_schema":
            source = LLMatcher.grammar_from_json_schema(
                _checked_schema(grammar.source), defaults={"whitespace_pattern": WHITESPACE}
            )
        elif grammar.kind == "regex":
            source = LLMatcher.grammar_from_regex(grammar.source)
        else:
            source = LLMatcher.grammar_from_lark(grammar.source)
        wrong, messages = LLMatcher.validate_grammar_with_warnings(source, tokens)
        if wrong or messages:
            raise RequestError(f"the {grammar.kind} can't be followed: {_short(messages[0])}", param="grammar")
        matcher = LLMatcher(tokens, source, log_level=0)
        if matcher.is_error():
            raise RequestError(f"the {grammar.kind} can't be followed: {_short(matcher.get_error())}", param="grammar")
        return matcher


def _checked_schema(text: str) -> str:
    try:
        schema = json.loads(text)
    except ValueError as error:
        raise RequestError(f"the JSON schema is not JSON: {error}", param="grammar") from None
    if not isinstance(schema, (dict, bool)):
        raise RequestError("a JSON schema is an object, true or false", param="grammar")
    if schema is False:
        raise RequestError("the JSON schema `false` allows no answer", param="grammar")
    return "{}" if schema is True else text


def _short(message: str) -> str:
    """llguidance's message without its list of all special tokens."""
    return message.split("; following special tokens")[0].strip()[:500]


class GrammarState:
    """How far one answer is in its grammar."""

    def __init__(self, matcher: Any, vocabulary: int):
        self._matcher, self._vocabulary = matcher, vocabulary

    def allowed(self, device: torch.device) -> torch.Tensor:
        """bool [vocabulary]: the tokens that may come next."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            raise EngineError(f"the grammar failed: {_short(self._matcher.get_error())}")
        mask = np.unpackbits(bits, count=min(self._vocabulary, bits.size * 8), bitorder="little").view(np.bool_)
        allowed = torch.zeros(self._vocabulary, dtype=torch.bool)
        allowed[: mask.size] = torch.from_numpy(mask)
        return allowed.to(device)

    def accept(self, token_id: int) -> None:
        if not self._matcher.consume_token(token_id):
            raise EngineError(f"the grammar refuses token {token_id}: {_short(self._matcher.get_error())}")


def call_rules(
    tokenizer: Any, tools: Sequence[Mapping[str, Any]], begin: str, end: str, arguments: str = "arguments"
) -> list[str]:
    """Lark rules of `call`: a call of one of `tools` (in OpenAI's form) as most templates write it: `begin`
    {"name": NAME, `arguments`: {...}} `end`. The arguments match the tool's schema.
    """
    rules = []
    for number, tool in enumerate(tools):
        function = tool["function"]
        schema = {
            "type": "object",
            "properties": {"name": {"const": function["name"]}, arguments: function["parameters"]},
            "required": ["name", arguments],
            "additionalProperties": False,
        }
        rules.append(f"call_{number}: {json_rule(schema)}")
    which = " | ".join(f"call_{number}" for number in range(len(rules)))
    ends = [literal(tokenizer, text) if text else "" for text in (begin, end)]
    return [f"call: {ends[0]} ({which}) {ends[1]}", *rules]


def json_rule(schema: Mapping[str, Any] | bool) -> str:
    """JSON of a schema inside a Lark grammar, with as little room for spaces as an answer of that schema alone has."""
    held: Mapping[str, Any] = {} if schema is True else schema or {"not": {}}
    return f"%json {json.dumps({**held, 'x-guidance': {'whitespace_pattern': WHITESPACE}}, ensure_ascii=False)}"


def literal(tokenizer: Any, text: str) -> str:
    """A text as it stands in a Lark grammar: special tokens by their ids, the rest in quotes."""
    special = {t.content: i for i, t in tokenizer.added_tokens_decoder.items() if t.special and t.content in text}
    if not special:
        return json.dumps(text, ensure_ascii=False)
    parts = re.split("(" + "|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)) + ")", text)
    return " ".join(
        f"<[{special[part]}]>" if part in special else json.dumps(part, ensure_ascii=False) for part in parts if part
    )
