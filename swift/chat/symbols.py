"""Run a chat template once on stand-ins for the messages' texts, and know for which other texts it does the same.

Rows of a data set mostly differ in their texts alone, so what a template does with one row it does with the next. A
`Symbol` stands for a text: a string of one private character that writes down every question which the template asks
about it (is it empty? does it hold "</think>"?) as a `Guard` with the answer for the text at hand, and every change
that can be repeated (strip) as a new symbol. The rendering is then a pattern: constant text with symbols in it, true
for every row of which the guards' answers are the same.

Anything else that a template may do with a text (cut it, count it, replace in it, print it as JSON) ends the attempt,
and so does a template with a construct whose effect on symbols isn't known here: `Recorder.failed` says so, nothing is
assumed. Knows nothing of tokens, turns or roles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any, NamedTuple

from jinja2 import nodes
from jinja2.runtime import Macro
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from swift.chat.render import ChatTemplate

FIRST = 0xF0000  # begins a plane of private characters: symbol i is chr(FIRST + i)
SYMBOL = re.compile("([\U000f0000-\U000ffffd])")


class Origin(NamedTuple):
    """Where a symbol's text comes from: base symbols are given (`change` None), others come from a parent's text."""

    parent: int
    change: str | None = None
    argument: str | None = None


class Guard(NamedTuple):
    """`question` about symbol `symbol` had this answer; the questions are the keys of `_ASK`."""

    symbol: int
    question: str
    argument: Any
    answer: bool


_ASK: dict[str, Callable[[str, Any], bool]] = {
    "bool": lambda text, _: text != "",
    "contains": lambda text, part: part in text,
    "startswith": lambda text, part: text.startswith(part),
    "endswith": lambda text, part: text.endswith(part),
    "eq": lambda text, other: text == other,
    "ends": lambda text, part: text.rstrip().endswith(part),
}
_CHANGE: dict[str, Callable[[str, Any], str]] = {
    "strip": lambda text, chars: text.strip(chars),
    "lstrip": lambda text, chars: text.lstrip(chars),
    "rstrip": lambda text, chars: text.rstrip(chars),
}


class Untraceable(Exception):
    """The template does something with a text that can't be repeated for others."""


class Recorder:
    """What a template asked and made while it rendered symbols.

    texts: the text that each symbol stands for at the moment. failed: what made the attempt end.
    """

    def __init__(self, texts: Sequence[str]):
        self.texts = list(texts)
        self.origins = [Origin(i) for i in range(len(texts))]
        self.guards: dict[tuple[int, str, Any], bool] = {}
        self.failed: str | None = None

    def symbols(self) -> list[Symbol]:
        """One for each text that was given."""
        return [Symbol(chr(FIRST + i), self) for i in range(len(self.texts))]

    def fail(self, what: str) -> Untraceable:
        self.failed = what
        return Untraceable(what)

    def ask(self, symbol: Symbol, question: str, argument: Any = None) -> bool:
        number = self._number(symbol, question)
        if is_symbolic(argument):
            raise self.fail(question)
        answer = _ASK[question](self.texts[number], argument)
        self.guards[number, question, argument] = answer
        return answer

    def change(self, symbol: Symbol, how: str, argument: str | None = None) -> Symbol:
        number = self._number(symbol, how)
        if is_symbolic(argument):
            raise self.fail(how)
        origin = Origin(number, how, argument)
        if origin not in self.origins:
            self.origins.append(origin)
            self.texts.append(_CHANGE[how](self.texts[number], argument))
        return Symbol(chr(FIRST + self.origins.index(origin)), self)

    def _number(self, symbol: Symbol, what: str) -> int:
        if len(symbol) != 1:  # text around it: "strip" of "<b>" + content
            raise self.fail(f"{what} of joined text")
        return ord(str.__getitem__(symbol, 0)) - FIRST


def fills(origins: Sequence[Origin], guards: Sequence[Guard], given: Sequence[str]) -> list[str] | None:
    """The text of every symbol for other given texts; None where a guard's answer is another."""
    texts = list(given)
    for parent, change, argument in origins[len(given) :]:
        texts.append(_CHANGE[change](texts[parent], argument))
    for symbol, question, argument, answer in guards:
        if _ASK[question](texts[symbol], argument) is not answer:
            return None
    return texts


def _refused(name: str) -> Callable[..., Any]:
    def method(self: Symbol, *args: Any, **kwargs: Any) -> Any:
        raise self.recorder.fail(name)

    return method


class Symbol(str):
    """A text that stands for others, alone or joined with constant text."""

    __slots__ = ("recorder",)

    def __new__(cls, text: str, recorder: Recorder) -> Symbol:
        self = super().__new__(cls, text)
        self.recorder = recorder
        return self

    def __str__(self) -> str:
        return self

    def __add__(self, other: Any) -> str:
        if not isinstance(other, str):
            return NotImplemented
        return Symbol(str.__add__(self, other), self.recorder)

    def __radd__(self, other: Any) -> str:
        if not isinstance(other, str):
            return NotImplemented
        return Symbol(str.__add__(other, self), self.recorder)

    def __bool__(self) -> bool:
        return len(self) > 1 and not SYMBOL.match(self) or self.recorder.ask(self, "bool")

    def __contains__(self, part: Any) -> bool:
        return self.recorder.ask(self, "contains", part)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, str) and self.recorder.ask(self, "eq", other)

    def __ne__(self, other: Any) -> bool:
        return not self == other

    def startswith(self, part: Any) -> bool:
        return self.recorder.ask(self, "startswith", part)

    def endswith(self, part: Any) -> bool:
        return self.recorder.ask(self, "endswith", part)

    def strip(self, chars: str | None = None) -> Symbol:
        return self.recorder.change(self, "strip", chars)

    def lstrip(self, chars: str | None = None) -> Symbol:
        return self.recorder.change(self, "lstrip", chars)

    def rstrip(self, chars: str | None = None) -> Symbol:
        return self.recorder.change(self, "rstrip", chars)


_KEPT = {
    "__len__",
    "__class__",
    "__doc__",
    "__getattribute__",
    "__init__",
    "__init_subclass__",
    "__new__",
    "__setattr__",
}
_KEPT |= {"__delattr__", "__dir__", "__subclasshook__", "__reduce__", "__reduce_ex__", "__sizeof__", *vars(Symbol)}
for _name in set(dir(str)) - _KEPT:
    setattr(Symbol, _name, _refused(_name))


def is_symbolic(value: Any) -> bool:
    """Whether there is a symbol in a value or in what it holds."""
    if isinstance(value, str):
        return SYMBOL.search(value) is not None
    if isinstance(value, dict):
        return any(map(is_symbolic, value)) or any(map(is_symbolic, value.values()))
    return isinstance(value, (list, tuple)) and any(map(is_symbolic, value))


def split(text: str) -> list[str | int]:
    """A text with symbols as its constant texts and numbers of symbols."""
    return [ord(part) - FIRST if SYMBOL.fullmatch(part) else part for part in SYMBOL.split(text) if part]


# --- templates -------------------------------------------------------------------------------------------------------

# Filters and tests that ask a text nothing, or only by the methods above. The others may not be given a symbol.
_FILTERS = {"string", "default", "d", "selectattr", "rejectattr", "map", "_swift_mark", "_swift_join", "_swift_in"}
_LISTS = {"length", "count", "first", "last", "list", "reverse", "items"}  # look at a list or mapping, not in its items
_TESTS = {"string", "defined", "undefined", "none", "mapping", "iterable", "sequence", "true", "false", "boolean"}
_SCOPES = (
    "_loop_vars",
    "_block_vars",
)  # what Jinja hands to a call for functions that read the context: none does here
_TESTS |= {"number", "integer", "equalto", "eq", "==", "ne", "!="}
_UNKNOWN = (nodes.Block, nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport, nodes.Mul, nodes.Pow)


class SymbolicTemplate(ChatTemplate):
    """A chat template that renders symbols. obstacle: what in its source keeps it from that, if anything."""

    def __init__(self, source: str):
        self.obstacle: str | None = "private characters" if is_symbolic(source) else None
        super().__init__(source)

    def _prepared(self, environment: Any) -> Any:
        environment = super()._prepared(environment)
        extra = {"trim": _trim, "_swift_join": _join, "_swift_in": _contains}
        environment.filters = {
            name: function if name in extra or name in _FILTERS else _refusing(function, name, name not in _LISTS)
            for name, function in {**environment.filters, **extra}.items()
        }
        environment.tests = {
            name: function if name in _TESTS else _refusing(function, name, True)
            for name, function in environment.tests.items()
        }
        environment.concat = _concat
        call, takes = environment.call, (Namespace, environment.globals.get("dict"))

        def guarded_call(context: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(target, Macro) and not any(target is one for one in takes):
                _refuse([*args, *(kwargs[name] for name in kwargs if name not in _SCOPES)], "a call", True)
            return call(context, target, *args, **kwargs)

        environment.call = guarded_call
        return environment

    def _rewritten(self, tree: nodes.Template) -> nodes.Template:
        self.obstacle = self.obstacle or _obstacle(tree)
        return _Rewriter().visit(tree)


def _obstacle(tree: nodes.Template) -> str | None:
    """An operator that would take a symbol for a common text, or a construct that chat templates don't need."""
    for node in tree.find_all((*_UNKNOWN, nodes.Mod, nodes.Compare)):
        if isinstance(node, _UNKNOWN):
            return type(node).__name__
        if isinstance(node, nodes.Mod) and not (isinstance(node.right, nodes.Const) and type(node.right.value) is int):
            return "%"
        if isinstance(node, nodes.Compare) and len(node.ops) > 1 and any(one.op in ("in", "notin") for one in node.ops):
            return "a chain with `in`"
    return None


class _Rewriter(NodeTransformer):
    """`a ~ b` and `a in b` become filters: Python would join and search the symbols' characters."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        first, *rest = node.nodes
        return nodes.Filter(first, "_swift_join", rest, [], None, None, lineno=node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if len(node.ops) > 1 or node.ops[0].op not in ("in", "notin"):
            return node
        found = nodes.Filter(node.expr, "_swift_in", [node.ops[0].expr], [], None, None, lineno=node.lineno)
        return found if node.ops[0].op == "in" else nodes.Not(found, lineno=node.lineno)


def _refuse(values: Sequence[Any], what: str, deep: bool) -> None:
    if any(is_symbolic(value) for value in values if deep or isinstance(value, str)):
        raise _recorder_of(values).fail(what)


def _recorder_of(value: Any) -> Recorder:
    """The recorder of a symbol somewhere in a value."""
    if isinstance(value, Symbol):
        return value.recorder
    inner = value.values() if isinstance(value, dict) else value
    return next(_recorder_of(one) for one in inner if is_symbolic(one))


def _refusing(function: Callable[..., Any], name: str, deep: bool) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        _refuse([*args, *kwargs.values()], name, deep)
        return function(*args, **kwargs)

    return wrapper


def _concat(parts: Iterable[str]) -> str:
    parts = list(parts)
    recorder = next((part.recorder for part in parts if isinstance(part, Symbol)), None)
    text = "".join(parts)
    return text if recorder is None else Symbol(text, recorder)


def _join(*values: Any) -> str:
    return _concat(map(str, values))


def _contains(part: Any, whole: Any) -> bool:
    if isinstance(part, Symbol) and isinstance(whole, str):
        raise part.recorder.fail("in")
    return part in whole


def _trim(value: Any, chars: str | None = None) -> str:
    return str(value).strip(chars)
