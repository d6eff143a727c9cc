"""A tokenizer's chat template with the variables it is given, and conversations in the form in which it takes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swift.chat.facts import TOOL, Facts, learn
from swift.chat.forms import with_content, with_json_arguments
from swift.chat.processing import Processing
from swift.chat.render import ChatTemplate, Refusal, compiled, normalised
from swift.chat.thinking import AS_WRITTEN, MODES, History, learn_history, without_earlier_reasoning
from swift.chat.tokens import Tokens
from swift.errors import DataError, TemplateError


class Dialect:
    """template: Jinja text; None takes the tokenizer's own, or its processor's. system: of conversations that have
    none. variables: what the template is given beside a conversation. extra_stops: ids that may end a turn besides
    those found in the template."""

    def __init__(
        self,
        tokenizer: Any,
        tokens: Tokens,
        processor: Processing | None,
        *,
        template: str | None,
        system: str | None,
        variables: Mapping[str, Any],
        extra_stops: Iterable[int],
    ):
        self.tokenizer, self.processor, self.given, self.system = tokenizer, processor, template, system
        self.variables, self.extra_stops = dict(variables), tuple(extra_stops)
        self._added = tokens.added
        self._facts: dict[str, Facts] = {}
        self._histories: dict[tuple[str, bool], History] = {}

    def source(self, tools: Any = None) -> str | None:
        """The template's text; None where there is none. Some tokenizers have another one for tools."""
        if self.given is not None:
            return self.given
        if self.tokenizer.chat_template:
            return self.tokenizer.get_chat_template(None, tools)
        return None if self.processor is None else self.processor.chat_template

    def template(self, tools: Any = None) -> tuple[ChatTemplate, Facts]:
        """Raises TemplateError where there is none, or it is no Jinja."""
        source = self.source(tools)
        if source is None:
            raise TemplateError(
                "the tokenizer has no chat template", fix="name one with --template, for example --template chatml"
            )
        template = compiled(source)
        if source not in self._facts:
            self._facts[source] = learn(template, self.variables, self._added)
        return template, self._facts[source]

    def closers(self, facts: Facts) -> tuple[str, ...]:
        """Texts that end a turn."""
        known = [self.tokenizer.eos_token, *self.tokenizer.convert_ids_to_tokens(list(self.extra_stops))]
        return tuple(dict.fromkeys([*facts.closers, *(text for text in known if text)]))

    def chat(self, messages: Sequence[Mapping[str, Any]], facts: Facts) -> list[dict[str, Any]]:
        """The messages as the template takes them: content form, tool arguments, the default system message."""
        chat = []
        for i, message in enumerate(normalised(messages)):
            message.pop("loss", None)
            message.pop("loss_scale", None)
            if not isinstance(message.get("role"), str):
                raise DataError(f"message {i + 1} has no role")
            message = with_content(message, facts, i)
            if message.get("tool_calls") and not (facts.text_arguments and facts.object_arguments):
                message = with_json_arguments(message, as_text=facts.text_arguments)
            chat.append(message)
        if self.system is not None and (not chat or chat[0]["role"] not in ("system", "developer")):
            first = {"role": "system", "content": self.system}
            chat.insert(0, with_content(first, facts, 0))
        return chat

    def history(self, template: ChatTemplate, facts: Facts, keep: bool | None) -> History:
        """How the reasoning of earlier rounds is kept or dropped; None leaves it to the template. Raises TemplateError
        where the template can't keep it."""
        if keep is None:
            return AS_WRITTEN
        if (template.source, keep) not in self._histories:

            def shown(messages: Sequence[Mapping[str, Any]], prompt: bool, more: Mapping[str, Any]) -> str | None:
                variables = {**self.variables, **more}
                return _text(template, self.chat(messages, facts), None, prompt, variables)

            self._histories[template.source, keep] = learn_history(shown, template.variables, keep)
        return self._histories[template.source, keep]

    def mode(self, template: ChatTemplate) -> str:
        """The variable that is false for no thinking. Raises TemplateError where the template reads none."""
        name = next((name for name in MODES if name in template.variables), None)
        if name is None:
            fix = "leave out --add_non_thinking_prefix true"
            raise TemplateError("it has no mode without thinking", where="chat template", fix=fix)
        return name

    def prompt_text(self, messages: Sequence[Mapping[str, Any]], tools: list[Any] | None, keep: bool | None) -> str:
        """What a model is given to write the next message. keep: see `history`."""
        template, facts = self.template(tools)
        chat, history = self.chat(messages, facts), self.history(template, facts, keep)
        if history.drop:
            chat = without_earlier_reasoning(chat)
        variables = {**self.variables, **history.variables}
        try:
            return template.render(chat, tools, add_generation_prompt=True, variables=variables).text
        except Refusal as reason:
            raise TemplateError(f"the chat template refuses the conversation: {reason}") from None

    def with_tool(self, messages: Sequence[Mapping[str, Any]], prompt: bool) -> str | None:
        """A rendering with the probes' tool; None where the template refuses it."""
        template, facts = self.template([TOOL])
        return _text(template, self.chat(messages, facts), [TOOL], prompt, self.variables)


def _text(
    template: ChatTemplate, chat: list[dict[str, Any]], tools: Any, prompt: bool, variables: Mapping[str, Any]
) -> str | None:
    try:
        return template.render(chat, tools, add_generation_prompt=prompt, variables=variables, marks=False).text
    except Refusal:
        return None
