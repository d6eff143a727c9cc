"""Render a conversation with a Jinja chat template and know which message every piece of the text came from.

The text is the one that transformers' `apply_chat_template(tokenize=False)` gives: the same compiled environment, the
same variables, messages normalised as transformers 5.23 does it. On top of that the syntax tree gets *marks*: empty
strings that the template yields where an iteration over the messages starts and ends and where a
`{% generation %}` block starts and ends. A mark has no characters, so no expression, filter or captured block can see
it, and the text stays what it was.

What it doesn't know: tokens. And it finds no message where a template never binds one to a loop variable, renders
inside a macro, or copies its messages; `Rendered.segments` then lacks that message and the caller compares renderings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import meta, nodes, pass_context

from swift.errors import TemplateError

Span = tuple[int, int]
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Rendered:
    """`text`, and per message index the character ranges that its iteration wrote.

    segments: own text of each message, without the ranges in which another message was rendered meanwhile.
    generations: ranges inside `{% generation %}` blocks.
    """

    text: str
    segments: dict[int, list[Span]]
    generations: list[Span]


class Refusal(Exception):
    """The template itself refused the conversation (raise_exception) or failed on it; the message is the reason."""


class _Mark(str):
    """An empty string in the output stream that says what the template is doing at this place."""

    def __new__(cls, kind: str, depth: int, keys: tuple[int, ...]) -> _Mark:
        self = super().__new__(cls, "")
        self.kind, self.depth, self.keys = kind, depth, keys
        return self

    def __str__(self) -> str:
        return self


@pass_context  # needs none of it, but a filter that takes it is not folded into a constant
def _mark(context: Any, kind: str, depth: int, *values: Any) -> _Mark:
    return _Mark(kind, depth, tuple(map(id, values)))


class ChatTemplate:
    """One Jinja chat template, compiled once. `render` is pure apart from the clock that `strftime_now` reads."""

    def __init__(self, source: str):
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.source = source
        try:
            own = _compile_jinja_template(source).environment
        except Exception as error:  # jinja2 raises its own syntax errors, and plain ones from its lexer
            raise TemplateError(
                f"the chat template is not valid Jinja: {error}", fix="pass another one with --template NAME_OR_FILE"
            ) from error
        self._environment = self._prepared(own.overlay())
        tree = self._environment.parse(source)
        self.variables = frozenset(meta.find_undeclared_variables(tree))
        self.has_generation_blocks = any(_is_generation(node) for node in tree.find_all(nodes.CallBlock))
        self.clock = _Clock()
        self._globals = {**self._environment.globals, "strftime_now": self.clock}
        self._plain = self._compiled(self._rewritten(tree))
        tree = self._rewritten(self._environment.parse(source))
        tree.body = _instrument(tree.body, 0)
        self._marked = self._compiled(tree)

    def _prepared(self, environment: Any) -> Any:
        environment.filters = {**environment.filters, "_swift_mark": _mark}
        return environment

    def _rewritten(self, tree: nodes.Template) -> nodes.Template:
        return tree

    def _compiled(self, tree: nodes.Template) -> Any:
        code = self._environment.compile(tree.set_environment(self._environment))
        return self._environment.template_class.from_code(self._environment, code, self._globals)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any],
        now: datetime | None = None,
        marks: bool = True,
    ) -> Rendered:
        """`messages` as `normalised` gives them; `variables`: special tokens and template kwargs. Raises Refusal.
        Without marks, segments and generations are empty and it takes half the time."""
        chat = list(messages)
        index = {id(message): i for i, message in enumerate(chat)}
        self.clock.now = now
        parts: list[str] = []
        seen: list[tuple[int, str, int, int | None]] = []
        position = 0
        template = self._marked if marks else self._plain
        context = self._environment.context_class(
            self._environment,
            {
                **self._globals,
                "messages": chat,
                "add_generation_prompt": add_generation_prompt,
                "tools": tools,
                "documents": None,
                **variables,
            },
            None,
            template.blocks,
        )
        try:
            for piece in template.root_render_func(context):
                if piece.__class__ is _Mark:
                    found = next((index[key] for key in piece.keys if key in index), None)
                    seen.append((position, piece.kind, piece.depth, found))
                else:
                    parts.append(piece)
                    position += len(piece)
        except Exception as error:  # templates fail in any way Python can: undefined names, types, raise_exception
            raise Refusal(str(error) or type(error).__name__) from error
        text = "".join(parts)
        segments, generations = _ranges(seen, position)
        return Rendered(text, segments, generations)


@lru_cache(maxsize=64)
def compiled(source: str) -> ChatTemplate:
    return ChatTemplate(source)


class _Clock:
    """`strftime_now` with a fixed moment for the renderings of one row, so that they agree across midnight."""

    def __init__(self) -> None:
        self.now: datetime | None = None
        self.answers: dict[str, str] = {}

    def __call__(self, format: str) -> str:
        self.answers[format] = answer = (self.now or datetime.now()).strftime(format)
        return answer


def normalised(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Fresh plain copies: no None-valued keys, reasoning under the names that templates read (transformers 5.23)."""
    chat = []
    for message in messages:
        copy = {key: _plain(value) for key, value in message.items() if value is not None}
        reasoning = next((copy[key] for key in REASONING_KEYS if copy.get(key) is not None), None)
        if reasoning is not None:
            copy = {"thinking": reasoning, **copy, "reasoning_content": reasoning}
        chat.append(copy)
    return chat


def _plain(value: Any) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    for base in (str, int, float):
        if isinstance(value, base):
            return base(value)
    return f"<{type(value).__name__}>"  # an image, an array: templates look only at whether it is there


# --- the syntax tree -------------------------------------------------------------------------------------------------


def _is_generation(node: Any) -> bool:
    callee = node.call.node
    return isinstance(callee, nodes.ExtensionAttribute) and callee.name == "_generation_support"


def _emit(kind: str, depth: int, *names: str) -> Any:
    """The statement `{{ kind | _swift_mark(depth, *names) }}`: a filter, because a call goes through the sandbox."""
    arguments = [nodes.Const(depth), *(nodes.Name(name, "load") for name in names)]
    return nodes.Output([nodes.Filter(nodes.Const(kind), "_swift_mark", arguments, [], None, None)])


def _instrument(body: list[Any], depth: int) -> list[Any]:
    """Put marks around loops, after assignments in loops, and around generation blocks; `depth` counts the loops.

    Macros, `{% set %}...{% endset %}`, filter and call blocks buffer what they write, so a place inside them has no
    position in the text yet: they are left alone.
    """
    result: list[Any] = []
    for node in body:
        if isinstance(node, nodes.For):
            names = _names(node.target)
            node.body = [_emit("loop", depth + 1, *names), *_instrument(node.body, depth + 1)]
            node.else_ = _instrument(node.else_, depth)
            result += [node, _emit("end", depth + 1)]
        elif isinstance(node, nodes.If):
            node.body = _instrument(node.body, depth)
            node.elif_ = _instrument(node.elif_, depth)
            node.else_ = _instrument(node.else_, depth)
            result.append(node)
        elif isinstance(node, nodes.CallBlock) and _is_generation(node):
            result += [_emit("open", depth), node, _emit("close", depth)]
        elif isinstance(node, nodes.Assign) and depth and _names(node.target) and node.node.find(nodes.Getitem):
            result += [node, _emit("set", depth, *_names(node.target))]
        elif isinstance(node, (nodes.Scope, nodes.With, nodes.Block, nodes.ScopedEvalContextModifier)):
            node.body = _instrument(node.body, depth)
            result.append(node)
        else:
            result.append(node)
    return result


def _names(target: Any) -> list[str]:
    if isinstance(target, nodes.Name):
        return [target.name]
    if isinstance(target, nodes.Tuple):
        return [item.name for item in target.items if isinstance(item, nodes.Name)]
    return []


# --- from marks to ranges --------------------------------------------------------------------------------------------


def _ranges(marks: list[tuple[int, str, int, int | None]], end: int) -> tuple[dict[int, list[Span]], list[Span]]:
    """Each stretch between two marks belongs to the message of the innermost loop that is at one."""
    owners: dict[int, int | None] = {}
    segments: dict[int, list[Span]] = {}
    generations: list[Span] = []
    opened: list[int] = []
    last, owner = 0, None
    for position, kind, depth, message in [*marks, (end, "end", 0, None)]:
        if owner is not None and position > last:
            _append(segments.setdefault(owner, []), (last, position))
        last = position
        if kind == "loop":
            owners = {level: value for level, value in owners.items() if level < depth}
            owners[depth] = message
        elif kind == "set":
            if message is not None and owners.get(depth) is None:
                owners[depth] = message
        elif kind == "end":
            owners = {level: value for level, value in owners.items() if level < depth}
        elif kind == "open":
            opened.append(position)
        elif kind == "close":
            generations.append((opened.pop(), position))
        owner = next((owners[level] for level in sorted(owners, reverse=True) if owners[level] is not None), None)
    return segments, [span for span in generations if span[1] > span[0]]


def _append(spans: list[Span], span: Span) -> None:
    if spans and spans[-1][1] == span[0]:
        spans[-1] = (spans[-1][0], span[1])
    else:
        spans.append(span)
