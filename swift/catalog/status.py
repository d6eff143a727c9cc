"""What `make matrix` found out about each architecture: verified, or the steps that fail with their reasons.

architectures.toml beside this module is written by that command and read here; nobody edits it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = Path(__file__).parent / "architectures.toml"
# In transformers' table of causal language models, but not a model that learns to answer text with text.
BY_DESIGN = {
    "git": "describes images: it takes no text without one",
    "musicgen": "writes audio, not text",
    "musicgen_melody": "writes audio, not text",
    "gemma4_assistant": "drafts tokens for a larger model from its hidden states",
    "gemma4_unified_assistant": "drafts tokens for a larger model from its hidden states",
}


@dataclass(frozen=True)
class ArchitectureStatus:
    """`failed` maps a step (build, media, lora, resume, merge, full, generate, 8bit, 4bit) to the reason."""

    model_type: str
    architecture: str
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def verified(self) -> bool:
        return not self.failed


def status_text(outcomes: Iterable[dict[str, Any]], transformers: str) -> str:
    """The status file for outcomes with `type`, `architecture` and `failed`."""
    outcomes = sorted(outcomes, key=lambda one: one["type"])
    lines = [
        "# Written by `make matrix`: what each architecture of transformers went through here.",
        f'transformers = "{transformers}"',
        "# model type and class, one a line",
        "verified = '''",
        *(f"{one['type']} {one['architecture']}" for one in outcomes if not one["failed"]),
        "'''",
    ]
    for one in outcomes:
        if one["failed"]:
            lines += ["", f'[failed."{one["type"]}"]', f'architecture = "{one["architecture"]}"']
            lines += [
                f"{json.dumps(step)} = {json.dumps(why, ensure_ascii=False)}" for step, why in one["failed"].items()
            ]
    return "\n".join(lines) + "\n"


@cache
def _read() -> tuple[str, dict[str, ArchitectureStatus]]:
    if not FILE.is_file():
        return "", {}
    table = tomllib.loads(FILE.read_text(encoding="utf-8"))
    found = {}
    for line in table["verified"].split("\n"):
        if line.strip():
            name, kind = line.split()
            found[name] = ArchitectureStatus(name, kind)
    for name, values in table.get("failed", {}).items():
        found[name] = ArchitectureStatus(name, values.pop("architecture"), values)
    return table["transformers"], found


def tested_with() -> str:
    """The version of transformers that the status was found with; empty when it never was."""
    return _read()[0]


def statuses() -> list[ArchitectureStatus]:
    return list(_read()[1].values())


def status_of(architecture: str | None, model_type: str | None = None) -> ArchitectureStatus | None:
    """The status of what config.json names: by model type, else by class; None when it was never tried."""
    known = _read()[1]
    if model_type in known:
        return known[model_type]
    return next((one for one in known.values() if one.architecture == architecture), None)
