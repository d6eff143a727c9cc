"""Which text a row is rendered as, and which characters of it are learned with which weight.

Plans are exact or a TemplateError: `whole` makes one rendering of a row, `parts` as many as are needed for every turn
to be learned behind its own generation prompt. Knows no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from swift.chat.dialect import Dialect
from swift.chat.facts import USER, Facts
from swift.chat.forms import tools_of
from swift.chat.grounding import grounded
from swift.chat.label import Planned
from swift.chat.media import media_of, share, with_blocks
from swift.chat.processing import needed
from swift.chat.render import ChatTemplate, Refusal, Span
from swift.chat.scheme import Scheme
from swift.chat.thinking import PRESERVE, EmptyThinking, learn_empty_thinking
from swift.chat.turns import Conversation, Turn, composed, contents, find_turn, opened, opens_reasoning, text_of
from swift.errors import DataError, TemplateError

Weights = Mapping[int, tuple[float, bool]]  # message -> weight, and whether the scheme's rules weigh its words


class Planner:
    """The arguments are ChatEncoder's options of the same names."""

    def __init__(
        self,
        dialect: Dialect,
        scheme: Scheme,
        *,
        response_prefix: str = "",
        close_last_turn: bool = False,
        preserve_thinking: bool | None = None,
        add_non_thinking_prefix: bool | None = None,
    ):
        self.dialect, self.scheme = dialect, scheme
        self.response_prefix, self.close_last_turn = response_prefix, close_last_turn
        self.preserve_thinking, self.add_non_thinking_prefix = preserve_thinking, add_non_thinking_prefix
        self._empty: dict[str, EmptyThinking | None] = {}

    def whole(self, row: Mapping[str, Any]) -> Planned:
        """One rendering in which all that is chosen is learned. Raises TemplateError with the first turn for which that
        can't be had, or DataError."""
        if "messages" not in row:
            return _plan_text(row)
        talk, facts, weights = self._conversation(row)
        if self.scheme.base == "all":
            return Planned(talk.text, tuple(self.scheme.turn(talk.text, [(0, len(talk.text))])), media=media_of(row))
        modes = self._modes(talk, weights)
        if len(modes) > 1:
            what = "replies with reasoning and without it are of two modes of the template"
            raise TemplateError(what, where="chat template", fix="give one row per mode (encode_parts makes them)")
        change, weights = modes[0]
        talk = self._changed(talk, change)
        text, turns = self._turns(talk, facts, weights)
        for turn in turns:
            if turn.problem:
                raise self._error(turn, talk, facts)
        return replace(self._planned(talk, text, facts, turns, weights, change), media=media_of(row))

    def text(self, row: Mapping[str, Any]) -> str:
        """The rendering of the row's messages, whatever could be learned in it."""
        return self._conversation(row)[0].text

    def parts(self, row: Mapping[str, Any], template: ChatTemplate | None = None) -> list[Planned]:
        """As few renderings as it takes to learn every chosen turn once, behind its own generation prompt. Raises what
        `whole` raises. template: renders in place of the dialect's own, from the same source."""
        if "messages" not in row or self.scheme.base == "all":
            return [self.whole(row)]
        talk, facts, weights = self._conversation(row, template)
        media = media_of(row)
        plans: list[Planned] = []
        for change, chosen in self._modes(talk, weights):
            plans += self._parts(self._changed(talk, change), facts, chosen, change, media)
        return [replace(plan, notes=(*plan.notes, "part")) for plan in plans] if len(plans) > 1 else plans

    def _parts(
        self,
        talk: Conversation,
        facts: Facts,
        left: Weights,
        change: Mapping[str, Any],
        media: Mapping[str, Sequence[Any]],
    ) -> list[Planned]:
        plans: list[Planned] = []
        while True:
            made = len(plans)
            text, turns = self._turns(talk, facts, left)
            exact = [turn for turn in turns if not turn.problem]
            failed = [turn for turn in turns if turn.problem]
            if exact or not turns:
                plans.append(self._planned(talk, text, facts, exact, left, change))
            if failed and failed[-1].index == len(talk.chat) - 1:
                plans.append(self._composed(talk, facts, failed.pop(), left, change))
            if media:
                plans[made:] = [replace(plan, media=share(media, talk.chat)) for plan in plans[made:]]
            if not failed:
                return plans[::-1]
            left = {turn.index: left[turn.index] for turn in failed}
            talk = self._render(talk.template, talk.chat[: max(left) + 1], talk.tools, talk.variables, talk.drop)

    def _modes(self, talk: Conversation, weights: Weights) -> list[tuple[dict[str, Any], Weights]]:
        """The turns by the template variables that they are learned with: with `add_non_thinking_prefix`, replies
        without reasoning as the template's non-thinking mode has them."""
        bare = [i for i in weights if self.add_non_thinking_prefix and "reasoning" not in contents(talk.chat[i])]
        if not bare:
            return [({}, weights)]
        name = self.dialect.mode(talk.template)
        if talk.variables.get(name) is False:
            return [({}, weights)]
        thinking = {i: weight for i, weight in weights.items() if i not in bare}
        modes: list[tuple[dict[str, Any], Weights]] = [({name: False}, {i: weights[i] for i in bare})]
        return [({}, thinking), *modes] if thinking else modes

    def _changed(self, talk: Conversation, change: Mapping[str, Any]) -> Conversation:
        if not change:
            return talk
        return self._render(talk.template, talk.chat, talk.tools, {**talk.variables, **change}, talk.drop)

    def _composed(
        self, talk: Conversation, facts: Facts, turn: Turn, weights: Weights, change: Mapping[str, Any]
    ) -> Planned:
        """A row for the last turn alone, behind its generation prompt; TemplateError where that is no answer either."""
        closers = self.dialect.closers(facts)
        found = composed(talk, closers) or opened(talk, closers)
        checked, text = found and self._checked(found[1], talk, facts, found[0]) or (None, "")
        if checked is None or checked.problem:
            raise self._error(turn, talk, facts)
        plan = self._planned(talk, text, facts, [checked], weights, change)
        return replace(plan, notes=(*plan.notes, "composed"))

    def _conversation(
        self, row: Mapping[str, Any], other: ChatTemplate | None = None
    ) -> tuple[Conversation, Facts, Weights]:
        messages = row["messages"]
        if not messages:
            raise DataError("the row has no messages")
        media = media_of(row)
        if media and row.get("objects"):
            messages = grounded(row, needed(self.dialect.processor))["messages"]
        if media:
            messages = with_blocks(messages, media)
        tools = tools_of(row.get("tools"))
        template, facts = self.dialect.template(tools)
        chat = self.dialect.chat(messages, facts)
        offset = len(chat) - len(messages)
        weights = self._weights(messages)
        if self.response_prefix:
            chat = [self._with_prefix(m) if i - offset in weights else m for i, m in enumerate(chat)]
        own = row.get("chat_template_kwargs") or {}
        keep = self.preserve_thinking
        if PRESERVE in own and PRESERVE not in template.variables:
            keep = bool(own[PRESERVE])
        history = self.dialect.history(template, facts, keep)
        variables = {**self.dialect.variables, **history.variables, **own}
        talk = self._render(other or template, chat, tools, variables, history.drop)
        return talk, facts, {i + offset: weight for i, weight in weights.items()}

    def _render(
        self, template: ChatTemplate, chat: list, tools: Any, variables: Mapping[str, Any], drop: bool
    ) -> Conversation:
        try:
            return Conversation(template, chat, tools, variables, drop)
        except Refusal as reason:
            raise TemplateError(f"the chat template refuses the conversation: {reason}") from None

    def _weights(self, messages: Sequence[Mapping[str, Any]]) -> Weights:
        """Index of each message to learn -> weight; a message's own `loss` and `loss_scale` overrule the scheme."""
        last_user = max((i for i, m in enumerate(messages) if m.get("role") == "user"), default=-1)
        weights = {}
        for i, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            weight = 0.0 if self.scheme.base == "last_round" and i < last_user else 1.0
            if message.get("loss") is not None:
                weight = float(message["loss"])
            if message.get("loss_scale") is not None:
                weight = float(message["loss_scale"])
            own = message.get("loss") is not None or message.get("loss_scale") is not None
            if weight:
                weights[i] = (weight, not own)
        return weights

    def _turns(self, talk: Conversation, facts: Facts, weights: Weights) -> tuple[str, list[Turn]]:
        """The text, and the turns found in it."""
        text, turns = talk.text, []
        for index in sorted(weights):
            turn = find_turn(talk, index, self.dialect.closers(facts), facts.header)
            if not turn.problem:
                turn, text = self._checked(turn, talk, facts, text)
            turns.append(turn)
        return text, turns

    def _checked(self, turn: Turn, talk: Conversation, facts: Facts, text: str) -> tuple[Turn, str]:
        """The turn as the options want it, or with a problem; and the text, which loses an empty thinking before the
        last turn where none is to be added."""
        if self.add_non_thinking_prefix is False:
            turn, text = self._without_empty_thinking(turn, talk, facts, text)
        return (turn if turn.problem else self._suiting(turn, talk, text)), text

    def _without_empty_thinking(self, turn: Turn, talk: Conversation, facts: Facts, text: str) -> tuple[Turn, str]:
        empty, message = self._empty_thinking(talk, facts), talk.chat[turn.index]
        start = turn.spans[0][0]
        if empty is None or "reasoning" in contents(message) or not text.startswith(empty.text, start):
            return turn, text
        if empty.mark and text_of(message.get("content")).lstrip().startswith(empty.mark):
            return turn, text  # the data's own
        if not empty.mark:
            return Turn(turn.index, problem="the generation prompt opens its reasoning, and it has none"), text
        if turn.index != len(talk.chat) - 1:
            return Turn(turn.index, problem="the template writes an empty thinking before it"), text
        cut = start + len(empty.text) - len(empty.text.lstrip()), start + len(empty.text)

        def moved(at: int) -> int:
            return at if at <= cut[0] else max(cut[0], at - (cut[1] - cut[0]))

        spans = tuple((moved(a), moved(b)) for a, b in turn.spans)
        return replace(turn, spans=spans), text[: cut[0]] + text[cut[1] :]

    def _empty_thinking(self, talk: Conversation, facts: Facts) -> EmptyThinking | None:
        source = talk.template.source
        if source not in self._empty:
            asked = [{"role": "user", "content": USER}]

            def reply(message: Mapping[str, Any]) -> str | None:
                chat = self.dialect.chat([*asked, {"role": "assistant", **message}], facts)
                try:
                    shown = Conversation(talk.template, chat, None, self.dialect.variables)
                except Refusal:
                    return None
                prompt = shown.prompt(len(chat) - 1)
                return shown.text[len(prompt) :] if prompt and shown.text.startswith(prompt) else None

            self._empty[source] = learn_empty_thinking(reply)
        return self._empty[source]

    def _suiting(self, turn: Turn, talk: Conversation, text: str) -> Turn:
        """Refuse a turn whose tool calls the template doesn't show; move the start behind the response prefix."""
        here = "".join(text[a:b] for a, b in turn.spans)
        held = contents(talk.chat[turn.index])
        if "tool calls" in held:
            for name in ("tool calls", "content"):
                if any(piece not in here for piece in held.get(name, ())):
                    why = _by_id(talk.chat[turn.index], here) or f"the template leaves out its {name}"
                    return Turn(turn.index, problem=why)
        if self.response_prefix:
            if not here.startswith(self.response_prefix):
                return Turn(turn.index, problem=f"it doesn't begin with --response_prefix {self.response_prefix!r}")
            (start, end), *rest = turn.spans
            return replace(turn, spans=((start + len(self.response_prefix), end), *rest))
        return turn

    def _planned(
        self,
        talk: Conversation,
        text: str,
        facts: Facts,
        turns: Sequence[Turn],
        weights: Weights,
        change: Mapping[str, Any],
    ) -> Planned:
        spans = tuple(piece for turn in turns for piece in self._pieces(talk, text, facts, turn, *weights[turn.index]))
        notes = []
        if any(turn.history for turn in turns):
            notes.append("history")
        if any(not turn.closed for turn in turns):
            notes.append("no_end")
        if talk.tools and not facts.tools:
            notes.append("tools_left_out")
        if any(_reasoning_left_out(talk.chat[turn.index], text, turn) for turn in turns):
            notes.append("reasoning_left_out")
        if change:
            notes.append("non_thinking")
        open_end = bool(turns) and not turns[-1].closed and turns[-1].spans[-1][1] == len(text)
        return Planned(text, spans, tuple(notes), add_end=self.close_last_turn and open_end)

    def _pieces(
        self, talk: Conversation, text: str, facts: Facts, turn: Turn, weight: float, ruled: bool
    ) -> list[tuple[Span, float]]:
        """The turn's spans with their weights; the end-of-turn token keeps the turn's own."""
        if not ruled or not self.scheme.rules:
            return [(span, weight) for span in turn.spans]
        asked = next((m for m in reversed(talk.chat[: turn.index]) if m.get("role") == "user"), {})
        question = "".join(contents(asked).get("content", ()))
        closers = self.dialect.closers(facts) if turn.closed else ()
        return self.scheme.turn(text, turn.spans, closers, weight, question)

    def _error(self, turn: Turn, talk: Conversation, facts: Facts) -> TemplateError:
        number = sum(m.get("role") == "assistant" for m in talk.chat[: turn.index + 1])
        fixes = []
        if turn.index != len(talk.chat) - 1:
            fixes.append("learn only the last round (--loss_scale last_round) or give one row per assistant turn")
        for name, values in (("enable_thinking", (False, True)), ("preserve_thinking", (True,))):
            if name in talk.template.variables and name not in talk.variables:
                suiting = [value for value in values if self._suits(talk, facts, turn, {name: value})]
                fixes += [f"{name}={json.dumps(value)} suits it" for value in suiting]
                if False in suiting and self.add_non_thinking_prefix is None:
                    fixes.append("use that mode for replies without reasoning (--add_non_thinking_prefix true)")
        if self.add_non_thinking_prefix is False and "reasoning" not in contents(talk.chat[turn.index]):
            fixes.append("leave out --add_non_thinking_prefix false")
        if opens_reasoning(talk, turn.index):
            fixes.append("give the reply its reasoning (reasoning_content, or <think>...</think> before the answer)")
        fixes.append("pass a template made for training (--template FILE)")
        return TemplateError(
            f"assistant turn {number} can't be learned exactly: {turn.problem}",
            where="chat template",
            fix="; or ".join(fixes),
        )

    def _suits(self, talk: Conversation, facts: Facts, turn: Turn, change: dict[str, Any]) -> bool:
        """Whether the turn could be learned with other template variables."""
        try:
            other = Conversation(talk.template, talk.chat, talk.tools, {**talk.variables, **change}, talk.drop)
        except Refusal:
            return False
        found = find_turn(other, turn.index, self.dialect.closers(facts), facts.header)
        return not (found.problem or self._checked(found, other, facts, other.text)[0].problem)

    def _with_prefix(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content", "")
        if isinstance(content, str) and not content.startswith(self.response_prefix):
            return {**message, "content": self.response_prefix + content}
        return message


def _plan_text(row: Mapping[str, Any]) -> Planned:
    text = row.get("text")
    if not isinstance(text, str):
        raise DataError("the row has neither messages nor text")
    return Planned(text, raw=True)


def _by_id(message: Mapping[str, Any], shown: str) -> str | None:
    """Of a tool call that the template shows by its id, which doesn't hold its name: what to give instead."""
    for number, call in enumerate(message.get("tool_calls") or ()):
        name, identity = call.get("function", call).get("name"), call.get("id")
        if name in shown:
            continue
        wanted = f"give ids that hold the name, such as functions.{name}:{number}"
        if identity and identity in shown:
            return f"the template shows the id of a tool call, {identity!r}, in place of its name {name!r}: {wanted}"
        if not identity:
            return f"the template doesn't show a tool call's name {name!r}, and the call has no id: {wanted}"
    return None


def _reasoning_left_out(message: Mapping[str, Any], text: str, turn: Turn) -> bool:
    here = "".join(text[a:b] for a, b in turn.spans)
    return any(piece not in here for piece in contents(message).get("reasoning", ()))
