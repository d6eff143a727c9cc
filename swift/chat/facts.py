"""What a template does, learned by rendering a few probe conversations once: content form, end-of-turn, tool arguments.

Everything is found from renderings; no template is known by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swift.chat.render import ChatTemplate, Refusal, Rendered, normalised

USER, REPLY, ASK_AGAIN, LAST = "zqUserOne", "zqReplyOne", "zqUserTwo", "zqReplyTwo"
TOOL = {
    "type": "function",
    "function": {
        "name": "zq_tool",
        "description": "Looks up zq.",
        "parameters": {
            "type": "object",
            "properties": {"zqkey": {"type": "string", "description": "What."}},
            "required": ["zqkey"],
        },
    },
}


@dataclass(frozen=True)
class Facts:
    """text_content, block_content: the template reads message content given as a string, as typed blocks.
    header: what it writes between a user's message and the reply, as in the generation prompt (None: refused).
    closers: texts that end an assistant turn anywhere in a conversation; stops: those at the end of a reply as
    generated. text_arguments, object_arguments: tool-call arguments are taken as JSON text, as objects.
    tools: the template shows the tools' declarations.
    """

    text_content: bool
    block_content: bool
    header: str | None
    closers: tuple[str, ...]
    stops: tuple[str, ...]
    text_arguments: bool
    object_arguments: bool
    tools: bool


def learn(template: ChatTemplate, variables: Mapping[str, Any], added_tokens: Sequence[str]) -> Facts:
    """Probe the template. added_tokens: the tokenizer's special and added tokens, which may end a turn."""
    probe = _Probe(template, variables)
    texts = [[USER, REPLY, ASK_AGAIN, LAST]]
    plain = probe.chat(texts[0], blocks=False)
    blocks = probe.chat(texts[0], blocks=True)
    as_text = plain is not None and all(word in plain.text for word in texts[0])
    as_blocks = blocks is not None and _blocks_read(blocks.text, texts[0])
    talk = plain if as_text or not as_blocks else blocks
    wrap = as_blocks and not as_text
    calls_text, calls_object = probe.calls("text", wrap), probe.calls("object", wrap)
    closers: list[str] = []
    stops: list[str] = []
    if talk is not None:
        closers += _after(talk, REPLY, 1, added_tokens)
        stops += _after(talk, LAST, 3, added_tokens)
    calls = calls_object or calls_text
    if calls is not None and stops:
        # where plain replies have no end of their own, the last token of a call belongs to the call
        ended, once = _tail(calls, probe.two_calls(wrap), added_tokens)
        closers += ended
        stops += ended if once else []
    stops = stops or closers  # of a template that leaves the last reply open
    closers = [*closers, *stops]
    return Facts(
        text_content=as_text or not as_blocks,
        block_content=as_blocks,
        header=probe.header(wrap),
        closers=tuple(dict.fromkeys(closers)),
        stops=tuple(dict.fromkeys(stops)),
        text_arguments=calls_text is not None and '\\"zqkey' not in calls_text.text,
        object_arguments=calls_object is not None,
        tools=probe.shows_tools(wrap),
    )


def _blocks_read(text: str, words: Sequence[str]) -> bool:
    """The words came out as text, not as the printed form of a Python or JSON list."""
    return all(word in text for word in words) and "'text'" not in text and '"text"' not in text


class _Probe:
    def __init__(self, template: ChatTemplate, variables: Mapping[str, Any]):
        self.template, self.variables = template, variables

    def render(self, messages: list[dict], tools: list | None = None, prompt: bool = False) -> Rendered | None:
        try:
            return self.template.render(
                normalised(messages), tools, add_generation_prompt=prompt, variables=self.variables
            )
        except Refusal:
            return None

    def chat(self, words: Sequence[str], blocks: bool) -> Rendered | None:
        return self.render([_message(i, word, blocks) for i, word in enumerate(words)])

    def two_calls(self, blocks: bool) -> Rendered | None:
        return self.calls("object", blocks, 2) or self.calls("text", blocks, 2)

    def calls(self, form: str, blocks: bool, count: int = 1) -> Rendered | None:
        """A conversation that ends with tool calls, if the template shows the call's name and argument."""
        arguments = {"zqkey": "zqvalue"} if form == "object" else '{"zqkey": "zqvalue"}'
        call = {"id": "call00001", "type": "function", "function": {"name": "zq_tool", "arguments": arguments}}
        for extra in ({"content": _content("", blocks)}, {}):
            messages = [_message(0, USER, blocks), {"role": "assistant", "tool_calls": [call] * count, **extra}]
            shown = self.render(messages, [TOOL])
            if shown is not None and shown.text.count("zq_tool") > 1 and "zqvalue" in shown.text:
                return shown
        return None

    def header(self, blocks: bool) -> str | None:
        asked = self.render([_message(0, USER, blocks)])
        prompt = self.render([_message(0, USER, blocks)], prompt=True)
        if asked is None or prompt is None or 0 not in prompt.segments:
            return None
        return prompt.text[prompt.segments[0][-1][1] :]

    def shows_tools(self, blocks: bool) -> bool:
        shown = self.render([_message(0, USER, blocks)], [TOOL], prompt=True)
        return shown is not None and "zq_tool" in shown.text


def _message(i: int, word: str, blocks: bool) -> dict[str, Any]:
    return {"role": ("user", "assistant")[i % 2], "content": _content(word, blocks)}


def _content(word: str, blocks: bool) -> str | list[dict[str, str]]:
    return [{"type": "text", "text": word}] if blocks else word


def _after(talk: Rendered, word: str, index: int, added_tokens: Sequence[str]) -> list[str]:
    """What ends the reply `word`: the end of its own block."""
    at = talk.text.find(word)
    own = talk.segments.get(index)
    if at < 0:
        return []
    end = own[-1][1] if own else len(talk.text)
    return _marker(talk.text[at + len(word) : end], added_tokens)


def _tail(calls: Rendered, two: Rendered | None, added_tokens: Sequence[str]) -> tuple[list[str], bool]:
    """The token that ends a reply of tool calls, and whether it stands there once whatever the number of calls."""
    token = _added_at_end(_own(calls).rstrip(), added_tokens)
    return [token] if token else [], two is None or token is None or _own(two).count(token) == 1


def _own(talk: Rendered) -> str:
    return "".join(talk.text[a:b] for a, b in talk.segments[1]) if 1 in talk.segments else talk.text


def _marker(literal: str, added_tokens: Sequence[str]) -> list[str]:
    body = literal.strip()
    if not body:
        return []
    return [_added_at_end(body, added_tokens) or body]


def _added_at_end(text: str, added_tokens: Sequence[str]) -> str | None:
    return max((token for token in added_tokens if token and text.endswith(token)), key=len, default=None)
