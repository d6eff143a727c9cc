"""Rows that set texts against each other, for embedding and ranking models: a query, what fits it, what doesn't.

Read are ms-swift's columns (positive_messages, negative_messages), sentence-transformers' (anchor, positive, negative;
sentence1, sentence2, score) and FlagEmbedding's (query, pos, neg). Promises: a candidate that is no text and no
conversation raises RowError. Knows nothing of tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from swift.data.media import MediaSlots
from swift.data.messages import canonical_messages, kind_of, parse_json_text
from swift.data.rows import RowError

# canonical column -> the names it has in files
CANDIDATES = {
    "positive_messages": ("positive_messages", "positive", "positives", "pos", "sentence2"),
    "negative_messages": ("negative_messages", "negative", "negatives", "neg"),
}
QUERIES = ("anchor", "sentence1")
SCORES = ("score", "similarity")
PAIR_COLUMNS = frozenset([*sum(CANDIDATES.values(), ()), *QUERIES, *SCORES])


def as_query(given: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its first text called query and the score of a pair called label; any other row as it is."""
    row = dict(given)
    first = next((name for name in QUERIES if name in row), None)
    if first is None or not any(name in row for names in CANDIDATES.values() for name in names):
        return row
    row.setdefault("query", row.pop(first))
    score = next((name for name in SCORES if name in row), None)
    if score is not None:
        row.setdefault("label", row.pop(score))
    return row


def candidates(given: Mapping[str, Any], notes: Counter[str]) -> dict[str, list[list[dict[str, Any]]]]:
    """{canonical column: conversations}, without the columns that the row lacks."""
    found = {}
    for column, names in CANDIDATES.items():
        name = next((name for name in names if given.get(name)), None)
        if name is not None:
            found[column] = [_conversation(item, name, notes) for item in _listed(given[name], name)]
    return found


def _listed(value: Any, name: str) -> list[Any]:
    """The candidates of a column: one text, a list of texts, one conversation, or a list of conversations."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        value = parse_json_text(value, name)
    if isinstance(value, (str, Mapping)):
        return [value]
    if not isinstance(value, list):
        raise RowError(f"{name} is no text and no conversation", kind_of(value))
    return [value] if all(isinstance(item, Mapping) for item in value) else value


def _conversation(item: Any, name: str, notes: Counter[str]) -> list[dict[str, Any]]:
    if isinstance(item, str):
        if not item.strip():
            raise RowError(f"empty text in {name}")
        return [{"role": "user", "content": item}]
    if isinstance(item, Mapping):
        item = [item]
    if not isinstance(item, list):
        raise RowError(f"{name} is no text and no conversation", kind_of(item))
    media = MediaSlots()
    messages = canonical_messages(item, media, notes)
    if media.used:
        raise RowError("media in a candidate", f"{name}: only texts can be set against each other")
    return messages
