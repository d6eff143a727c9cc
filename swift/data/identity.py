"""Self-cognition rows: the model's name and author put in the place of {{NAME}} and {{AUTHOR}}.

Promises: a data set made of such rows never trains a placeholder; one that merely holds the word in its code examples
is left as it is. Rows with Chinese text get the first name given, all others the second (or the only one).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from swift.data.rows import RowStore
from swift.errors import UsageError

PLACEHOLDER = re.compile(r"\{\{(NAME|AUTHOR|name|author)\}\}")
_PLACEHOLDER_BYTES = re.compile(PLACEHOLDER.pattern.encode("ascii"))
_CHINESE = re.compile(r"[\u3400-\u9fff]")
SHARE = 0.25  # of a data set's rows with a placeholder, from which on the data set is about the model itself


def has_placeholder(json_text: bytes) -> bool:
    """Does a stored row hold a placeholder? Cheap enough for every row."""
    return b"{{" in json_text and _PLACEHOLDER_BYTES.search(json_text) is not None


class Identity:
    """The names that placeholders give way to. `tagged`: the rows are self-cognition data; else only what is written in
    capitals is a placeholder."""

    def __init__(self, names: Sequence[str], authors: Sequence[str], where: str, tagged: bool):
        self.given, self.where, self.tagged = {"NAME": names, "AUTHOR": authors}, where, tagged

    def missing(self, used: Collection[str]) -> list[str]:
        """Those of the placeholders `used` that no option fills; UsageError where they must be filled."""
        missing = [kind for kind in ("NAME", "AUTHOR") if kind in used and not self.given[kind]]
        if missing and self.tagged:
            flags = " and ".join(f"--model_{kind.lower()}" for kind in missing)
            example = " ".join(f"--model_{kind.lower()} '小黄' 'Xiao Huang'" for kind in missing)
            raise UsageError(
                f"the rows say {' and '.join('{{' + kind + '}}' for kind in missing)}: {flags} must fill them",
                where=self.where,
                fix=f"add {example} (the first for Chinese rows, the second for the others)",
            )
        return missing

    def filled(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with its placeholders filled; as it is where an option is missing."""
        if self.missing({found[1].upper() for found in PLACEHOLDER.finditer(str(row))}):
            return row
        chinese = bool(_CHINESE.search(str(row.get("messages") or row.get("text"))))
        values = {kind: texts[0 if chinese else -1] for kind, texts in self.given.items() if texts}
        return _fill(row, values, any_case=self.tagged)


def fill_identity(
    store: RowStore,
    marked: Sequence[int],
    rows: int,
    names: Sequence[str],
    authors: Sequence[str],
    where: str,
    tagged: bool,
) -> int:
    """Fill the placeholders of the rows `marked` (of `rows` in the data set) and return how many rows were filled.

    `tagged`: the data set is known to be self-cognition data. UsageError when it is and a name is missing.
    """
    is_identity = tagged or len(marked) >= SHARE * rows
    used = {m.upper().decode() for i in marked for m in _PLACEHOLDER_BYTES.findall(store.json(i))}
    missing = Identity(names, authors, where, is_identity).missing(used)
    if missing or not marked:
        return 0
    identity, filled = Identity(names, authors, where, is_identity), 0
    for index in marked:
        row = dict(store.row(index))
        new = identity.filled(row)
        if new != row:
            store.replace(index, new)
            filled += 1
    return filled


def _fill(value: Any, values: dict[str, str], any_case: bool) -> Any:
    if isinstance(value, str):
        return PLACEHOLDER.sub(lambda m: values.get(m[1].upper(), m[0]) if any_case or m[1].isupper() else m[0], value)
    if isinstance(value, list):
        return [_fill(item, values, any_case) for item in value]
    if isinstance(value, dict):
        return {key: _fill(item, values, any_case) for key, item in value.items()}
    return value
