"""Where the optional test material lies: `ASSETS` is a directory, or None when it isn't there (those tests skip)."""

import os
from pathlib import Path

_named = os.environ.get("SWIFT_TEST_ASSETS")
_candidate = Path(_named) if _named else Path(__file__).resolve().parents[2] / "shared" / "assets"
ASSETS: Path | None = _candidate if _candidate.is_dir() else None
