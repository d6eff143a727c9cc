"""The answer in a reply that reasons first."""

from __future__ import annotations

from typing import Any

from swift.engines.replies import OPEN_TAG


def without_reasoning(text: str, encoder: Any) -> str:
    """What a reply says after its reasoning, as the model's template parses it; the whole text of a plain model."""
    content = encoder.parse(text).get("content")
    return text if content is None else str(content)


def opening(prompt: str) -> str:
    """The tag that a prompt leaves open, as those of models that must think do: the reply continues it."""
    found = OPEN_TAG.search(prompt)
    return found[0] if found else ""


def after(text: str, marker: str | None) -> str:
    """What stands after the last `marker` (EvalScope's filter remove_until); the whole text when it isn't there."""
    return text.rpartition(marker)[2].lstrip() if marker and marker in text else text
