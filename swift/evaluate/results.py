"""The result of one benchmark as the report, the files and comparisons see it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class BenchmarkResult:
    """`score` and `stderr` are fractions of 1. `mode` and `prompts` say how was asked, `backend` who scored.

    `unparsed`: answers from which none could be read, which count as wrong; None where nothing is read.
    `truncated`: prompts that lost their beginning. `tokens` by kind; `seconds` of asking, in all attempts.
    """

    benchmark: str
    backend: str
    harness: str
    metric: str
    score: float
    stderr: float | None
    n: int
    split: str
    mode: str
    prompts: str
    shots: int | None
    unparsed: int | None = None
    truncated: int = 0
    partial: str | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    metrics: Mapping[str, Any] = field(default_factory=dict)
    subjects: Mapping[str, Any] = field(default_factory=dict)
    categories: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> BenchmarkResult:
        return cls(**values)


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def plus_minus(stderr: float | None) -> str:
    return "" if stderr is None else f"±{100 * stderr:.2f}"


def span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else time.strftime("%H:%M:%S", time.gmtime(seconds))


def tokens_text(tokens: Mapping[str, int]) -> str:
    """`12,345 scored` or `1,200 read, 345 written`."""
    words = {"scored": "scored", "prompt": "read", "generated": "written"}
    return ", ".join(f"{tokens[kind]:,} {word}" for kind, word in words.items() if tokens.get(kind))
