"""Find what an assistant says in a rendered conversation: the exact characters of each assistant turn.

A turn begins where the generation prompt ends: the rendering of the messages before it, with
`add_generation_prompt=True`, must be a prefix of the whole text. It ends after its end-of-turn token, which some
templates write in the message's own block, some after the loop, some at the start of the next message's block. Where
the template carries `{% generation %}` blocks, its author has already said what is learned: those ranges are taken as
they are.

A turn that can't be found exactly gets a `problem` and no spans; nothing here guesses. It doesn't know tokens' ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from swift.chat.render import ChatTemplate, Refusal, Rendered, Span
from swift.chat.thinking import without_earlier_reasoning


@dataclass(frozen=True)
class Turn:
    """An assistant message (its index) and the character ranges that are learned; or why there are none.

    history: the template writes this turn otherwise when it is the last one (a reply as generated), without losing
    anything the message holds; for example no empty thinking block.
    closed: the last span ends with an end-of-turn marker.
    """

    index: int
    spans: tuple[Span, ...] = ()
    problem: str | None = None
    history: bool = False
    closed: bool = True


class Conversation:
    """The renderings of one conversation that the search needs, each made once."""

    def __init__(
        self,
        template: ChatTemplate,
        chat: Sequence[dict[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        variables: Mapping[str, Any],
        drop: bool = False,
    ):
        """drop: what is rendered are the messages without the reasoning of earlier rounds."""
        self.template, self.chat, self.tools, self.variables = template, list(chat), tools, variables
        self.drop = drop
        self.now = datetime.now()
        self.full: Rendered = self._render(len(self.chat), False)
        self._prompts: dict[int, str | None] = {}

    @property
    def text(self) -> str:
        return self.full.text

    def prompt(self, index: int) -> str | None:
        """What a model is given to write message `index`; None where the template refuses that prompt."""
        if index not in self._prompts:
            try:
                self._prompts[index] = self._render(index, True, marks=False).text
            except Refusal:
                self._prompts[index] = None
        return self._prompts[index]

    def until(self, index: int) -> str | None:
        """The rendering that ends with message `index`; None where the template refuses it."""
        if index == len(self.chat) - 1:
            return self.text
        try:
            return self._render(index + 1, False, marks=False).text
        except Refusal:
            return None

    def marked_prompt(self, index: int) -> Rendered | None:
        """`prompt` with its segments."""
        return None if self.prompt(index) is None else self._render(index, True)

    def header(self, index: int, prompt: Rendered) -> str:
        """What `prompt` writes for message `index`: what it has beyond the same messages without a generation prompt,
        or, where those are written otherwise without it, behind the last message's block."""
        try:
            bare = self._render(index, False, marks=False).text
        except Refusal:
            bare = None
        if bare is not None and prompt.text.startswith(bare):
            return prompt.text[len(bare) :]
        return prompt.text[max(b for spans in prompt.segments.values() for _, b in spans) :]

    def _render(self, count: int, prompt: bool, marks: bool = True) -> Rendered:
        chat = self.chat[:count]
        return self.template.render(
            without_earlier_reasoning(chat) if self.drop else chat,
            self.tools,
            add_generation_prompt=prompt,
            variables=self.variables,
            now=self.now,
            marks=marks,
        )


def find_turn(talk: Conversation, index: int, closers: Sequence[str], header: str | None) -> Turn:
    """The learned ranges of assistant message `index`.

    closers: texts that end a turn. header: what the template writes before any reply, used only where it refuses to
    render the prompt itself (a conversation that an assistant opens).
    """
    text = talk.text
    own = talk.full.segments.get(index)
    prompt = talk.prompt(index)
    if prompt is not None and not text.startswith(prompt):
        return Turn(index, problem=_prompt_problem(text, prompt, own))
    alone = talk.until(index)
    prefix_kept = alone is not None and text.startswith(alone)
    spans: list[Span] = _generation_spans(talk.full, own)
    if spans:
        start = spans[0][0]
        closed = any(text[: spans[-1][1]].rstrip().endswith(closer) for closer in closers)
    else:
        if prompt is not None:
            start = len(prompt)
        elif own is not None and header is not None and text[own[0][0] :].startswith(header):
            start = own[0][0] + len(header)
        else:
            return Turn(index, problem="the template can't render a generation prompt for it")
        if own is None and not prefix_kept:
            return Turn(index, problem="the template renders it differently once other messages follow")
        own = own or [(start, len(alone))]
        if prefix_kept and index < len(talk.chat) - 1:
            own = [(a, min(b, len(alone))) for a, b in own]
        spans, closed = _close(text, [(max(a, start), b) for a, b in own if b > start] or [(start, start)], closers)
    lost = None if prefix_kept else _lost(talk.chat[index], alone, text, spans, start)
    if lost:
        return Turn(index, problem=f"the template drops its {lost} once other messages follow")
    history = alone is not None and not alone.startswith(text[: spans[-1][1]].rstrip())
    return Turn(index, tuple(spans), history=history, closed=closed)


def composed(talk: Conversation, closers: Sequence[str]) -> tuple[str, Turn] | None:
    """The last turn put behind its own generation prompt, where the whole rendering shows another history.

    A template that shows reasoning while tools are used, and drops it as soon as the answer is there, never renders
    in one piece what the model reads and what it then writes. The two pieces are both the template's.
    """
    index = len(talk.chat) - 1
    prompt, own = talk.marked_prompt(index), talk.full.segments.get(index)
    if prompt is None or own is None or not prompt.segments:
        return None
    header, start = talk.header(index, prompt), own[0][0]
    if not header or len(own) > 1 or not talk.text.startswith(header, start):
        return None
    text = prompt.text + talk.text[start + len(header) :]
    end = len(prompt.text) + own[0][1] - start - len(header)
    spans, closed = _close(text, [(len(prompt.text), end)], closers)
    return text, Turn(index, tuple(spans), closed=closed)


def opened(talk: Conversation, closers: Sequence[str]) -> tuple[str, Turn] | None:
    """The last turn behind a generation prompt that has opened its reasoning, where the template writes no reasoning
    at all: what the message holds, from its reasoning on, closed by the same tag and ended as the template ends it.

    None where the prompt opens nothing, or the message has no reasoning.
    """
    index = len(talk.chat) - 1
    opener, block = _opener(talk, index)
    content = talk.chat[index].get("content")
    if not opener or not isinstance(content, str):
        return None
    tag = opener.strip()
    closing, reasoning = f"</{tag[1:]}", talk.chat[index].get("reasoning_content")
    if content.lstrip().startswith(tag) and closing in content:
        written = content.lstrip()[len(tag) :].lstrip("\n")
    elif isinstance(reasoning, str) and reasoning.strip():
        written = f"{reasoning.strip()}\n{closing}\n\n{content}"
    else:
        return None
    answer = written.rpartition(closing)[2].strip()
    if not answer or answer not in block:
        return None
    end = block.rpartition(answer)[2]
    prompt = talk.prompt(index)
    text = prompt + written.rstrip() + end
    spans, closed = _close(text, [(len(prompt), len(text))], closers)
    return text, Turn(index, tuple(spans), closed=closed)


def opens_reasoning(talk: Conversation, index: int) -> bool:
    """Whether the prompt for this message ends inside reasoning that the template doesn't write."""
    return bool(_opener(talk, index)[0])


def _opener(talk: Conversation, index: int) -> tuple[str, str]:
    """What the prompt writes beyond the header that the rendered turn has too, if that is a tag; and that turn."""
    prompt, own = talk.marked_prompt(index), talk.full.segments.get(index)
    if prompt is None or not own or not prompt.segments or index not in talk.full.segments:
        return "", ""
    header = talk.header(index, prompt)
    block = talk.text[own[0][0] : own[-1][1]]
    opener = header[common_prefix(header, block) :]
    return (opener, block) if re.fullmatch(r"\s*<[^<>/\s]+>\s*", opener) else ("", block)


def _generation_spans(full: Rendered, own: Sequence[Span] | None) -> list[Span]:
    """The `{% generation %}` ranges that begin inside the message's block, or after the last block of all."""
    if not full.generations or own is None:
        return []
    stop = max(b for spans in full.segments.values() for _, b in spans)
    last = own[-1][1] == stop
    return [span for span in full.generations if any(a <= span[0] < b for a, b in own) or (last and span[0] >= stop)]


def _prompt_problem(text: str, prompt: str, own: Sequence[Span] | None) -> str:
    same = common_prefix(text, prompt)
    if own is not None and same >= own[0][0]:
        return (
            f"the generation prompt ends with {prompt[own[0][0] :]!r} but the template writes this turn "
            f"as {text[own[0][0] : same + 24]!r}..."
        )
    return "the template renders an earlier message differently once later messages follow"


def _close(text: str, spans: list[Span], closers: Sequence[str]) -> tuple[list[Span], bool]:
    """End the last span after its end-of-turn marker: inside the block, or first thing after it."""
    start, end = spans[-1]
    body = text[start:end].rstrip()
    if any(body.endswith(closer) for closer in closers):
        return [*spans[:-1], (start, start + len(body))], True
    rest = text[end:]
    skipped = len(rest) - len(rest.lstrip())
    for closer in closers:
        if rest.startswith(closer, skipped):
            return [*spans[:-1], (start, end + skipped + len(closer))], True
    return spans, False


def _lost(message: Mapping[str, Any], alone: str | None, text: str, spans: Sequence[Span], start: int) -> str | None:
    """What the message holds and the template shows when it is last, but not here: reasoning, calls or content."""
    if alone is None:
        return None
    here = "".join(text[a:b] for a, b in spans)
    for name, pieces in contents(message).items():
        if any(piece in alone[start:] and piece not in here for piece in pieces):
            return name
    return None


def contents(message: Mapping[str, Any]) -> dict[str, list[str]]:
    """The texts that a message holds, by kind, as they should reappear in a rendering."""
    found: dict[str, list[str]] = {}
    content = text_of(message.get("content"))
    inline = ""
    if "</think>" in content:
        inline, _, content = content.rpartition("</think>")
        inline = inline.rpartition("<think>")[2]
    reasoning = message.get("reasoning_content") or inline
    if isinstance(reasoning, str) and reasoning.strip():
        found["reasoning"] = [reasoning.strip()]
    if content.strip():
        found["content"] = [content.strip()]
    names = [_function(call).get("name") for call in message.get("tool_calls") or () if isinstance(call, Mapping)]
    if names:
        found["tool calls"] = [name for name in names if isinstance(name, str)]
    return found


def text_of(content: Any) -> str:
    """The text of a message's content, which may be typed blocks."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


def _function(call: Mapping[str, Any]) -> Mapping[str, Any]:
    return call.get("function") or call


def common_prefix(a: str, b: str) -> int:
    """Length of the common prefix."""
    if b.startswith(a):
        return len(a)
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
