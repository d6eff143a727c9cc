"""Messages -> token ids and labels, by the model's own chat template.

What it promises, for any Jinja template (docs/decisions/002-chat-encoding.md has the reasons):
- the ids of a conversation are exactly those of transformers' `apply_chat_template(messages, tokenize=True)`;
- the labels cover the chosen assistant turns and their end-of-turn token, and nothing else;
- what stands before a learned turn is exactly the generation prompt that the model gets when it is served;
- a row for which this can't be had raises TemplateError with the reason, it is never guessed. `encode_parts` may
  instead make several exact rows of one conversation (a template that drops earlier reasoning).

It knows no template by name. It doesn't read files, convert formats or mix data (swift.data), and it doesn't pad.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from swift.chat.encoded import Encoded, RowDropped
from swift.chat.facts import TOOL, USER, Facts, learn
from swift.chat.forms import tools_of, with_content, with_json_arguments
from swift.chat.grounding import with_objects
from swift.chat.label import Planned, label, learned, pieces
from swift.chat.media import expand, media_of, placed_media, with_blocks
from swift.chat.processing import Processing
from swift.chat.render import ChatTemplate, Refusal, Rendered, Span, compiled, normalised
from swift.chat.replies import ReplyFormat, learn_replies
from swift.chat.scheme import parse_scheme
from swift.chat.shapes import Match, Shapes
from swift.chat.symbols import is_symbolic
from swift.chat.tokens import Tokenized, Tokens
from swift.chat.turns import Conversation, Turn, common_prefix, composed, contents, find_turn, opened, opens_reasoning
from swift.errors import DataError, TemplateError, UsageError

Weights = Mapping[int, tuple[float, bool]]  # message -> weight, and whether the scheme's rules weigh its words
STRATEGIES = ("delete", "left", "right", "split")


class ChatEncoder:
    """Encode rows for training and conversations for generation with one tokenizer and one chat template.

    template: Jinja text; None takes the tokenizer's own. system: added to rows that have no system message.
    enable_thinking: passed to the template when not None. template_kwargs: further variables of the template.
    loss_scale: "default" learns every assistant turn, "last_round" those after the last user message, "all" all tokens;
    with further names (swift.chat.scheme) their words weigh more or less.
    response_prefix: begins every reply; given in prompts, present but not learned in training.
    close_last_turn: adds eos after a last turn that the template leaves open; the ids are then one longer than
    `apply_chat_template`'s.
    stop_token_ids: generation_config's eos ids, which may end a turn besides those found in the template.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        template: str | None = None,
        system: str | None = None,
        enable_thinking: bool | None = None,
        loss_scale: str = "default",
        max_length: int | None = None,
        truncation_strategy: str = "delete",
        response_prefix: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
        stop_token_ids: Iterable[int] = (),
        close_last_turn: bool = False,
        processor: Any = None,
    ):
        _one_of("--truncation_strategy", truncation_strategy, STRATEGIES)
        self.tokenizer, self.template = tokenizer, template
        self.processor = (
            processor if processor is None or isinstance(processor, Processing) else Processing.of(processor)
        )
        self.system, self.loss_scale = system, loss_scale
        self.scheme = parse_scheme(loss_scale)  # public, as the options are: cached rows depend on it
        self.max_length, self.truncation_strategy = max_length, truncation_strategy
        self.response_prefix = response_prefix or ""
        self.variables: dict[str, Any] = {**tokenizer.special_tokens_map, **(template_kwargs or {})}
        if enable_thinking is not None:
            self.variables["enable_thinking"] = enable_thinking
        self.close_last_turn = close_last_turn
        self._tokens = Tokens(tokenizer)
        self._extra_stops = tuple(stop_token_ids)
        self._facts: dict[str, Facts] = {}
        self._replies: dict[str, ReplyFormat] = {}
        self._known: dict[str, Shapes | None] = {}

    # --- training ------------------------------------------------------------------------------------------------

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """One row -> one Encoded. Raises TemplateError, DataError, or RowDropped when it is too long."""
        planned = self._plan_whole(row)
        whole, ends = self._whole(planned, self._tokens.tokenize([planned.text], [planned.raw])[0])
        found = pieces(whole, ends, self.max_length, self.truncation_strategy)
        if len(found) > 1:
            raise RowDropped("too_long", whole.length, self.max_length)
        return found[0]

    def encode_parts(self, row: Mapping[str, Any]) -> list[Encoded]:
        """One row -> one or more Encoded: a conversation whose turns can't all be learned exactly in one rendering
        is given as several rows, each ending with a turn; `truncation_strategy="split"` cuts a long text in pieces.
        Every chosen turn is learned exactly once. Raises what `encode` raises."""
        found = self.encode_batch([row])[0]
        if isinstance(found, list):
            return found
        raise found

    def encode_batch(self, rows: Sequence[Mapping[str, Any]]) -> list[list[Encoded] | TemplateError | DataError]:
        """`encode_parts` of each row, with the tokenizer called once; a row's error (RowDropped is a DataError)
        stands in its place. A part that is too long is dropped by itself, and the next one says how many were."""
        shapes = self._shapes()
        plans = [self._matched_or_planned(row, shapes) for row in rows]
        matches = [plan for plan in plans if isinstance(plan, Match)]
        found = self._by_segments(matches)
        plans = [(next(found) or [plan.planned()]) if isinstance(plan, Match) else plan for plan in plans]
        every = [plan for made in plans if isinstance(made, list) for plan in made]
        tokenized = iter(self._tokens.tokenize([plan.text for plan in every], [plan.raw for plan in every]))
        return [self._outcome(made, tokenized) for made in plans]

    def _matched_or_planned(
        self, row: Mapping[str, Any], shapes: Shapes | None
    ) -> Match | list[Planned] | TemplateError | DataError:
        try:
            if media_of(row):
                return self._plan_media(row)
            return (shapes and shapes.find(row, self._plan_parts)) or self._plan_parts(row)
        except (TemplateError, DataError) as error:
            return error

    def _by_segments(self, matches: Sequence[Match]) -> Iterator[tuple[Encoded, list[int]] | None]:
        """Rows of known shape, encoded; None for one that has to be tokenized in one piece."""
        texts = [text for match in matches if match.shape.segments for text in match.variable()]
        ids = iter(self._tokens.separate(texts) if texts else ())
        eos = self.tokenizer.eos_token_id
        for match in matches:
            found = match.shape.tokens(ids) if match.shape.segments else None
            plan = match.shape.plan
            yield found and learned(plan, *found, plan.notes, eos)

    def _outcome(self, made: Any, tokenized: Iterator[Tokenized]) -> list[Encoded] | TemplateError | DataError:
        if isinstance(made, list):
            pairs = [(plan, next(tokenized)) for plan in made]
            try:
                return self._parts([self._whole(*pair) for pair in pairs])
            except (TemplateError, DataError) as error:
                return error
        if not isinstance(made, tuple):
            return made
        whole, _ = made
        return [whole] if self.max_length is None or whole.length <= self.max_length else self._parts([made])

    def _whole(self, plan: Planned, tokenized: Tokenized) -> tuple[Encoded, list[int]]:
        if plan.media:
            return expand(plan, tokenized, self._tokens, self.processor)
        return label(plan, tokenized, self._tokens)

    def _parts(self, wholes: Sequence[tuple[Encoded, list[int]]]) -> list[Encoded] | RowDropped:
        found: list[Encoded] = []
        dropped: list[RowDropped] = []
        for whole, ends in wholes:
            try:
                found += pieces(whole, ends, self.max_length, self.truncation_strategy)
            except RowDropped as error:
                dropped.append(error)
        if dropped and not found:
            return dropped[0]
        if dropped:
            found[0] = replace(found[0], notes=(*found[0].notes, *(f"part_{one.reason}" for one in dropped)))
        return found

    def _shapes(self) -> Shapes | None:
        """Shapes of rows without tools; None where there is no template, all is learned, or words are weighed."""
        source = self._source(None)
        if source is None or self.scheme.base == "all" or self.scheme.rules:
            return None
        if source not in self._known:
            given = (self.system, self.response_prefix, self.variables)
            closers = self._closers(self._template(None)[1])
            self._known[source] = (
                None if is_symbolic(given) else Shapes(source, self._plan_parts, self._tokens, closers)
            )
        return self._known[source]

    def read_only(self, row: Mapping[str, Any]) -> list[int]:
        """The ids of a row of which nothing is learned: those of `apply_chat_template` for its messages, or of its
        text with the tokenizer's own special tokens and eos behind it."""
        if "messages" not in row:
            planned = self._plan_text(row)
            return label(planned, self._tokens.tokenize([planned.text], [True])[0], self._tokens)[0].input_ids
        if media_of(row):
            raise DataError("only text can be classified, embedded or ranked; the row has media")
        return self._tokens.ids(self._conversation(row)[0].text)

    # --- generation ----------------------------------------------------------------------------------------------

    def prompt_text(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
        """The text that a model is given to write the next reply."""
        template, facts = self._template(tools)
        chat = self._chat(messages, facts)
        try:
            shown = template.render(chat, tools_of(tools), add_generation_prompt=True, variables=self.variables)
        except Refusal as reason:
            raise TemplateError(f"the chat template refuses the conversation: {reason}") from None
        return shown.text + self.response_prefix

    def prompt(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> list[int]:
        """`prompt_text` as ids; the same ids stand before a learned turn in training."""
        return self._tokens.ids(self.prompt_text(messages, tools))

    def prompt_inputs(
        self, messages: Sequence[Mapping[str, Any]], tools: Any = None
    ) -> tuple[list[int], dict[str, Any] | None]:
        """`prompt` of a conversation whose blocks may hold media, and the tensors that the model takes beside the ids;
        None for a conversation of texts."""
        media = placed_media(messages)
        if not media:
            return self.prompt(messages, tools), None
        made = self._needed_processor().run(self.prompt_text(messages, tools), media)
        return made.ids, made.tensors

    def grounded(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with the places of its `objects` written into its messages, as the model's family writes them."""
        processor = self._needed_processor()
        sizes = processor.sizes(row.get("images") or ())
        messages = with_objects(row["messages"], row["objects"], processor.grounding, sizes)
        return {**{key: value for key, value in row.items() if key != "objects"}, "messages": messages}

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end a reply: eos, generation_config's, and what the template writes after a reply."""
        found = [self.tokenizer.eos_token_id, *self._extra_stops]
        if self._source(None) is not None:
            found += [self._tokens.token_id(text) for text in self._template(None)[1].stops]
        return [token for token in dict.fromkeys(found) if token is not None]

    def parse(self, text: str, tools: Any = None) -> dict[str, Any]:
        """A reply's text -> assistant message: content, and reasoning_content and tool_calls where it has them.

        tools: the request's tools; their schemas tell numbers from texts in formats that don't."""
        if self._source(None) is None:
            return {"role": "assistant", "content": text}
        source = self._source([TOOL])
        if source not in self._replies:
            self._replies[source] = self._learn_replies()
        return self._replies[source].parse(text, tools_of(tools))

    def _learn_replies(self) -> ReplyFormat:
        template, facts = self._template([TOOL])
        asked = {"role": "user", "content": USER}
        prompt = self._shown(template, self._chat([asked], facts), True)

        def reply(message: Mapping[str, Any]) -> tuple[str, str] | None:
            shown = self._shown(template, self._chat([asked, {"role": "assistant", **message}], facts), False)
            if shown is None or prompt is None:
                return None
            size = common_prefix(shown.text, prompt.text)
            return shown.text[:size], shown.text[size:]

        stops = [*facts.stops, *self._closers(facts)]
        return learn_replies(reply, prompt.text if prompt else None, tuple(dict.fromkeys(stops)))

    def _shown(self, template: ChatTemplate, chat: list[dict[str, Any]], prompt: bool) -> Rendered | None:
        try:
            return template.render(chat, [TOOL], add_generation_prompt=prompt, variables=self.variables)
        except Refusal:
            return None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens kept and spaces left alone."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    # --- planning: which text, which spans -----------------------------------------------------------------------

    def _plan_whole(self, row: Mapping[str, Any]) -> Planned:
        return replace(self._plan(row), media=media_of(row))

    def _plan(self, row: Mapping[str, Any]) -> Planned:
        if "messages" not in row:
            return self._plan_text(row)
        talk, facts, weights = self._conversation(row)
        if self.scheme.base == "all":
            return Planned(talk.text, tuple(self.scheme.turn(talk.text, [(0, len(talk.text))])))
        turns = self._turns(talk, facts, weights)
        for turn in turns:
            if turn.problem:
                raise self._error(turn, talk, facts)
        return self._planned(talk, talk.text, facts, turns, weights)

    def _plan_media(self, row: Mapping[str, Any]) -> list[Planned]:
        """A row with media is one example: a part would need its own share of them."""
        self._needed_processor()
        return [self._plan_whole(row)]

    def _needed_processor(self) -> Processing:
        if self.processor is None:
            raise DataError("the row has images, videos or audio, and there is no processor for them here")
        return self.processor

    def _plan_parts(self, row: Mapping[str, Any], template: ChatTemplate | None = None) -> list[Planned]:
        """template: renders in place of the encoder's own, from the same source."""
        if "messages" not in row or self.scheme.base == "all":
            return [self._plan(row)]
        talk, facts, left = self._conversation(row, template)
        plans: list[Planned] = []
        while True:
            turns = self._turns(talk, facts, left)
            exact = [turn for turn in turns if not turn.problem]
            failed = [turn for turn in turns if turn.problem]
            if exact or not turns:
                plans.append(self._planned(talk, talk.text, facts, exact, left))
            if failed and failed[-1].index == len(talk.chat) - 1:
                plans.append(self._composed(talk, facts, failed.pop(), left))
            if not failed:
                break
            left = {turn.index: left[turn.index] for turn in failed}
            talk = self._render(talk.template, talk.chat[: max(left) + 1], talk.tools, talk.variables)
        if len(plans) > 1:
            plans = [replace(plan, notes=(*plan.notes, "part")) for plan in reversed(plans)]
        return plans

    def _composed(self, talk: Conversation, facts: Facts, turn: Turn, weights: Weights) -> Planned:
        """A row for the last turn alone, behind its generation prompt; TemplateError where that is no answer either."""
        found = composed(talk, self._closers(facts)) or opened(talk, self._closers(facts))
        checked = found and self._checked(found[1], talk, found[0])
        if not checked or checked.problem:
            raise self._error(turn, talk, facts)
        plan = self._planned(talk, found[0], facts, [checked], weights)
        return replace(plan, notes=(*plan.notes, "composed"))

    def _plan_text(self, row: Mapping[str, Any]) -> Planned:
        text = row.get("text")
        if not isinstance(text, str):
            raise DataError("the row has neither messages nor text")
        return Planned(text, raw=True)

    def _conversation(
        self, row: Mapping[str, Any], other: ChatTemplate | None = None
    ) -> tuple[Conversation, Facts, Weights]:
        messages = row["messages"]
        if not messages:
            raise DataError("the row has no messages")
        media = media_of(row)
        if media and row.get("objects"):
            messages = self.grounded(row)["messages"]
        if media:
            messages = with_blocks(messages, media)
        tools = tools_of(row.get("tools"))
        template, facts = self._template(tools)
        chat = self._chat(messages, facts)
        offset = len(chat) - len(messages)
        weights = self._weights(messages)
        if self.response_prefix:
            chat = [self._with_prefix(m) if i - offset in weights else m for i, m in enumerate(chat)]
        variables = {**self.variables, **(row.get("chat_template_kwargs") or {})}
        talk = self._render(other or template, chat, tools, variables)
        return talk, facts, {i + offset: weight for i, weight in weights.items()}

    def _render(self, template: ChatTemplate, chat: list, tools: Any, variables: Mapping[str, Any]) -> Conversation:
        try:
            return Conversation(template, chat, tools, variables)
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

    def _turns(self, talk: Conversation, facts: Facts, weights: Weights) -> list[Turn]:
        closers = self._closers(facts)
        turns = []
        for index in sorted(weights):
            turn = find_turn(talk, index, closers, facts.header)
            if not turn.problem:
                turn = self._checked(turn, talk, talk.text)
            turns.append(turn)
        return turns

    def _checked(self, turn: Turn, talk: Conversation, text: str) -> Turn:
        """Refuse a turn whose tool calls the template doesn't show; move the start behind the response prefix."""
        here = "".join(text[a:b] for a, b in turn.spans)
        held = contents(talk.chat[turn.index])
        if "tool calls" in held:
            for name in ("tool calls", "content"):
                if any(piece not in here for piece in held.get(name, ())):
                    return Turn(turn.index, problem=f"the template leaves out its {name}")
        if self.response_prefix:
            if not here.startswith(self.response_prefix):
                return Turn(turn.index, problem=f"it doesn't begin with --response_prefix {self.response_prefix!r}")
            (start, end), *rest = turn.spans
            return replace(turn, spans=((start + len(self.response_prefix), end), *rest))
        return turn

    def _planned(self, talk: Conversation, text: str, facts: Facts, turns: Sequence[Turn], weights: Weights) -> Planned:
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
        closers = self._closers(facts) if turn.closed else ()
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
            other = Conversation(talk.template, talk.chat, talk.tools, {**talk.variables, **change})
        except Refusal:
            return False
        found = find_turn(other, turn.index, self._closers(facts), facts.header)
        return not (found.problem or self._checked(found, other, other.text).problem)

    # --- the template --------------------------------------------------------------------------------------------

    def _source(self, tools: Any) -> str | None:
        if self.template is not None:
            return self.template
        if self.tokenizer.chat_template:
            return self.tokenizer.get_chat_template(None, tools)
        return None if self.processor is None else self.processor.chat_template

    def _template(self, tools: Any) -> tuple[ChatTemplate, Facts]:
        source = self._source(tools)
        if source is None:
            raise TemplateError(
                "the tokenizer has no chat template", fix="name one with --template, for example --template chatml"
            )
        template = compiled(source)
        if source not in self._facts:
            self._facts[source] = learn(template, self.variables, self._tokens.added)
        return template, self._facts[source]

    def _closers(self, facts: Facts) -> tuple[str, ...]:
        known = [self.tokenizer.eos_token, *self.tokenizer.convert_ids_to_tokens(list(self._extra_stops))]
        return tuple(dict.fromkeys([*facts.closers, *(text for text in known if text)]))

    def _chat(self, messages: Sequence[Mapping[str, Any]], facts: Facts) -> list[dict[str, Any]]:
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

    def _with_prefix(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content", "")
        if isinstance(content, str) and not content.startswith(self.response_prefix):
            return {**message, "content": self.response_prefix + content}
        return message


def _reasoning_left_out(message: Mapping[str, Any], text: str, turn: Turn) -> bool:
    here = "".join(text[a:b] for a, b in turn.spans)
    return any(piece not in here for piece in contents(message).get("reasoning", ()))


def _one_of(flag: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"{flag} is {value!r}", fix=f"one of: {', '.join(allowed)}")
