"""Curves of a run: PNG files in images/, and a small one for the terminal.

Knows the records of logging.jsonl only. matplotlib is imported here and nowhere else, without a display.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# file -> (title, the records' keys drawn in it)
IMAGES = {
    "train_loss": ("loss", ("loss", "eval_loss")),
    "train_learning_rate": ("learning rate", ("learning_rate",)),
    "train_grad_norm": ("gradient norm", ("grad_norm",)),
    "train_token_acc": ("token accuracy", ("token_acc", "eval_token_acc")),
    "train_seq_acc": ("sequence accuracy", ("seq_acc", "eval_seq_acc")),
    "train_accuracy": ("accuracy", ("accuracy", "eval_accuracy")),
    "train_tokens_per_second": ("tokens per second", ("tokens_per_second",)),
    "eval_loss": ("validation loss", ("eval_loss",)),
}
BRAILLE = 0x2800
# dot of a braille cell by (row from the top, column)
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


def series(records: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    """Steps and finite values of one key."""
    points = [(r["step"], r[key]) for r in records if r.get(key) is not None and math.isfinite(r[key])]
    return [step for step, _ in points], [value for _, value in points]


def smoothed(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start."""
    result, total, share = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        share = weight * share + (1 - weight)
        result.append(total / share)
    return result


def save_images(records: Sequence[dict[str, Any]], directory: Path) -> list[Path]:
    """Draw every curve that has at least two points; the files written."""
    curves = {}
    for name, (title, keys) in IMAGES.items():
        drawn = [(key, *series(records, key)) for key in keys]
        drawn = [(key, steps, values) for key, steps, values in drawn if steps]
        if any(len(steps) > 1 for _, steps, _ in drawn):
            curves[name] = (title, drawn)
    if not curves:
        return []
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    written = []
    directory.mkdir(exist_ok=True)
    for name, (title, drawn) in curves.items():
        figure = Figure(figsize=(8, 5), dpi=100)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for key, steps, values in drawn:
            _draw(axes, key, steps, values)
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
        if len(axes.get_legend_handles_labels()[1]) > 1:
            axes.legend()
        path = directory / f"{name}.png"
        figure.savefig(path)
        written.append(path)
    return written


def _draw(axes: Any, key: str, steps: list[int], values: list[float]) -> None:
    if len(values) == 1 or key.startswith("eval_"):
        axes.plot(steps, values, marker="o", label=key)
    elif key == "loss" and len(values) > 20:
        line = axes.plot(steps, values, alpha=0.35, label=key)[0]
        axes.plot(steps, smoothed(values), color=line.get_color(), label="loss, smoothed")
    else:
        axes.plot(steps, values, label=key)


def terminal_curve(values: Sequence[float], width: int = 60, height: int = 8) -> str:
    """`values` as a curve in braille characters, `width` by `height` cells, with the range at its left; "" for none.

    Values that aren't finite are left out. Each column of dots shows the mean of its share of the values.
    """
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return ""
    points = _columns(values, 2 * width)
    low, high = min(points), max(points)
    rows = 4 * height
    heights = [round((value - low) / (high - low) * (rows - 1)) if high > low else rows // 2 for value in points]
    cells = [[0] * width for _ in range(height)]
    for x, y in _joined(heights):
        row = rows - 1 - y
        cells[row // 4][x // 2] |= DOTS[row % 4][x % 2]
    labels = {0: f"{high:.3g}", height - 1: f"{low:.3g}"}
    margin = max(len(text) for text in labels.values())
    return "\n".join(
        f"{labels.get(number, ''):>{margin}} ┤{''.join(chr(BRAILLE + dots) for dots in line).rstrip(chr(BRAILLE))}"
        for number, line in enumerate(cells)
    )


def _columns(values: Sequence[float], count: int) -> list[float]:
    """`count` values: means of the shares, or the values stretched when there are fewer."""
    result = []
    for column in range(count):
        start = column * len(values) // count
        stop = max(start + 1, (column + 1) * len(values) // count)
        share = values[start:stop]
        result.append(sum(share) / len(share))
    return result


def _joined(heights: Sequence[int]) -> list[tuple[int, int]]:
    """Points of the curve with the gaps of steep places filled."""
    points = []
    before = heights[0]
    for x, y in enumerate(heights):
        first = y if y == before else before + (1 if y > before else -1)
        points += [(x, between) for between in range(min(first, y), max(first, y) + 1)]
        before = y
    return points
