"""Whether transformers has an architecture, found without importing it: its tables of model types are read as text."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from swift.errors import ModelFileError

TABLES = ("auto_mappings.py", "configuration_auto.py")


@cache
def _tables() -> str | None:
    """The source of transformers' tables; None where they aren't to be found (another layout, no transformers)."""
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None:
        return None
    folder = Path(found.origin).parent / "models" / "auto"
    texts = [path.read_text(encoding="utf-8") for name in TABLES if (path := folder / name).is_file()]
    return "\n".join(texts) if texts else None


def _registered(kind: str) -> bool:
    """By a plugin, which can't have done so without importing transformers."""
    if "transformers" not in sys.modules:
        return False
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return kind in CONFIG_MAPPING


def unknown_architecture(path: Path, kind: Any) -> ModelFileError:
    what = f"transformers knows no model_type {kind!r}, and the directory brings no code of its own"
    return ModelFileError(
        what, where=str(path / "config.json"), fix="pip install -U transformers, or check config.json"
    )


def check_architecture(path: Path, config: Mapping[str, Any]) -> None:
    """ModelFileError for a model_type that transformers hasn't and that comes without code of its own."""
    kind = config.get("model_type")
    tables = _tables()
    if not isinstance(kind, str) or config.get("auto_map") or tables is None:
        return
    if f'"{kind}"' not in tables and not _registered(kind):
        raise unknown_architecture(path, kind)
