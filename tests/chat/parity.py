"""One row through the encoder and through plain transformers: `compare` says what differs, "" for nothing.

The reference is `apply_chat_template` alone, asked for the whole conversation, for its beginnings and for the prompts:
- each example's ids are those of the whole conversation, or of its beginning up to some turn ("part"), or of a prompt
  and what the template writes behind it for the last turn ("composed");
- each assistant turn is learned once, from where its generation prompt ends to its end token, nothing else is;
- a refusal is true: the prompt is no prefix of any rendering of the turn, or the rendering leaves something out.
"""

from __future__ import annotations

from typing import Any

from swift.chat import ChatEncoder
from swift.errors import SwiftError


class Reference:
    """What transformers renders of a row; None where the template refuses."""

    def __init__(self, encoder: ChatEncoder, row: dict, **variables: Any):
        self.encoder, self.tok, self.row, self.variables = encoder, encoder.tokenizer, row, variables
        self.messages, self.tools = row["messages"], row.get("tools")
        self.turns = [i for i, m in enumerate(self.messages) if m["role"] == "assistant"]
        self.full = self.render(len(self.messages))

    def render(self, count: int, prompt: bool = False) -> str | None:
        try:
            return self.tok.apply_chat_template(
                self.messages[:count],
                tools=self.tools,
                tokenize=False,
                add_generation_prompt=prompt,
                **self.variables,
            )
        except Exception:  # templates refuse in any way that Jinja and Python know
            return None

    def reply(self, turn: int) -> str | None:
        """What the template writes behind the prompt when the turn is the last; None when it has no such text."""
        prompt, until = self.render(turn, True), self.render(turn + 1)
        if prompt is None or until is None or not until.startswith(prompt):
            return None
        return until[len(prompt) :]

    def ids(self, text: str) -> list[int]:
        return self.tok(text, add_special_tokens=False)["input_ids"]

    def left_out(self, turn: int) -> bool:
        """Whether a reply lacks content or a call that the message has."""
        shown = self.reply(turn) or ""
        message = self.messages[turn]
        content = message.get("content") or ""
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content)
        names = [call["function"]["name"] for call in message.get("tool_calls") or []]
        return any(name not in shown for name in names) or (bool(names) and content.strip() not in shown)


def compare(encoder: ChatEncoder, row: dict, **variables: Any) -> str:
    reference = Reference(encoder, row, **variables)
    outcome = encoder.encode_batch([row])[0]
    if isinstance(outcome, SwiftError):
        return "" if _refusal_is_true(reference) else f"refused: {outcome.what}"
    if reference.full is None:
        return "encoded what the template refuses"
    found: list[tuple[int, str]] = []
    for part in outcome:
        problem, learned = _example(reference, part)
        if problem:
            return problem
        found += learned
    marks = "generation" in encoder._dialect.source(row.get("tools")).replace("add_generation_prompt", "")
    straddled = any("straddled" in part.notes for part in outcome)
    wanted = [turn for turn in reference.turns if reference.reply(turn) != ""]  # nothing written, not even an end
    if sorted(turn for turn, _ in found) != wanted and not straddled and not marks:
        return f"learned turns {sorted(turn for turn, _ in found)} of {wanted}"
    for turn, text in found:
        problem = "" if straddled or marks else _learned(reference, turn, text, outcome)
        if problem:
            return problem
    return ""


def _example(reference: Reference, part: Any) -> tuple[str, list[tuple[int, str]]]:
    """What is wrong with an example, and its learned stretches as (turn, text)."""
    full = reference.tok.apply_chat_template(
        reference.messages, tools=reference.tools, tokenize=True, **reference.variables
    )["input_ids"]
    if any(label not in (-100, token) for label, token in zip(part.labels, part.input_ids, strict=True)):
        return "a label is not its token", []
    texts = [reference.full] if part.input_ids == full else _beginnings(reference, part)
    text = next((text for text in texts if reference.ids(text) == part.input_ids), None)
    if text is None:
        return "the ids are not transformers'", []
    offsets = reference.tok(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    prompts = {reference.render(turn, True): turn for turn in reference.turns}
    learned, at = [], 0
    while at < len(part.labels):
        if part.labels[at] == -100:
            at += 1
            continue
        stop = at
        while stop < len(part.labels) and part.labels[stop] != -100:
            stop += 1
        start = next(
            (len(p) for p in prompts if p and text.startswith(p) and reference.ids(p) == part.input_ids[:at]), None
        )
        if start is not None:
            following = offsets[stop][0] if stop < len(offsets) else len(text)  # NFC: two characters, one is said
            learned.append((prompts[text[:start]], text[start : max(offsets[stop - 1][1], following)]))
        elif learned and "generation" not in reference.tok.chat_template.replace("add_generation_prompt", ""):
            turn, before = learned[-1]  # a turn in pieces: its own text around what others say
            learned[-1] = (turn, before + text[offsets[at][0] : offsets[stop - 1][1]])
        at = stop
    return "", learned


def _beginnings(reference: Reference, part: Any) -> list[str]:
    texts = [reference.render(turn + 1) for turn in reference.turns]
    if "composed" in part.notes:
        for turn in reference.turns:
            prompt, until, bare = reference.render(turn, True), reference.render(turn + 1), reference.render(turn)
            if None in (prompt, until):
                continue
            message = reference.messages[turn]
            thought, answer = message.get("reasoning_content"), str(message.get("content"))
            if thought and prompt.rstrip().endswith("<think>") and answer.strip() in until:
                # the prompt opens reasoning that the template never writes
                end = until[until.rindex(answer.strip()) + len(answer.strip()) :]
                texts.append(f"{prompt}{thought.strip()}\n</think>\n\n{answer.rstrip()}{end}")
            header = prompt[len(bare) :] if bare and prompt.startswith(bare) else ""
            texts += [prompt + until[at + len(header) :] for at in _places(until, header)]
    return [text for text in texts if text is not None]


def _places(text: str, header: str) -> list[int]:
    if not header:
        return []
    return [at for at in range(len(text)) if text.startswith(header, at)]


def _learned(reference: Reference, turn: int, text: str, parts: list) -> str:
    """Whether the learned text is the reply with its end token and nothing behind it, or the row says that the
    template writes no end there."""
    reply = reference.reply(turn)
    if reply is None:
        return ""
    stops = reference.tok.convert_ids_to_tokens(reference.encoder.stop_token_ids)
    bare = reply.rstrip()
    if any(bare.endswith(stop) for stop in stops):
        if text == bare or (
            bare.startswith(text) and text.endswith(tuple(stops)) and bare[len(text) :].strip() in stops
        ):
            return ""
    elif text == reply or (text.startswith(bare) and text[len(bare) :].strip() in ("", *stops)):
        return ""  # without an end (white space may share a token with what follows), or the next block writes it
    short = text.rstrip()
    if any("no_end" in p.notes for p in parts) and bare.startswith(short) and bare[len(short) :].strip() in stops:
        return ""
    missing = any(content.strip() not in text for content in _texts(reference.messages[turn]))
    if missing or reply.startswith(text) or text.startswith(bare):
        return f"turn {turn}: learned {text!r}, generated as {reply!r}"
    ends = (*stops, *reference.tok.get_added_vocab())
    open_end = bare.endswith(ends) and not text.endswith(ends)
    return f"turn {turn}: no end is learned in {text!r}" if open_end else ""  # written otherwise in history


def _texts(message: dict) -> list[str]:
    content = message.get("content") or ""
    found = [part.get("text", "") for part in content] if isinstance(content, list) else [content]
    return [text.split("</think>")[-1] for text in found]


def _refusal_is_true(reference: Reference) -> bool:
    if reference.full is None:
        return True
    for turn in reference.turns:
        prompt, until = reference.render(turn, True), reference.render(turn + 1)
        if prompt is None or until is None or not until.startswith(prompt) or reference.left_out(turn):
            return True
    return False
