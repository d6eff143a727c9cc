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

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from swift.chat.dialect import Dialect
from swift.chat.encoded import Encoded, RowDropped
from swift.chat.facts import TOOL, USER
from swift.chat.forms import tools_of
from swift.chat.grounding import grounded
from swift.chat.label import Planned, label, pieces
from swift.chat.learn_replies import learn_replies
from swift.chat.media import expand, media_of, placed_media
from swift.chat.planner import Planner
from swift.chat.processing import Processing, needed
from swift.chat.replies import ReplyFormat
from swift.chat.scheme import parse_scheme
from swift.chat.segments import Made, assembled
from swift.chat.shapes import Match, Shapes
from swift.chat.symbols import is_symbolic
from swift.chat.tokens import Tokenized, Tokens
from swift.chat.turns import common_prefix
from swift.errors import DataError, TemplateError, UsageError

STRATEGIES = ("delete", "left", "right", "split")


class ChatEncoder:
    """Encode rows for training and conversations for generation with one tokenizer and one chat template.

    template: Jinja text; None takes the tokenizer's own. system: added to rows that have no system message.
    enable_thinking: passed to the template when not None. template_kwargs: further variables of the template.
    preserve_thinking: whether the reasoning of earlier rounds stays in the conversation; None: as the template does it.
    add_non_thinking_prefix: replies without reasoning are learned as the template's non-thinking mode has them (True),
    without the empty thinking that the template would write (False), or as it writes them (None).
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
        preserve_thinking: bool | None = None,
        add_non_thinking_prefix: bool | None = None,
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
        self.preserve_thinking, self.add_non_thinking_prefix = preserve_thinking, add_non_thinking_prefix
        self._tokens = Tokens(tokenizer)
        self._dialect = Dialect(
            tokenizer,
            self._tokens,
            self.processor,
            template=template,
            system=system,
            variables=self.variables,
            extra_stops=stop_token_ids,
        )
        self._planner = Planner(
            self._dialect,
            self.scheme,
            response_prefix=self.response_prefix,
            close_last_turn=close_last_turn,
            preserve_thinking=preserve_thinking,
            add_non_thinking_prefix=add_non_thinking_prefix,
        )
        if self._dialect.source() is not None:
            self._check_thinking()
        self._replies: dict[str, ReplyFormat] = {}
        self._known: dict[str, Shapes | None] = {}

    def _check_thinking(self) -> None:
        """TemplateError at once where the template can't do what is asked of reasoning."""
        if self.preserve_thinking is not None:
            self._dialect.history(*self._dialect.template(), self.preserve_thinking)
        if self.add_non_thinking_prefix:
            self._dialect.mode(self._dialect.template()[0])

    # --- training ------------------------------------------------------------------------------------------------

    def encode(self, row: Mapping[str, Any]) -> Encoded:
        """One row -> one Encoded. Raises TemplateError, DataError, or RowDropped when it is too long."""
        planned = self._planner.whole(row)
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
                needed(self.processor)
                return self._planner.parts(row)
            return (shapes and shapes.find(row, self._planner.parts)) or self._planner.parts(row)
        except (TemplateError, DataError) as error:
            return error

    def _by_segments(self, matches: Sequence[Match]) -> Iterator[Made | None]:
        """Rows of known shape, encoded; None for one that has to be tokenized in one piece."""
        cut = [(match.shape.segments, match.texts) for match in matches if match.shape.segments is not None]
        found = iter(assembled(cut, self._tokens) if cut else ())
        for match in matches:
            yield None if match.shape.segments is None else next(found)

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

    def _whole(self, plan: Planned, tokenized: Tokenized) -> Made:
        if plan.media:
            return expand(plan, tokenized, self._tokens, self.processor)
        return label(plan, tokenized, self._tokens)

    def _parts(self, wholes: Sequence[Made]) -> list[Encoded] | RowDropped:
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
        source = self._dialect.source()
        if source is None or self.scheme.base == "all" or self.scheme.rules:
            return None
        if source not in self._known:
            given = (self.system, self.response_prefix, self.variables)
            closers = self._dialect.closers(self._dialect.template()[1])
            self._known[source] = (
                None if is_symbolic(given) else Shapes(source, self._planner.parts, self._tokens, closers)
            )
        return self._known[source]

    def read_only(self, row: Mapping[str, Any]) -> list[int]:
        """The ids of a row of which nothing is learned: those of `apply_chat_template` for its messages, or of its
        text with the tokenizer's own special tokens and eos behind it."""
        if "messages" not in row:
            planned = self._planner.whole(row)
            return label(planned, self._tokens.tokenize([planned.text], [True])[0], self._tokens)[0].input_ids
        if media_of(row):
            raise DataError("only text can be classified, embedded or ranked; the row has media")
        return self._tokens.ids(self._planner.text(row))

    # --- generation ----------------------------------------------------------------------------------------------

    def prompt_text(self, messages: Sequence[Mapping[str, Any]], tools: Any = None) -> str:
        """The text that a model is given to write the next reply."""
        return self._dialect.prompt_text(messages, tools_of(tools), self.preserve_thinking) + self.response_prefix

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
        made = needed(self.processor).run(self.prompt_text(messages, tools), media)
        return made.ids, made.tensors

    def grounded(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row with the places of its `objects` written into its messages, as the model's family writes them."""
        return grounded(row, needed(self.processor))

    @property
    def stop_token_ids(self) -> list[int]:
        """Ids that end a reply: eos, generation_config's, and what the template writes after a reply."""
        found = [self.tokenizer.eos_token_id, *self._dialect.extra_stops]
        if self._dialect.source() is not None:
            found += [self._tokens.token_id(text) for text in self._dialect.template()[1].stops]
        return [token for token in dict.fromkeys(found) if token is not None]

    def parse(self, text: str, tools: Any = None) -> dict[str, Any]:
        """A reply's text -> assistant message: content, and reasoning_content and tool_calls where it has them.

        tools: the request's tools; their schemas tell numbers from texts in formats that don't."""
        if self._dialect.source() is None:
            return {"role": "assistant", "content": text}
        source = self._dialect.source([TOOL])
        if source not in self._replies:
            self._replies[source] = self._learn_replies()
        return self._replies[source].parse(text, tools_of(tools))

    def _learn_replies(self) -> ReplyFormat:
        facts = self._dialect.template([TOOL])[1]
        asked = {"role": "user", "content": USER}
        prompt = self._dialect.with_tool([asked], True)

        def reply(message: Mapping[str, Any]) -> tuple[str, str] | None:
            shown = self._dialect.with_tool([asked, {"role": "assistant", **message}], False)
            if shown is None or prompt is None:
                return None
            size = common_prefix(shown, prompt)
            return shown[:size], shown[size:]

        stops = [*facts.stops, *self._dialect.closers(facts)]
        return learn_replies(reply, prompt, tuple(dict.fromkeys(stops)))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens kept and spaces left alone."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _one_of(flag: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise UsageError(f"{flag} is {value!r}", fix=f"one of: {', '.join(allowed)}")
