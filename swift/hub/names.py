"""Is a name a path, a hub id or a catalog name? And which existing path did the user mean?"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w./-]+)?$")
_PREFIX = re.compile(r"^(HF|MS)::", re.IGNORECASE)


def split_prefix(name: str, use_hf: bool = False) -> tuple[str, bool]:
    """`HF::org/name` -> ("org/name", True), `MS::...` -> False; without a prefix `use_hf` decides."""
    match = _PREFIX.match(name)
    return (name[match.end() :], match[1].upper() == "HF") if match else (name, use_hf)


def expand(name: str) -> Path:
    return Path(os.path.expanduser(name))


def looks_like_path(name: str) -> bool:
    """Can the name only be meant as a path: ./x, ~/x, /x, x\\y, x/, more than one slash, or x/y where x is there?"""
    if name.startswith((".", "~", "/", "\\")) or name.endswith("/") or os.path.isabs(name) or "\\" in name:
        return True
    if name.count("/") != 1:
        return "/" in name
    return Path(name).parent.is_dir()


def nearest_paths(path: Path, count: int = 3) -> list[str]:
    """Existing paths that `path` may have meant: the siblings most like its first component that isn't there."""
    parts = Path(path)
    while parts.parent != parts and not parts.parent.is_dir():
        parts = parts.parent
    try:
        siblings = {entry.lower(): entry for entry in os.listdir(parts.parent)}
    except OSError:
        return []
    name = parts.name.lower()
    near = difflib.get_close_matches(name, siblings, n=count, cutoff=0.5)
    near += sorted(s for s in siblings if name and (s.startswith(name) or name.startswith(s)))
    return [str(parts.parent / siblings[n]) for n in dict.fromkeys(near)][:count]


def did_you_mean(candidates: list[str]) -> str | None:
    """`did you mean A, B or C?`, or None."""
    if not candidates:
        return None
    *first, last = candidates
    return f"did you mean {', '.join(first)} or {last}?" if first else f"did you mean {last}?"
