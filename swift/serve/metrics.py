"""Counters, gauges and histograms in Prometheus' text format. Knows nothing of what is measured.

Promises: safe in one event loop; label values are escaped; nothing is kept per request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _labels(pairs: tuple[tuple[str, str], ...]) -> str:
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in pairs) + "}" if pairs else ""


class Counter:
    """A number that only grows, one for each combination of label values."""

    kind = "counter"

    def __init__(self, name: str, text: str):
        self.name, self.text = name, text
        self._values: dict[tuple[tuple[str, str], ...], float] = {}

    def add(self, amount: float = 1, **labels: str) -> None:
        key = tuple(labels.items())
        self._values[key] = self._values.get(key, 0) + amount

    def lines(self) -> Iterator[str]:
        for key, value in self._values.items() or [((), 0)]:
            yield f"{self.name}{_labels(key)} {value:g}"


class Gauge:
    """A number of now, set just before it is written."""

    def __init__(self, name: str, text: str, kind: str = "gauge"):
        self.name, self.text, self.kind = name, text, kind
        self.value: float = 0

    def lines(self) -> Iterator[str]:
        yield f"{self.name} {self.value:.17g}"


class Histogram:
    kind = "histogram"

    def __init__(self, name: str, text: str, bounds: tuple[float, ...] = SECONDS):
        self.name, self.text = name, text
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self) -> Iterator[str]:
        total = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            shown = "+Inf" if bound == float("inf") else f"{bound:g}"
            yield f'{self.name}_bucket{{le="{shown}"}} {total}'
        yield f"{self.name}_sum {self._sum:.17g}"
        yield f"{self.name}_count {total}"


def page(metrics: list[Counter | Gauge | Histogram]) -> str:
    lines = []
    for metric in metrics:
        lines += [f"# HELP {metric.name} {metric.text}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
    return "\n".join(lines) + "\n"
