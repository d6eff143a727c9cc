"""The results for people: the table in the terminal and one HTML page without any script or link."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swift.evaluate.results import BenchmarkResult, percent, plus_minus, span, tokens_text
from swift.i18n import display_width, language, pad
from swift.i18n.said import said

HEAD = ("benchmark", "metric", "score %", "std. err.", "n", "shots", "mode", "prompt", "unread", "tokens", "time")
WORST_UNREAD = 0.1


def cells(result: BenchmarkResult) -> tuple[str, ...]:
    """One result as the columns of `HEAD`."""
    return (
        result.benchmark,
        result.metric,
        percent(result.score),
        plus_minus(result.stderr),
        str(result.n),
        "?" if result.shots is None else str(result.shots),
        result.mode,
        result.prompts,
        "" if result.unparsed is None else str(result.unparsed),
        tokens_text(result.tokens),
        span(result.seconds),
    )


def table(results: Sequence[BenchmarkResult]) -> str:
    """Plain text, one line a benchmark, under a line for each backend."""
    lines = []
    for by in dict.fromkeys((r.backend, r.harness) for r in results):
        rows = [HEAD, *(cells(r) for r in results if (r.backend, r.harness) == by)]
        lines += [said(f"{by[0]} backend, {by[1]}"), *aligned(rows), ""]
    return "\n".join(lines).rstrip()


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of columns, in the language of whoever reads."""
    rows = [[said(cell) for cell in row] for row in rows]
    widths = [max(display_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(pad(cell, width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def remarks(results: Iterable[BenchmarkResult]) -> list[str]:
    """What a reader must know beside the numbers."""
    found = []
    for result in results:
        if result.partial:
            found.append((result, result.partial))
        if result.truncated:
            found.append((result, f"{result.truncated} requests were longer than the context and lost their beginning"))
        if result.unparsed and result.unparsed > WORST_UNREAD * result.n:
            what = (
                f"no answer could be read from {result.unparsed} of {result.n} outputs; they count as wrong, so the "
                "score measures the form of the answers too (see the samples)"
            )
            found.append((result, what))
    return [named(result.benchmark, what) for result, what in found]


def named(benchmark: str, what: str) -> str:
    """A remark behind its benchmark's name, in the language of whoever reads."""
    return f"{benchmark}: {said(what)}"


STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1d232b;background:#fff}
table{border-collapse:collapse;margin:.5rem 0 1.5rem}th,td{padding:.25rem .8rem;border-bottom:1px solid #d8dee6}
th{text-align:left}td.n{text-align:right;font-variant-numeric:tabular-nums}.bar{background:#dbe7f6;height:.8rem}
.bar i{display:block;height:100%;background:#2f6fb5}small{color:#5a6675}summary{cursor:pointer}
@media(prefers-color-scheme:dark){body{background:#14181d;color:#e3e8ee}th,td{border-color:#333c47}.bar{background:#26303b}}
"""


def page(results: Sequence[BenchmarkResult], facts: Mapping[str, Any]) -> str:
    """The report as HTML."""
    model = html.escape(str(facts.get("model", "")))
    title = said("evaluation report")
    body = [f"<h1>{title}</h1><p>{model}<br><small>swift {html.escape(str(facts.get('swift', '')))}</small></p>"]
    body.append(_grid(HEAD, [cells(result) for result in results], numbers={2, 3, 4, 5, 8}))
    body += [f"<p>{html.escape(remark)}</p>" for remark in remarks(results)]
    for result in results:
        body.append(f"<h2>{html.escape(result.benchmark)}</h2>")
        parts = (f"{result.backend} backend, {result.harness}", f"{result.split} split", result.mode, result.prompts)
        about = "; ".join(map(said, parts))
        body.append(f"<p><small>{html.escape(about)}</small></p>")
        rows = [(name, percent(v["score"]), plus_minus(v["stderr"])) for name, v in result.metrics.items()]
        body.append(_grid(("metric", "score %", "std. err."), rows, numbers={1, 2}))
        if result.categories:
            body.append(_parts(result.categories))
        if len(result.subjects) > 1:
            summary = said(f"{len(result.subjects)} subjects")
            body.append(f"<details><summary>{summary}</summary>{_parts(result.subjects)}</details>")
    text = "\n".join(body)
    return (
        f'<!doctype html><html lang="{language()}"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{STYLE}</style><body>{text}</body></html>\n"
    )


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: set[int]) -> str:
    lines = ["<table><tr>", *(f"<th>{html.escape(said(name))}" for name in head), "</tr>"]
    for row in rows:
        marks = (' class="n"' if i in numbers else "" for i in range(len(row)))
        lines += [
            "<tr>",
            *(f"<td{mark}>{html.escape(said(cell))}" for mark, cell in zip(marks, row, strict=True)),
            "</tr>",
        ]
    return "".join([*lines, "</table>"])


def _parts(parts: Mapping[str, Any]) -> str:
    rows = []
    for name, part in sorted(parts.items()):
        width = max(0.0, min(100.0, 100 * part["score"]))
        bar = f'<div class="bar" style="width:12rem"><i style="width:{width:.1f}%"></i></div>'
        numbers = f'<td class="n">{percent(part["score"])}<td class="n">{part["n"]}'
        rows.append(f"<tr><td>{html.escape(name)}{numbers}<td>{bar}</tr>")
    head = "".join(f"<th>{said(name)}" for name in ("subject", "score %", "n"))
    return f"<table><tr>{head}<th></tr>{''.join(rows)}</table>"
