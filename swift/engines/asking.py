"""What a person types, with the images, videos and audio that it names, as a message for an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from swift.chat.media import media_of, with_blocks
from swift.data.media import KINDS, MediaSlots
from swift.data.rows import RowError
from swift.errors import UsageError


def user_message(
    text: str, given: Mapping[str, Sequence[str]] | None = None, ask: Callable[[str], str] | None = None
) -> dict[str, Any]:
    """The message of a text whose tags (<image>, or <image>PATH</image>) stand for media.

    `given`: kind -> paths or URLs for the tags in order; without tags they stand before the text. `ask(kind)` is
    called for each tag that names nothing. UsageError when something is missing.
    """
    slots = MediaSlots()
    row: dict[str, Any] = {"messages": [{"role": "user", "content": slots.take_tags(text)}]}
    columns = {kind: list((given or {}).get(kind, ())) for kind in KINDS}
    if ask is not None:
        columns = {kind: [ask(kind) for slot in slots.slots[kind] if slot is None] for kind in KINDS}
    try:
        slots.finish(row, columns, Path())
    except RowError as error:
        raise UsageError(f"{error.reason}: {error.detail}" if error.detail else error.reason) from error
    return with_blocks(row["messages"], media_of(row))[0]
