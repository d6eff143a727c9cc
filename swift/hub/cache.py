"""Where this program keeps what it can make again: SWIFT_CACHE, else ~/.cache/swift."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "SWIFT_CACHE"


def cache_dir(*parts: str) -> Path:
    """The cache directory, or a directory below it; not created here."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    root = os.environ.get(VARIABLE) or os.path.join(home, "swift")
    return Path(os.path.expanduser(root)).joinpath(*parts)
