"""How a template spells replies, learned by rendering a few with known words in them.

Read off is what stands around those words: the marks of reasoning, what is before and behind plain content, and how a
tool call is written. No format is known by name. A template that can't show tool calls has none to parse.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from swift.chat.replies import Calls, JsonCalls, Marks, NamedCalls, PairCalls, ReplyFormat, json_at, without_stops

NAME, OTHER, KEY_A, KEY_B, VALUE, NUMBER = "zq_tool", "zq_other", "zqa", "zqb", "zqv", 70707
ANSWER, THOUGHT, CALL_ID, HOLDER = "zqAnswer", "zqThought", "zqcall001", "functions."
_WORD = r"[\w.\-/]+"
Reply = Callable[[Mapping[str, Any]], "tuple[str, str] | None"]


def learn_replies(reply: Reply, prompt: str | None, stops: Sequence[str]) -> ReplyFormat:
    """reply: an assistant message -> (what the prompt has written already, what the template writes behind it)
    or None where the template refuses the message."""

    plain = reply({"content": ANSWER})
    tail = plain[1].rpartition(ANSWER)[2].strip() if plain else ""
    stops = [stop for stop in dict.fromkeys([tail, *stops, without_stops(tail, stops)]) if stop]

    def bare(message: Mapping[str, Any]) -> tuple[str, str] | None:
        shown = reply(message)
        return shown and (shown[0], without_stops(shown[1], stops))

    marks, opens, closes = _learn_reasoning(bare, prompt or "")
    calls = _learn_calls(bare, marks)
    calls, behind = _learn_behind(bare, calls) if calls else (calls, "")
    return ReplyFormat(marks, opens, closes, calls, behind, tuple(stops))


def _learn_behind(reply: Reply, calls: Calls) -> tuple[Calls, str]:
    """The calls, and what they leave before the content of the same message, where that follows them."""
    alone, shown = (reply({"content": text, "tool_calls": [_call({KEY_A: VALUE})]}) for text in ("", ANSWER))
    if alone is None or shown is None or not _in_order(shown[1], NAME, VALUE, ANSWER):
        return calls, ""
    if isinstance(calls, NamedCalls) and (match := calls.pattern.search(alone[1])):
        calls = replace(calls, close=alone[1][json_at(alone[1], match.end())[1] :].strip())
    content, _ = calls.find(shown[1], ())
    return calls, content.strip().partition(ANSWER)[0]


def _learn_reasoning(reply: Reply, prompt: str) -> tuple[Marks, tuple[str, ...], tuple[str, ...]]:
    """The marks of reasoning, and what stands before and behind plain content."""
    plain = reply({"content": ANSWER})
    shown = reply({"content": ANSWER, "reasoning_content": THOUGHT})
    opens = [plain[1].partition(ANSWER)[0]] if plain and ANSWER in plain[1] else []
    closes = [found[1].rpartition(ANSWER)[2] for found in (shown, plain) if found and ANSWER in found[1]]
    if shown is not None and (behind := _marks_behind(shown[1], closes[-1] if closes else "")):
        return behind, _some(opens), _some(closes[1:])
    if shown is None or not _in_order(shown[1], THOUGHT, ANSWER):
        return _marks_without_answer(reply, prompt, plain), _some(opens), _some(closes)
    opening, _, rest = shown[1].partition(THOUGHT)
    middle = rest.partition(ANSWER)[0]
    lead = opens[0] if opens else ""
    torn = 0 <= lead.find(">") < (lead + "<").find("<")  # the prompt begins as the reply does, inside a mark
    if lead.strip() and not torn and middle.endswith(lead) and middle.removesuffix(lead).strip():
        return _marks(shown[0], opening, middle.removesuffix(lead).strip(), prompt), _some(opens), _some(closes)
    call = reply({"content": "", "reasoning_content": THOUGHT, "tool_calls": [_call({KEY_A: VALUE})]})
    shared = middle
    if call is not None and _in_order(call[1], THOUGHT, NAME):
        shared = _shared(middle, call[1].partition(THOUGHT)[2]) or middle
    closing = shared.strip() or middle.strip()
    opens = [middle[len(shared) :], *(o for o in opens if closing not in o)]
    return _marks(shown[0], opening, closing, prompt), _some(opens), _some(closes)


def _marks_behind(shown: str, close: str) -> Marks | None:
    """Marks of reasoning that follows the answer. close: what stands behind an answer without reasoning."""
    answer, _, reasoning = shown.partition(ANSWER)
    opening, found, closing = reasoning.partition(THOUGHT)
    opening = opening.removeprefix(close).rstrip()
    return Marks(opening, closing.strip(), behind=True) if found and THOUGHT not in answer and opening else None


def _marks(written: str, opening: str, closing: str, prompt: str) -> Marks:
    """written: what the prompt has written already, perhaps the opening mark."""
    opening = opening.strip() or (written.split() or [""])[-1]
    return Marks(opening, closing, prompt.rstrip().endswith(opening))


def _marks_without_answer(reply: Reply, prompt: str, plain: tuple[str, str] | None) -> Marks:
    """Where reasoning isn't shown before an answer: it is before calls, or the prompt opens it for the model."""
    reasoned = {"content": "", "reasoning_content": THOUGHT, "tool_calls": [_call({KEY_A: VALUE})]}
    call, bare = reply(reasoned), reply({"content": "", "tool_calls": [_call({KEY_A: VALUE})]})
    if call is not None and _in_order(call[1], THOUGHT, NAME):
        opening, _, rest = call[1].partition(THOUGHT)
        follows = _common(rest[::-1], bare[1][::-1])[::-1] if bare else ""
        between = rest[: len(rest) - len(follows)].strip() if follows.lstrip().startswith(_first_word(bare)) else None
        if between == "":  # nothing but what begins the call
            return Marks(opening.strip(), _first_word(bare), kept=True)
        return Marks(opening.strip(), re.split(r"[\s]|(?<=>)(?=<)", rest.strip(), maxsplit=1)[0])
    opened = prompt[len(plain[0]) :].strip() if plain else ""
    if re.fullmatch(r"<[^<>/\s]+>", opened):
        return Marks(opened, f"</{opened[1:]}", opened=True)
    return Marks()


def _first_word(shown: tuple[str, str] | None) -> str:
    return shown[1].split(maxsplit=1)[0] if shown and shown[1].strip() else ""


def _some(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(text for text in dict.fromkeys(texts) if text)


def _learn_calls(reply: Reply, marks: Marks, by_id: bool = False) -> Calls | None:
    """by_id: the calls' ids hold their names, for a template that shows only those."""

    def calls(*arguments: Any) -> str | None:
        made = zip(arguments, (NAME, OTHER), (0, 1), strict=False)
        held = [_call(a, name) | ({"id": f"{HOLDER}{name}:{i}"} if by_id else {}) for a, name, i in made]
        message = {"tool_calls": held}
        shown = reply({"content": "", **message}) or reply(message)
        if shown is None:
            return None
        return shown[1] if marks.kept or not marks.closing else shown[1].rpartition(marks.closing)[2]

    text = calls({KEY_A: VALUE, KEY_B: NUMBER})
    if text is None or not _in_order(text, NAME, KEY_A, VALUE, KEY_B, str(NUMBER)):
        return _learn_calls(reply, marks, True) if text and CALL_ID in text and not by_id else None
    two = calls({KEY_A: VALUE}, {KEY_A: VALUE})
    found = _json_object(text, _lead_behind_content(reply, "{"))
    if found is not None:
        return found
    before, after = _around_last_name(text)
    again = two.rpartition(OTHER)[0].rpartition(VALUE)[2] if two and OTHER in two else before
    anchor = _whole_marks(before, _common(before[::-1], again[::-1])[::-1]) or before
    leads = [
        before[: len(before) - len(anchor)].strip(),
        _lead_behind_content(reply, NAME).removesuffix(anchor).strip(),
    ]
    lead = "|".join(re.escape(one).replace(NAME, _WORD) for one in dict.fromkeys(leads))
    wrapper = re.compile(rf"\s*(?:{lead})\s*\Z")
    start = re.escape(anchor.strip())
    brace = after.find("{")
    if brace >= 0 and isinstance(json_at(after, brace)[0], dict):
        fixed = r"\s*".join(map(re.escape, after[:brace].split())).replace(CALL_ID, r"(?P<id>[\w\-]+)")
        if two and OTHER in two and _counted(after[:brace], two.rpartition(OTHER)[2].partition("{")[0]):
            fixed = re.sub(r"\d+", r"\\d+", fixed)
        start = start.replace(CALL_ID, r"(?P<id>[\w\-]+)") if CALL_ID not in after else start
        name = rf"(?P<name>{_WORD})"
        if by_id:
            held = re.escape(HOLDER)
            start, name = start.removesuffix(held), rf"(?P<id>{held}{name}:\d+)"
            fixed = fixed.removeprefix(r":\d+")
        return NamedCalls(wrapper, re.compile(rf"{start}\s*{name}\s*{fixed}\s*(?=\{{)"))
    start = start.replace(CALL_ID, r"[\w\-]+")
    swapped = calls({KEY_A: NUMBER, KEY_B: VALUE})
    if swapped is None or not _in_order(swapped, KEY_A, str(NUMBER), KEY_B, VALUE):
        return None
    return _pair_format(calls, text, swapped, two, wrapper, start)


def _lead_behind_content(reply: Reply, begin: str) -> str:
    """What stands between content and the `begin` of a call."""
    shown = reply({"content": ANSWER, "tool_calls": [_call({KEY_A: VALUE})]})
    return _between(shown[1], ANSWER, begin) if shown and _in_order(shown[1], ANSWER, begin, KEY_A) else ""


def _counted(first: str, second: str) -> bool:
    """Whether two texts differ by their numbers alone."""
    return first != second and re.sub(r"\d+", "0", first).split() == re.sub(r"\d+", "0", second).split()


def _whole_marks(text: str, ending: str) -> str:
    """The ending of a text without the rest of a mark in angle brackets that it may begin with."""
    closed = ending.find(">")
    torn = len(ending) < len(text) and closed >= 0 and "<" not in ending[:closed]
    return ending[closed + 1 :] if torn else ending


def _pair_format(
    calls: Callable[..., str | None],
    text: str,
    swapped: str,
    two: str | None,
    wrapper: re.Pattern[str],
    start: str,
) -> PairCalls:
    """Read quotes, separators and ends off two renderings whose arguments have swapped types."""
    none = calls({})
    number = str(NUMBER)
    assign = _between(text, KEY_B, number)
    quoted = _between(text, KEY_A, VALUE)
    between = _between(swapped, number, KEY_B)
    opening = quoted[len(assign) :] if quoted.startswith(assign) else ""
    closing = _between(text, VALUE, KEY_B).removesuffix(between)
    kinds = not opening and _common(quoted, assign) and _common(quoted[::-1], assign[::-1])  # a kind in the middle
    end = whole = swapped.rpartition(VALUE)[2].removeprefix(closing)
    joiner = start
    if two and OTHER in two:
        gap = _between(two, VALUE, OTHER).removeprefix(closing)
        end = _untorn(_common(end, gap)) or end
        joiner = r"\s*" + re.escape(gap.removeprefix(end).strip()).replace(NAME, _WORD)
    empty = none.rpartition(NAME)[2] if none and NAME in none else ""
    return PairCalls(
        wrapper,
        re.compile(rf"{start}\s*(?P<name>{_WORD})"),
        re.compile(rf"{joiner}\s*(?P<name>{_WORD})"),
        _around_last_name(text)[1].partition(KEY_A)[0],
        assign,
        (opening, closing),
        between,
        end,
        whole.removeprefix(end),
        empty,
        assign_text=quoted if kinds and quoted != assign else "",
        escaped=bool(opening) and f"{VALUE}\\{opening}" in (calls({KEY_A: f"{VALUE}{opening}", KEY_B: NUMBER}) or ""),
    )


def _untorn(text: str) -> str:
    """The text without the beginning of a mark in angle brackets that it ends with."""
    return text[: text.rfind("<")] if text.rfind("<") > text.rfind(">") else text


def _json_object(text: str, behind_content: str) -> JsonCalls | None:
    """The format when some JSON object in the text holds both the name and the arguments. behind_content: what stands
    between content and the first brace."""
    for match in re.finditer(r"\{", text):
        value, stop = json_at(text, match.start())
        if isinstance(value, dict):
            name = next((k for k, v in value.items() if v == NAME), None)
            arguments = next((k for k, v in value.items() if isinstance(v, dict) and KEY_A in v), None)
            if name is None or arguments is None:
                return None
            begin = _opened(text[: match.start()])
            if behind_content:
                begin = _whole_marks(begin, _common(begin[::-1], _opened(behind_content)[::-1])[::-1]) or begin
            return JsonCalls(begin, text[stop:].strip(), name, arguments)
    return None


def _opened(text: str) -> str:
    """What begins calls, without the bracket of a list of them."""
    return text.strip().removesuffix("[").strip()


def _around_last_name(text: str) -> tuple[str, str]:
    """What stands before and after the name that the arguments follow."""
    at = text.rindex(NAME, 0, text.index(KEY_A))
    return text[:at], text[at + len(NAME) :]


def _shared(a: str, b: str) -> str:
    """The common beginning, not ending inside a word."""
    common = _common(a, b)
    if all(text[len(common) : len(common) + 1] in ("", "<", "[", " ", "\n") for text in (a, b)):
        return common
    return re.match(r"(?s)(.*[>\]\s])?", common)[0]


def _call(arguments: Mapping[str, Any], name: str = NAME) -> dict[str, Any]:
    return {"id": CALL_ID, "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def _between(text: str, a: str, b: str) -> str:
    return text.partition(a)[2].partition(b)[0]


def _common(a: str, b: str) -> str:
    size = 0
    while size < min(len(a), len(b)) and a[size] == b[size]:
        size += 1
    return a[:size]


def _in_order(text: str, *words: str) -> bool:
    position = 0
    for word in words:
        position = text.find(word, position)
        if position < 0:
            return False
        position += len(word)
    return True
