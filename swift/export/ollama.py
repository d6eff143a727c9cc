"""`swift export --to_ollama true`: a Modelfile beside the GGUF file, for `ollama create NAME -f Modelfile`.

The TEMPLATE is found by rendering: the model's own chat template is run on a conversation of marks, the text between
the marks becomes Ollama's template, and that is accepted only when it gives the same text as the chat template for
other conversations. A chat template that can't be said this way is left out, aloud (Ollama then takes the one inside
the GGUF file, as far as it knows it). Tools and reasoning aren't part of the TEMPLATE.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger("swift")

MODELFILE = "Modelfile"
LONGEST_END = 64
CONTEXT = 8192  # num_ctx at most: Ollama reserves memory for it
# generation_config.json -> Modelfile
PARAMETERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
Render = Callable[[Sequence[Mapping[str, str]], bool], str]
SYSTEM, USER, REPLY, LATER = "\x01s\x01", "\x01u\x01", "\x01a\x01", "\x01v\x01"


@dataclass(frozen=True)
class Turns:
    """Texts around the parts of a conversation. `inside`: the system prompt stands in the first user turn, between
    `system[0]` and `system[1]`, else before all turns. `default` is the system prompt of a conversation without one.
    """

    start: str
    system: tuple[str, str] | None
    inside: bool
    user: tuple[str, str]
    reply: tuple[str, str]
    prompt: str
    default: str = ""
    always: bool = False  # the system part stands there even when empty

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """What Ollama makes of the messages with this template."""
        system = next((m["content"] for m in messages if m["role"] == "system"), self.default)
        lead = f"{self.system[0]}{system}{self.system[1]}" if self.system and (system or self.always) else ""
        text = self.start + ("" if self.inside else lead)
        first = lead if self.inside else ""
        for message in messages:
            if message["role"] == "user":
                text += self.user[0] + first + message["content"] + self.user[1]
                first = ""
            elif message["role"] == "assistant":
                text += self.reply[0] + message["content"] + self.reply[1]
        return text + self.prompt

    def template(self) -> str:
        """Ollama's template (Go's text/template)."""
        lead = f"{self.system[0]}{{{{ $.System }}}}{self.system[1]}" if self.system else ""
        if lead and not self.always:
            lead = f"{{{{ if $.System }}}}{lead}{{{{ end }}}}"
        before, first = ("", lead) if self.inside else (lead, "")
        if first:
            first = f"{{{{ if $first }}}}{first}{{{{ end }}}}{{{{ $first = false }}}}"
        user = f'{{{{ if eq .Role "user" }}}}{self.user[0]}{first}{{{{ .Content }}}}{self.user[1]}'
        reply = f'{{{{ else if eq .Role "assistant" }}}}{self.reply[0]}{{{{ .Content }}}}{self.reply[1]}{{{{ end }}}}'
        mark = "{{ $first := true }}" if self.inside else ""
        return f"{mark}{self.start}{before}{{{{ range .Messages }}}}{user}{reply}{{{{ end }}}}{self.prompt}"


def find_turns(render: Render) -> Turns | None:
    """The chat template as `Turns`, or None where it can't be said so. `render(messages, prompt)` is the template's
    text, with the start of a reply when `prompt`.
    """
    user, reply, later = ({"role": r, "content": c} for r, c in (("user", USER), ("assistant", REPLY), ("user", LATER)))
    talk = [user, reply, later]
    try:
        texts = render(talk, True), render([user], True), render([user], False), render([user, reply], False)
    except Exception as error:  # a template may raise what it likes
        log.debug("the chat template can't be run: %s", error)
        return None
    try:
        full = render([{"role": "system", "content": SYSTEM}, *talk], True)
    except Exception:  # one without system prompts says so this way
        full = None
    whole, asked, question, answered = texts
    for end in _common_ends(question, answered):  # what closes a conversation that isn't asked to go on
        found = _taken_apart(whole, asked, question.removesuffix(end), answered.removesuffix(end), full)
        if found is not None and _agrees(found, render):
            return found
    return None


def _common_ends(one: str, other: str) -> Iterator[str]:
    """From the empty one on."""
    for size in range(min(len(one), len(other), LONGEST_END) + 1):
        if not one.endswith(end := other[len(other) - size :]):
            return
        yield end


def _taken_apart(whole: str, asked: str, question: str, answered: str, full: str | None) -> Turns | None:
    head, _, rest = whole.partition(USER)
    between, _, rest = rest.partition(REPLY)
    again = rest.partition(LATER)[0]
    user_end, closed = question.partition(USER)[2], answered.partition(REPLY)[2]
    opened = again.removeprefix(closed)
    if not (again.startswith(closed) and between.startswith(user_end) and head.endswith(opened) and opened):
        return None
    start = head.removesuffix(opened)
    turns = dict(user=(opened, user_end), reply=(between.removeprefix(user_end), closed))
    turns["prompt"] = asked.partition(USER)[2].removeprefix(user_end)
    if full is None or SYSTEM not in full:
        return Turns(start, None, False, **turns)
    before, _, after = full.partition(SYSTEM)
    middle = after.partition(USER)[0]
    if before.endswith(opened) and not middle.endswith(opened):
        return Turns(start, (before.removeprefix(start + opened), middle), True, **turns)
    closing = middle.removesuffix(opened)
    if start.startswith(before) and start.endswith(closing) and len(start) >= len(before) + len(closing):
        # without a system prompt there is one of the template's own (it may be empty)
        default = start[len(before) : len(start) - len(closing)]
        return Turns("", (before, closing), False, **turns, default=default, always=True)
    if not before.startswith(start):
        return None
    return Turns(start, (before.removeprefix(start), closing), False, **turns)


def _agrees(turns: Turns, render: Render) -> bool:
    """Whether other conversations come out as the chat template has them."""
    parts = [turns.start, *(turns.system or ()), *turns.user, *turns.reply, turns.prompt, turns.default]
    if any("{{" in part or '"""' in part for part in parts):
        return False
    words = ["How are you?", "Fine, thanks.\nAnd you?", "Good.", "Glad to hear that!", "Bye"]
    talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(words)]
    cases = [talk[:1], talk[:3], talk]
    if turns.system:
        cases += [[{"role": "system", "content": "Be brief."}, *case] for case in cases]
    return all(turns.render(case) == render(case, True) for case in cases)


def modelfile(file: Path, tokenizer: Any, generation: Mapping[str, Any], ends: Sequence[int], context: int) -> str:
    """The text of the Modelfile for the GGUF file."""
    lines = [f"FROM ./{file.name}"]
    turns = None
    if tokenizer.chat_template:
        starts = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]

        def render(messages: Sequence[Mapping[str, str]], prompt: bool) -> str:
            text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
            # llama.cpp puts that token in front by itself
            return text.removeprefix(tokenizer.bos_token) if starts else text

        dated = "strftime_now" in tokenizer.chat_template
        turns = None if dated else find_turns(render)
        if turns is None:
            log.warning("the chat template can't be written in Ollama's language: Modelfile has no TEMPLATE")
    if turns is not None:
        lines.append(f'TEMPLATE """{turns.template()}"""')
        if turns.default:
            lines.append(f'SYSTEM """{turns.default}"""')
    lines += [f"PARAMETER stop {json.dumps(tokenizer.decode([end]), ensure_ascii=False)}" for end in ends]
    lines += [
        f"PARAMETER {name} {generation[key]}" for key, name in PARAMETERS.items() if generation.get(key) is not None
    ]
    lines.append(f"PARAMETER num_ctx {min(context, CONTEXT)}")
    return "\n".join(lines) + "\n"
