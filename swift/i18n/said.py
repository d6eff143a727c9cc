"""What commands say, in Chinese: errors, reasons, notes. English stays in the code, `said.zh.toml` has the Chinese.

A key is the English text with `{}` where a value stands; its translation names the values in order, `{0}`, `{1}`, and
may turn them round. A message that no key fits is shown as it is. In English nothing is looked up. Section [words] has
headings and forms that are put together, which scripts/make_said.py can't see in the code.
"""

from __future__ import annotations

import functools
import re
import sys
from pathlib import Path

from swift.errors import SwiftError
from swift.i18n import language

HOLE = re.compile(r"\{\}")
NESTED = 3  # messages inside messages
INDEXED = 6  # characters of a key's beginning by which it is found


def said(message: str, lang: str | None = None) -> str:
    """`message` in the language asked for, values inside it translated too where they are messages themselves."""
    if (lang or language()) != "zh":
        return message
    return _translated(message, depth=0) or message


def error_said(error: Exception, lang: str | None = None) -> str:
    """`str(error)` with its parts translated; of an error that isn't ours, its type and its own words."""
    if not isinstance(error, SwiftError):
        return f"{type(error).__name__}: {error}"
    where, fix = (said(part, lang) if part else None for part in (error.where, error.fix))
    return str(SwiftError(said(error.what, lang), where=where, fix=fix))


def _translated(message: str, depth: int) -> str | None:
    exact, indexed, rest = catalogue()
    if message in exact:
        return exact[message]
    for pattern, target in (*indexed.get(message[:INDEXED], ()), *rest):
        match = pattern.fullmatch(message)
        if match:
            values = [(_translated(v, depth + 1) or v) if depth < NESTED else v for v in match.groups()]
            return _filled(target, values)
    return None


def _filled(target: str, values: list[str]) -> str:
    return re.sub(r"\{(\d+)\}", lambda hole: values[int(hole[1])], target)


Rules = tuple[tuple[re.Pattern[str], str], ...]


@functools.cache
def catalogue() -> tuple[dict[str, str], dict[str, Rules], Rules]:
    """Keys without values; those with values by their first characters, the most literal first; and the rest."""
    exact: dict[str, str] = {}
    indexed: dict[str, list[tuple[re.Pattern[str], str]]] = {}
    rest: list[tuple[re.Pattern[str], str]] = []
    for key, target in sorted(pairs().items(), key=lambda pair: -len(HOLE.sub("", pair[0]))):
        pieces = HOLE.split(key)
        if len(pieces) == 1:
            exact[key] = target
            continue
        rule = re.compile("(.*?)".join(map(re.escape, pieces)), re.DOTALL), target
        beginning = pieces[0]
        (indexed.setdefault(beginning[:INDEXED], []) if len(beginning) >= INDEXED else rest).append(rule)
    return exact, {start: tuple(rules) for start, rules in indexed.items()}, tuple(rest)


@functools.cache
def pairs(but: str | None = None) -> dict[str, str]:
    """English key -> Chinese, of every section; without the section `but`."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    content = (Path(__file__).parent / "said.zh.toml").read_text(encoding="utf-8")
    return {
        key: target
        for name, section in tomllib.loads(content).items()
        if name != but
        for key, target in section.items()
    }
