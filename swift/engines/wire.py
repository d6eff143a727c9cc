"""What goes over the wire to a server of OpenAI's kind, and what comes back, in the dialect of each server.

Promises: nothing that a request asks is dropped in silence: what a dialect can't say is in its `unsupported`. Knows
nothing of connections.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swift.chat.medium import data_url
from swift.engines.protocol import Grammar, Sampling, TokenLogprob

Body = dict[str, Any]
Decode = Callable[[Sequence[int]], str]

NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
    **{
        name: name
        for name in (
            *("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
            *("logit_bias", "stop", "stop_token_ids", "seed"),
        )
    },
}
ENDINGS = {"length": "length", "abort": "cancelled"}  # every other finish_reason is a stop
UNKNOWN_ID = -1  # where the server doesn't tell a token's id
THINK, CALL = ("<think>\n", "\n</think>\n\n"), ("<tool_call>\n", "\n</tool_call>")


@dataclass(frozen=True)
class Dialect:
    """`ids`: token ids go to /v1/completions as "prompt", or as "input_ids" beside an empty conversation to
    /v1/chat/completions. `extra` goes into every request made of ids. `scoring`: how log-probabilities of the prompt
    are asked for, "prompt_logprobs" or "echo". `grammars`: kind -> the fields that ask for it. `adapter`: the model
    name that selects an adapter.
    """

    name: str
    ids: str = "prompt"
    extra: Mapping[str, Any] = field(default_factory=dict)
    scoring: str | None = "echo"
    unsupported: frozenset[str] = frozenset({"num_beams"})
    grammars: Mapping[str, Callable[[str], Body]] = field(default_factory=dict)
    adapter: str = "{adapter}"

    @property
    def path(self) -> str:
        return "/v1/completions" if self.ids == "prompt" else "/v1/chat/completions"


def _json_schema(source: str) -> Body:
    schema = {"name": "answer", "schema": json.loads(source)}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


OPENAI = Dialect("openai", grammars={"json_schema": _json_schema})
VLLM = Dialect(
    "vllm",
    extra={
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
    },
    scoring="prompt_logprobs",
    grammars={
        "json_schema": lambda source: {"structured_outputs": {"json": json.loads(source)}},
        "regex": lambda source: {"structured_outputs": {"regex": source}},
        "lark": lambda source: {"structured_outputs": {"grammar": source}},
    },
)
SGLANG = Dialect(
    "sglang",
    extra={"return_token_ids": True, "skip_special_tokens": False},
    grammars={"json_schema": lambda source: {"json_schema": source}, "regex": lambda source: {"regex": source}},
    adapter="{base}:{adapter}",
)
LMDEPLOY = Dialect(
    "lmdeploy",
    ids="input_ids",
    extra={"return_token_ids": True, "skip_special_tokens": False, "spaces_between_special_tokens": False},
    scoring=None,
    unsupported=frozenset({"num_beams", "prompt_logprobs", "stop_token_ids", "min_new_tokens"}),
    grammars={"json_schema": _json_schema},
)


# ---- requests ----


def ask_ids(dialect: Dialect, model: str, ids: Sequence[int], sampling: Sampling) -> Body:
    """A request made of token ids, to `dialect.path`."""
    body = {"model": model, **_settings(sampling), **dialect.extra, **_grammar(dialect, sampling.grammar)}
    if dialect.ids == "prompt":
        body["prompt"] = list(ids)
        if sampling.logprobs:
            body["logprobs"] = sampling.top_logprobs
    else:
        body |= {"messages": [], "input_ids": list(ids)}
        if sampling.logprobs:
            body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    if sampling.prompt_logprobs is not None:  # whole answers only: streams don't carry them
        body["max_tokens"] = max(1, body["max_tokens"])
        if dialect.scoring == "prompt_logprobs":
            body["prompt_logprobs"] = sampling.prompt_logprobs
        else:
            body |= {"echo": True, "logprobs": max(sampling.prompt_logprobs, sampling.top_logprobs)}
        return body
    return body | {"stream": True, "stream_options": {"include_usage": True}}


def ask_messages(
    dialect: Dialect, model: str, messages: Sequence[Mapping[str, Any]], tools: Any, sampling: Sampling
) -> Body:
    """A request made of messages, to /v1/chat/completions: the server's own template writes the prompt."""
    body = {"model": model, "messages": [_outgoing(m) for m in messages], **_settings(sampling)}
    body |= _grammar(dialect, sampling.grammar)
    if tools:
        body["tools"] = list(tools)
    if sampling.logprobs:
        body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
    return body | {"stream": True, "stream_options": {"include_usage": True}}


def _settings(sampling: Sampling) -> Body:
    """What differs from the defaults, in the API's names."""
    plain = Sampling()
    body: Body = {}
    for name, theirs in NAMES.items():
        value = getattr(sampling, name)
        if value != getattr(plain, name):
            body[theirs] = list(value) if isinstance(value, tuple) else value
    if "logit_bias" in body:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    if body.get("top_k") == 0:
        body["top_k"] = -1  # off, as these servers write it
    return body


def _grammar(dialect: Dialect, grammar: Grammar | None) -> Body:
    return {} if grammar is None else dialect.grammars[grammar.kind](grammar.source)


def _outgoing(message: Mapping[str, Any]) -> Body:
    """Arguments of tool calls as text and media as URLs, as the API wants them."""
    if isinstance(message.get("content"), list):
        message = {**message, "content": [_part(block) for block in message["content"]]}
    calls = message.get("tool_calls")
    if not calls:
        return dict(message)
    sent = []
    for number, call in enumerate(calls):
        function = dict(call["function"])
        if not isinstance(function.get("arguments"), str):
            function["arguments"] = json.dumps(function.get("arguments") or {}, ensure_ascii=False)
        sent.append({"id": call.get("id") or f"call_{number}", "type": "function", "function": function})
    return {**message, "tool_calls": sent}


def _part(block: Mapping[str, Any]) -> Body:
    """A block of a message as the OpenAI API has it; a local file goes along as a data: URL."""
    kind = block.get("type")
    if kind not in ("image", "video", "audio") or not isinstance(block.get(kind), str):
        return dict(block)
    url = data_url(block[kind])
    if kind == "audio" and url.startswith("data:"):
        head, _, data = url.partition(",")
        return {"type": "input_audio", "input_audio": {"data": data, "format": "mp3" if "mp" in head else "wav"}}
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


# ---- answers ----


@dataclass(frozen=True)
class Piece:
    """One choice of one chunk. `reason` is the server's finish_reason, mapped; `stop_text` what ended the answer."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    reason: str | None = None
    stop_text: str | None = None


class Reader:
    """Reads the choices of one answer, in order. `decode` turns ids into text where the server names tokens by id."""

    def __init__(self, decode: Decode | None = None, top: int = 0):
        self._decode, self._top = decode, top
        self._thinking = False
        self._calls: dict[int, list[str]] = {}  # index -> [name, arguments so far]

    def read(self, choice: Mapping[str, Any]) -> Piece:
        delta = choice.get("delta") or choice.get("message")
        text = choice.get("text") or "" if delta is None else self._chat_text(delta)
        reason = choice.get("finish_reason")
        if reason is not None:
            text += self._close()
        ids = tuple((delta or choice).get("token_ids") or choice.get("token_ids") or ())
        stop = choice.get("stop_reason", choice.get("matched_stop"))
        return Piece(
            text,
            ids,
            self.logprobs(choice.get("logprobs"), ids),
            None if reason is None else ENDINGS.get(reason, "stop"),
            stop if isinstance(stop, str) else None,
        )

    def _chat_text(self, delta: Mapping[str, Any]) -> str:
        """Content, with the reasoning and calls that the server has parsed written out again (see `parse_reply`)."""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        text = ""
        if reasoning:
            text = reasoning if self._thinking else THINK[0] + reasoning
            self._thinking = True
        content = delta.get("content") or ""
        if content and self._thinking:
            self._thinking = False
            text += THINK[1]
        text += content
        for position, call in enumerate(delta.get("tool_calls") or ()):
            known = self._calls.setdefault(call.get("index", position), ["", ""])
            function = call.get("function") or {}
            known[0] = known[0] or function.get("name") or ""
            known[1] += function.get("arguments") or ""
        return text

    def _close(self) -> str:
        text = THINK[1] if self._thinking else ""
        self._thinking = False
        for _, (name, arguments) in sorted(self._calls.items()):
            value = {"name": name, "arguments": _json_or_text(arguments or "{}")}
            text += f"{CALL[0]}{json.dumps(value, ensure_ascii=False)}{CALL[1]}\n"
        self._calls = {}
        return text

    def logprobs(self, found: Any, ids: Sequence[int] = ()) -> tuple[TokenLogprob, ...]:
        """Of both APIs: {"tokens", "token_logprobs", "top_logprobs"} or {"content": [...]}."""
        if not found:
            return ()
        items: list[TokenLogprob] = []
        if found.get("content") is not None:
            for entry in found["content"]:
                top = [(t["token"], t["logprob"]) for t in entry.get("top_logprobs") or ()]
                items.append(self._token(entry["token"], entry["logprob"], top))
        else:
            tops = found.get("top_logprobs") or [None] * len(found["tokens"])
            for name, value, top in zip(found["tokens"], found["token_logprobs"], tops, strict=False):
                items.append(self._token(name, value, list((top or {}).items())))
        if len(ids) == len(items):
            items = [TokenLogprob(i, item.token, item.logprob, item.top) for i, item in zip(ids, items, strict=True)]
        return tuple(items)

    def _token(self, name: str, logprob: float, top: list[tuple[str, float]]) -> TokenLogprob:
        best = sorted(top, key=lambda entry: -entry[1])[: self._top]
        return TokenLogprob(*self._named(name), logprob, tuple((*self._named(n), p) for n, p in best))

    def _named(self, name: str) -> tuple[int, str]:
        """(id, text) of a token that is named by its text or as token_id:7."""
        head, found, number = name.partition("token_id:")
        if found and not head and number.isdigit():
            return int(number), self._decode([int(number)]) if self._decode else name
        return UNKNOWN_ID, name


def prompt_scores(
    dialect: Dialect, choice: Mapping[str, Any], ids: Sequence[int], reader: Reader, top: int, decode: Decode
) -> tuple[TokenLogprob | None, ...]:
    """An item for each prompt token, None for the first."""
    if dialect.scoring == "prompt_logprobs":
        found = choice["prompt_logprobs"]
        return tuple(None if e is None else _scored(i, e, top, decode) for i, e in zip(ids, found, strict=True))
    entries = {key: list(value)[: len(ids)] for key, value in choice["logprobs"].items() if isinstance(value, list)}
    scores: list[TokenLogprob | None] = [None]
    entries = {key: value[1:] for key, value in entries.items()}
    scores += [
        TokenLogprob(i, item.token, item.logprob, item.top)
        for i, item in zip(ids[1:], reader.logprobs(entries), strict=True)
    ]
    return tuple(scores)


def _scored(token: int, entry: Mapping[str, Any], top: int, decode: Decode) -> TokenLogprob:
    """vLLM's {"id": {"logprob", "rank", ...}}: the token itself and the likeliest."""
    ranked = sorted(entry.items(), key=lambda item: -item[1]["logprob"])[:top]
    alternatives = tuple((int(i), decode([int(i)]), facts["logprob"]) for i, facts in ranked)
    return TokenLogprob(token, decode([token]), entry[str(token)]["logprob"], alternatives)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_reply(text: str, tools: Any = None) -> dict[str, Any]:
    """Undoes what `Reader` writes out: reasoning, content and tool calls of a server's parsed answer."""
    message: dict[str, Any] = {"role": "assistant"}
    if text.startswith(THINK[0]) and THINK[1].strip() in text:
        reasoning, _, text = text.removeprefix(THINK[0]).partition(THINK[1].strip())
        message["reasoning_content"] = reasoning.strip("\n")
        text = text.lstrip("\n")
    content, *calls = text.split(CALL[0])
    found = []
    for call in calls:
        value = _json_or_text(call.partition(CALL[1])[0])
        if not isinstance(value, dict) or "name" not in value:
            return {**message, "content": text}
        found.append({"type": "function", "function": {"name": value["name"], "arguments": value.get("arguments")}})
    message["content"] = content.rstrip() if found else text
    return {**message, "tool_calls": found} if found else message
