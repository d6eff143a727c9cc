"""Reading files that others write, for a page: bounded, and harmless whatever is in them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

JSON_BYTES = 8 << 20
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_]")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} when there is none, it is broken, huge, or something else."""
    try:
        if not path.is_file() or path.stat().st_size > JSON_BYTES:
            return {}
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def read_end(path: Path, size: int) -> tuple[str, bool]:
    """The last `size` bytes from a line's beginning on, and whether something before them was left out."""
    try:
        if not path.is_file():
            return "", False
        with open(path, "rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - size))
            content = file.read(size)
    except OSError:
        return "", False
    cut = end > size
    if cut:
        content = content.partition(b"\n")[2] or content
    return content.decode("utf-8", errors="replace"), cut


def tail(path: Path, size: int = 1 << 16, lines: int = 400) -> tuple[str, bool]:
    """The end of a log as a terminal would have left it: no escape sequences, of each bar its last state."""
    content, cut = read_end(path, size)
    kept = [_line(line) for line in content.split("\n")]
    if len(kept) > lines:
        kept, cut = kept[-lines:], True
    return "\n".join(kept).rstrip("\n"), cut


def _line(line: str) -> str:
    shown = ESCAPES.sub("", line).rstrip("\r").rpartition("\r")[2]
    return "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in shown)[:2000]
