"""An option's value that is a JSON object, written out or in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from swift.errors import UsageError

INLINE = "a JSON file, or JSON: '{...}'"


def json_object(text: str, where: str, missing: str = "no such file", fix: str = INLINE) -> dict:
    """The object that `text` is or that the file of this name holds.

    `where`: the flag. UsageError: `missing` with `fix` without such a file, or with the place for what is no object.
    """
    source = text.strip()
    if not source.startswith("{"):
        path = Path(source).expanduser()
        if not path.is_file():
            raise UsageError(missing, where=f"{where} {source}", fix=fix)
        source, where = path.read_text(encoding="utf-8"), str(path)
    try:
        found: Any = json.loads(source)
    except ValueError as error:
        raise UsageError(f"not valid JSON: {error}", where=where) from error
    if not isinstance(found, dict):
        raise UsageError("needs a JSON object", where=where)
    return found
