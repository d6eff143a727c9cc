"""Curves: the terminal one keeps the shape of the values, the PNG files are there for what was measured."""

from __future__ import annotations

import math

from swift.train.curves import BRAILLE, DOTS, save_images, terminal_curve


def dots(text: str) -> list[tuple[int, int]]:
    """(column, height from the bottom) of every dot of a drawn curve."""
    lines = [line.split("┤", 1)[1] for line in text.splitlines()]
    found = []
    for number, line in enumerate(lines):
        for x, character in enumerate(line):
            code = ord(character) - BRAILLE
            assert 0 <= code < 256
            found += [
                (2 * x + column, 4 * (len(lines) - number) - 1 - row)
                for row in range(4)
                for column in range(2)
                if code & DOTS[row][column]
            ]
    return sorted(found)


def test_a_straight_line_is_straight():
    drawn = dots(terminal_curve([0, 1, 2, 3, 4, 5, 6, 7], width=4, height=2))
    assert drawn == [(i, i) for i in range(8)]


def test_size_range_and_labels():
    values = [5.0 * math.exp(-i / 30) for i in range(500)]
    text = terminal_curve(values, width=50, height=6)
    lines = text.splitlines()
    assert len(lines) == 6 and all(len(line) <= 60 for line in lines)
    high, low = (float(line.split("┤")[0]) for line in (lines[0], lines[-1]))
    assert max(values[:5]) >= high >= min(values[:5]) and max(values[-5:]) >= low >= min(values[-5:])
    drawn = dots(text)
    assert min(x for x, _ in drawn) == 0 and max(x for x, _ in drawn) == 99
    heights = [max(y for x, y in drawn if x == column) for column in range(100)]
    assert heights == sorted(heights, reverse=True), "a falling curve falls"


def test_one_value_none_and_values_that_are_no_numbers():
    assert terminal_curve([]) == "" and terminal_curve([math.nan, math.inf]) == ""
    assert len(dots(terminal_curve([2.0], width=10, height=3))) == 20
    assert dots(terminal_curve([1.0, math.nan, 3.0], width=4, height=2)) == dots(
        terminal_curve([1.0, 3.0], width=4, height=2)
    )


def test_a_png_for_every_curve_of_two_points_and_more(tmp_path):
    records = [
        {"step": i, "loss": 3 / i, "learning_rate": 1e-4, "grad_norm": 1.0, "token_acc": 0.1, "tokens_per_second": 9.0}
        for i in range(1, 40)
    ]
    records += [{"step": step, "eval_loss": 0.1} for step in (20, 39)] + [{"step": 39, "eval_seq_acc": 0.5}]
    written = save_images(records, tmp_path / "images")
    assert {p.stem for p in written} == {
        "train_loss",
        "train_learning_rate",
        "train_grad_norm",
        "train_token_acc",
        "train_tokens_per_second",
        "eval_loss",
    }
    assert all(p.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for p in written)
    assert save_images([], tmp_path / "none") == [] and not (tmp_path / "none").exists()
