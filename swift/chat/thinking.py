"""Reasoning of earlier rounds kept or dropped, and the empty thinking that hybrid templates write for replies without.

`--preserve_thinking` sets the variable by which a template decides over the reasoning of earlier rounds; which one it
is, and in which direction, is found by rendering. Where a template has none and shows all of it, `false` takes it out
of the messages. No template is known by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from swift.chat.render import REASONING_KEYS
from swift.errors import TemplateError

PRESERVE = "preserve_thinking"
MODES = ("enable_thinking", "thinking")  # the variable that chooses between thinking and not
_GIVEN = ("messages", "tools", "documents", "add_generation_prompt", *MODES)
FIRST, SECOND, ASKED, ANSWER = "zqThoughtOne", "zqThoughtTwo", "zqAsked", "zqAnswer"
Shown = Callable[[Sequence[Mapping[str, Any]], bool, Mapping[str, Any]], "str | None"]


@dataclass(frozen=True)
class History:
    """variables: of the template, that keep or drop earlier reasoning. drop: it is taken out of the messages."""

    variables: Mapping[str, Any] = field(default_factory=dict)
    drop: bool = False


AS_WRITTEN = History()


def learn_history(shown: Shown, read: frozenset[str], keep: bool) -> History:
    """shown: (messages, with a generation prompt, further variables) -> text, None where the template refuses them.
    read: the variables that the template reads. TemplateError where it drops what should be kept."""
    forms = [form for form in (_by_key, _inline) if _holds(shown(form(), False, {}), SECOND)]
    if keep and PRESERVE in read:
        return History({PRESERVE: True})
    tried: list[dict[str, Any]] = [{}, {PRESERVE: False}] if PRESERVE in read else [{}]
    others = sorted(name for name in read if name not in (PRESERVE, *_GIVEN) and not name.endswith("_token"))
    tried += [{name: value} for name in others for value in (True, False) if _neutral(shown, {name: value})]
    for variables in tried:
        kept = [_holds(shown(form(), False, variables), FIRST) for form in forms]
        if (forms and all(kept)) if keep else not any(kept):
            return History(variables)
    if keep:
        what = "the chat template drops the reasoning of earlier rounds and has no variable for it"
        if not forms:
            what = "the chat template shows no reasoning"
        fix = "leave it out: every reply is then learned with its reasoning, in a row of its own where it has to be"
        raise TemplateError(what, where="--preserve_thinking true", fix=fix)
    return History({PRESERVE: False} if PRESERVE in read else {}, drop=True)


def _holds(text: str | None, word: str) -> bool:
    return text is not None and word in text


def _neutral(shown: Shown, change: Mapping[str, Any]) -> bool:
    """Whether a variable leaves alone what doesn't concern earlier reasoning."""
    asked = _by_key()[:1]
    same = shown(asked, True, change) == shown(asked, True, {})
    return same and shown(_by_key()[:2], False, change) == shown(_by_key()[:2], False, {})


def _by_key() -> list[dict[str, Any]]:
    return _talk(lambda thought: {"content": ANSWER, "reasoning_content": thought})


def _inline() -> list[dict[str, Any]]:
    return _talk(lambda thought: {"content": f"<think>\n{thought}\n</think>\n\n{ANSWER}"})


def _talk(reply: Callable[[str], Mapping[str, Any]]) -> list[dict[str, Any]]:
    asked = {"role": "user", "content": ASKED}
    return [asked, {"role": "assistant", **reply(FIRST)}, asked, {"role": "assistant", **reply(SECOND)}]


def without_earlier_reasoning(chat: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, those of the assistant before the last user's without their reasoning."""
    last = max((i for i, message in enumerate(chat) if message["role"] == "user"), default=-1)
    return [_bare(m) if i < last and m["role"] == "assistant" else m for i, m in enumerate(chat)]


def _bare(message: dict[str, Any]) -> dict[str, Any]:
    bare = {key: value for key, value in message.items() if key not in REASONING_KEYS}
    content = bare.get("content")
    if isinstance(content, str):
        bare["content"] = _answer(content)
    elif isinstance(content, list):
        bare["content"] = [
            {**part, "text": _answer(part["text"])} if isinstance(part, dict) and "text" in part else part
            for part in content
        ]
    return bare


def _answer(text: str) -> str:
    return text.rpartition("</think>")[2].lstrip("\n") if "</think>" in text else text


@dataclass(frozen=True)
class EmptyThinking:
    """What a template writes before a reply without reasoning. text: all of it behind the prompt; mark: what it, and
    real reasoning, begins with, "" where the prompt has opened it already."""

    text: str
    mark: str


def learn_empty_thinking(reply: Callable[[Mapping[str, Any]], str | None]) -> EmptyThinking | None:
    """reply: an assistant message -> what the template writes behind the prompt. None where it writes nothing for a
    reply without reasoning, or something else than reasoning without its words."""
    plain = reply({"content": ANSWER})
    full = reply({"content": ANSWER, "reasoning_content": FIRST})
    if plain is None or full is None or ANSWER not in plain or not 0 <= full.find(FIRST) < full.find(ANSWER):
        return None
    lead = plain.partition(ANSWER)[0]
    opening, _, rest = full.partition(FIRST)
    closing = rest.partition(ANSWER)[0]
    if not lead.strip() or "".join(lead.split()) != "".join((opening + closing).split()):
        return None
    return EmptyThinking(lead, opening.strip())
