"""Every string of --help and of the web UI, in English and Chinese: `text("options.model")`.

The language is SWIFT_LANG or SWIFT_UI_LANG (en, zh), else the locale's, else English. Both files have the same keys.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "zh")
_speaking: contextvars.ContextVar[str | None] = contextvars.ContextVar("language", default=None)


@contextlib.contextmanager
def speaking(lang: str) -> Iterator[None]:
    """`lang` in place of the process's language, for what one page has asked for."""
    token = _speaking.set(lang)
    try:
        yield
    finally:
        _speaking.reset(token)


def language() -> str:
    chosen = _speaking.get()
    if chosen is not None:
        return chosen
    for variable in ("SWIFT_LANG", "SWIFT_UI_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(variable, "")
        if value:
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


@functools.cache
def strings(lang: str) -> dict[str, Any]:
    """The whole table of one language, by section."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    return tomllib.loads((Path(__file__).parent / f"{lang}.toml").read_text(encoding="utf-8"))


def text(key: str, lang: str | None = None, /, **values: Any) -> str:
    """The string of "section.name", with {placeholders} filled. A missing key is a KeyError."""
    section, _, name = key.partition(".")
    found = strings(lang or language())[section][name]
    return found.format(**values) if values else found


def display_width(words: str) -> int:
    """Columns that a string takes in a terminal: East Asian wide characters count two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in words)


def pad(words: str, columns: int) -> str:
    return words + " " * max(0, columns - display_width(words))


def wrap(words: str, columns: int) -> list[str]:
    """Lines of at most `columns` terminal columns; breaks at spaces, and anywhere between wide characters."""
    lines, line, used = [], "", 0
    for piece in _pieces(words):
        size = display_width(piece)
        if used + size > columns and line.strip():
            lines.append(line.rstrip())
            line, used, piece = "", 0, piece.lstrip()
            size = display_width(piece)
        line, used = line + piece, used + size
    return [*lines, line.rstrip()] if line.strip() or not lines else lines


def _pieces(words: str) -> list[str]:
    """Words with the space before them; wide characters one by one, closing punctuation with what it closes."""
    pieces: list[str] = []
    for c in words:
        if c == " " or not pieces:
            pieces.append(c)
        elif c in "，。、；：）」》？！":
            pieces[-1] += c
        elif display_width(c) == 2 or display_width(pieces[-1][-1]) == 2:
            pieces.append(c)
        else:
            pieces[-1] += c
    return pieces
