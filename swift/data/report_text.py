"""The data report for people: plain text with a small histogram, and one HTML page without any script or link."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING

from swift.i18n.said import said

if TYPE_CHECKING:
    from swift.data.mask_view import Shown
    from swift.data.report import DataReport, SplitCount
    from swift.data.tally import DatasetCount, Drops

BAR = "█"
NOTES = {
    "part": "examples made from parts of a conversation",
    "composed": "examples of a last turn behind its own prompt, which the template renders only apart",
    "part_too_long": "parts of used conversations dropped: longer than --max_length",
    "part_nothing_left": "parts of used conversations dropped: nothing to learn left within --max_length",
    "straddled": "examples where a token reaches over the border between prompt and reply",
    "history": "examples that learn an earlier turn as history shows it",
    "no_end": "examples whose template writes no end-of-turn token",
    "reasoning_left_out": "examples whose reasoning the template doesn't show",
    "tools_left_out": "examples whose tools the template doesn't show",
    "non_thinking": "examples of replies without reasoning, as the template's non-thinking mode has them",
    "text": "examples of plain text, every token learned",
}


def report_text(report: DataReport, width: int = 100) -> str:
    lines = [said(f"Data: {report.rows_read} rows read, {report.dropped} dropped")]
    for count in report.datasets:
        lines += [f"  {line}" for line in _dataset_lines(count)]
    for split in report.splits.values():
        lines += ["", *_split_lines(split, width)]
    if report.duplicates:
        lines.append("  " + said(f"{report.duplicates} training rows repeat the content of another one"))
    if report.val_in_train:
        lines.append("  " + said(f"{report.val_in_train} val rows have the same content as a training row"))
    if report.schedule:
        s = report.schedule
        lines.append(
            "  "
            + said(
                f"{s.batches_per_epoch} batches and {s.steps_per_epoch} steps an epoch, {s.total_steps} steps in all"
            )
        )
    return "\n".join([*lines, *(f"  {said(remark)}" for remark in report.remarks)])


def _reasons(drops: Drops) -> list[str]:
    """The lines of what was dropped, each in the reader's language behind its indentation."""
    return [line[: len(line) - len(line.lstrip())] + said(line.lstrip()) for line in drops.lines()]


def _dataset_lines(count: DatasetCount) -> list[str]:
    parts = [said(f"{count.read} rows")]
    for number, what in (
        (count.drops.total, "{} dropped"),
        (count.unsampled, "{} not sampled"),
        (count.train, "{} train"),
        (count.val, "{} val"),
        (count.repeated, "{} of them repeats"),
    ):
        parts += [said(what.format(number))] if number else []
    formats = ", ".join(f"{name} {n}" if len(count.formats) > 1 else name for name, n in count.formats.most_common())
    lines = [f"{count.spec}: {', '.join(parts)} ({formats})"]
    lines += [f"  {line}" for line in _reasons(count.drops)]
    lines += ["  " + said(f"{n} x {note}") for note, n in count.notes.most_common() if n]
    if count.unused:
        names = [str(name) for name, _ in count.unused.most_common()]
        lines.append("  " + said(f"columns not used: {', '.join(names[:12])}") + (" ..." if len(names) > 12 else ""))
    return lines + (
        ["  " + said(f"{count.filled} rows filled with the model's name and author")] if count.filled else []
    )


def _split_lines(split: SplitCount, width: int) -> list[str]:
    facts = split.to_json()
    tokens = f"{facts['tokens']} tokens, {facts['trained_share']:.0%} of them learned"
    lines = [said(f"{split.name}: {split.used} of {split.rows} rows used, {split.examples} examples, {tokens}")]
    dropped = said("dropped: ")
    lines += [f"  {'' if line.startswith(' ') else dropped}{line}" for line in _reasons(split.drops)]
    for drops, what in (
        (split.truncated, "{} examples truncated"),
        (split.lost_end, "{} examples lost their end token"),
    ):
        if drops.total:
            places = ", ".join(where for places in drops.places.values() for where, _ in places[:3])
            lines.append(f"  {said(what.format(drops.total))}: {places}" + (" ..." if drops.total > 3 else ""))
    lines += [f"  {n} {said(NOTES.get(note, note))}" for note, n in split.notes.most_common()]
    if not split.examples:
        return lines
    shown = ", ".join(f"{name[1:]}% {length}" for name, length in split.percentiles().items())
    lines.append("  " + said(f"tokens per example: mean {facts['length']['mean']:.0f}, at {shown}"))
    return lines + [f"  {line}" for line in histogram_lines(split, width - 2)]


def histogram_lines(split: SplitCount, width: int) -> list[str]:
    """One line a bin: its range, a bar, the number of examples."""
    bins = split.histogram()
    most = max(n for _, _, n in bins)
    label = max(len(f"{low}-{high - 1}") for low, high, _ in bins)
    room = max(10, min(50, width - label - 12))
    rows = ((f"{low}-{high - 1}", n) for low, high, n in bins)
    return [f"{name:>{label}} {BAR * (-(-n * room // most)) if n else ''} {n}" for name, n in rows]


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0 1.4em}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:left;
vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}.bar{background:#4a7fb5;height:.9em;
display:inline-block}code{font-size:13px}h2{margin-top:1.6em}.detail{color:#666}
"""


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = "".join(f"<th>{html.escape(said(name))}</th>" for name in head)
    body = "".join("<tr>" + "".join(row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _number(value: int) -> str:
    return f'<td class="n">{value:,}</td>'


def _text(value: str) -> str:
    return f"<td>{html.escape(said(value))}</td>"


def _drop_table(title: str, groups: dict) -> str:
    rows = []
    for reason, found in groups.items():
        places = "<br>".join(
            f"<code>{html.escape(p['where'])}</code> <span class=detail>{html.escape(said(p['detail']))}</span>"
            for p in found["places"][:5]
        )
        rows.append([_text(reason or title), _number(found["rows"]), f"<td>{places}</td>"])
    return _table([title, "rows", "first places"], rows) if rows else ""


def _split_html(split: SplitCount) -> str:
    facts = split.to_json()
    numbers = ("rows", "used", "dropped", "examples", "truncated", "lost_end_token", "tokens", "trained_tokens")
    parts = [f"<h2>{html.escape(said(split.name))}</h2>"]
    parts.append(_table(list(numbers), [[_number(facts[name]) for name in numbers]]))
    parts.append(_drop_table("dropped", facts["dropped_by_reason"]))
    parts.append(_drop_table("truncated", facts["truncated_rows"]))
    parts.append(_drop_table("end token lost", facts["lost_end_token_rows"]))
    if facts["notes"]:
        rows = [[_text(NOTES.get(note, note)), _number(n)] for note, n in facts["notes"].items()]
        parts.append(_table(["notes", "examples"], rows))
    bins = split.histogram()
    most = max((n for _, _, n in bins), default=1)
    rows = [
        [_text(f"{low}-{high - 1}"), f'<td><span class="bar" style="width:{24 * n / most:.2f}em"></span>', _number(n)]
        for low, high, n in bins
    ]
    parts.append(_table(["tokens", "", "examples"], rows))
    parts.append(_table(list(facts["length"]), [[_number(round(v)) for v in facts["length"].values()]]))
    return "".join(parts)


def report_html(report: DataReport, shown: Sequence[Shown] = ()) -> str:
    from swift.data.mask_view import STYLE, mask_html

    head = ("rows_read", "dropped", "not_sampled", "train", "val", "repeated")
    tables = []
    for count in report.datasets:
        facts = count.to_json()
        tables.append([_text(count.spec), *(_number(facts[name]) for name in head)])
    title = html.escape(said("Data report"))
    parts = [f"<h1>{title}</h1>", _table(["dataset", *head], tables)]
    parts += [_dataset_html(count) for count in report.datasets]
    parts += [_split_html(split) for split in report.splits.values()]
    general = [f"{report.duplicates} training rows repeat the content of another one"] if report.duplicates else []
    if report.val_in_train:
        general.append(f"{report.val_in_train} val rows have the same content as a training row")
    if report.schedule:
        general.append(", ".join(f"{said(name.replace('_', ' '))}: {n}" for name, n in vars(report.schedule).items()))
    parts += [f"<p>{html.escape(said(line))}</p>" for line in (*general, *report.remarks)]
    parts.append(mask_html(shown))
    head = f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{_STYLE}{STYLE}</style>'
    return f"{head}{''.join(parts)}\n"


def _dataset_html(count: DatasetCount) -> str:
    facts = count.to_json()
    rows = [[_text(f"format: {name}"), _number(n)] for name, n in facts["formats"].items()]
    rows += [[_text(name), _number(n)] for name, n in facts["notes"].items()]
    rows += [[_text(f"column not used: {name}"), _number(n)] for name, n in facts["unused_columns"].items()]
    if count.filled:
        rows.append([_text("filled with the model's name and author"), _number(count.filled)])
    return _drop_table(f"dropped from {count.spec}", facts["dropped_by_reason"]) + _table([count.spec, "rows"], rows)
