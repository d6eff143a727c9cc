"""swift: a language model's whole life on one command line. Importing this package imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from swift.engines.api import Answer, Engine

__version__ = "0.1.0"
__all__ = ["Answer", "Engine", "__version__"]


def __getattr__(name: str) -> Any:
    """`Engine` and `Answer` are imported when they are first asked for."""
    if name in ("Answer", "Engine"):
        from swift.engines import api

        return getattr(api, name)
    raise AttributeError(f"module 'swift' has no attribute {name!r}")
