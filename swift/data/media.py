"""Images, videos and audio of a row: tags in the text, references in lists, in the same order.

Promises: after `finish`, the number of <image> tags in a row's text equals the length of its `images` list (so for
video and audio), every local file of those lists exists, and its path is absolute. Bytes and base64 become files of
the cache (`media_files`). Opens none.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from swift.data.media_files import as_file
from swift.data.rows import RowError

KINDS = ("image", "video", "audio")
TAGS = {kind: f"<{kind}>" for kind in KINDS}
_MARKED = re.compile(r"<(img|image|video|audio)>\s*([^\s<>]+)\s*</\1>")
_ANY_TAG = re.compile(r"<(image|video|audio)>")
BLOCK_KINDS = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "video": "video",
    "video_url": "video",
    "audio": "audio",
    "audio_url": "audio",
    "input_audio": "audio",
}


class MediaSlots:
    """One entry per tag met so far, in order: the reference when the message named it, None when the column must."""

    def __init__(self) -> None:
        self.slots: dict[str, list[str | list[str] | None]] = {kind: [] for kind in KINDS}

    @property
    def used(self) -> bool:
        return any(self.slots.values())

    def take_tags(self, text: str) -> str:
        """Note the tags of a text; <img>URL</img> (and the like) becomes a tag and a reference."""
        if "<" not in text:
            return text
        named = [(m.start(), "image" if m[1] == "img" else m[1], m[2]) for m in _MARKED.finditer(text)]
        spans = [(m.start(), m.end()) for m in _MARKED.finditer(text)]
        bare = [
            (m.start(), m[1], None) for m in _ANY_TAG.finditer(text) if not any(a <= m.start() < b for a, b in spans)
        ]
        for _, kind, reference in sorted(named + bare, key=lambda found: found[0]):
            self.slots[kind].append(reference)
        return _MARKED.sub(lambda m: TAGS["image" if m[1] == "img" else m[1]], text) if named else text

    def take_block(self, block: Mapping[str, Any]) -> str | None:
        """The tag that stands for a media block, or None when the block is no media block."""
        name = block.get("type")
        kind = BLOCK_KINDS.get(name) if isinstance(name, str) else None
        if kind is None:
            return None
        keys = (name, kind, "source", "url", "path")
        body = next((block[k] for k in keys if block.get(k) is not None), None)
        self.slots[kind].append(None if body is None else _frames_or_one(body, kind))
        return TAGS[kind]

    def finish(self, row: dict[str, Any], columns: Mapping[str, list[Any]], folder: Path) -> None:
        """Match tags with the media columns and put the lists into `row`; RowError when they don't fit."""
        for kind in KINDS:
            given = [_frames_or_one(value, kind) for value in columns.get(kind, [])]
            slots = self.slots[kind]
            bare = slots.count(None)
            if not given and len(slots) == bare:
                continue  # tags without any media are plain text
            if given and not slots:
                _prefix_tags(row["messages"], kind, len(given))
                slots, bare = [None] * len(given), len(given)
            if bare != len(given):
                raise RowError(f"{TAGS[kind]} tags and {kind}s differ in number", f"{bare} tags, {len(given)} {kind}s")
            queue = iter(given)
            row[kind + "s"] = [_located(next(queue) if slot is None else slot, folder) for slot in slots]


def _prefix_tags(messages: list[dict[str, Any]], kind: str, count: int) -> None:
    for message in messages:
        if message["role"] == "user":
            message["content"] = TAGS[kind] * count + message["content"]
            return
    raise RowError(f"{kind}s without a user message")


def reference_of(value: Any) -> str:
    """A path, URL or data URI for what a media column or block may hold; RowError for anything else."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, (bytes, bytearray)):
        return "data:;base64," + base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        if value.get("bytes") is not None:
            return reference_of(value["bytes"])
        if value.get("data") is not None:
            kind = value.get("media_type") or (f"audio/{value['format']}" if value.get("format") else "")
            return f"data:{kind};base64,{value['data']}"
        for key in ("path", "url", "image", "video", "audio"):
            if value.get(key) is not None:
                return reference_of(value[key])
    raise RowError("a media entry names nothing", repr(value)[:60])


def _frames_or_one(value: Any, kind: str) -> str | list[str]:
    """A reference; of a video also a list of its frames."""
    if kind == "video" and isinstance(value, (list, tuple)) and value:
        return [reference_of(frame) for frame in value]
    return reference_of(value)


def _located(reference: str | list[str], folder: Path) -> str | list[str]:
    """The reference with a local path made absolute: as given, or beside the data file."""
    if isinstance(reference, list):
        return [str(_located(frame, folder)) for frame in reference]
    if re.match(r"[a-z][a-z0-9+.-]+:", reference, re.IGNORECASE):
        return as_file(reference)
    for path in (Path(reference).expanduser(), folder / reference):
        if path.exists():
            return str(path.absolute())
    raise RowError("a media file is missing", reference)
