"""Before a command is started: what it would say of its options, what its defaults become, what it needs, what its data
are. Each question is the command itself, asked in a short-lived child process that ends with us.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swift.children import Child
from swift.errors import SwiftError, UsageError
from swift.hub import human_bytes
from swift.i18n import language
from swift.web import forms
from swift.web.views import safe_report

DRY_SECONDS, PLAN_SECONDS, DATA_SECONDS = 240.0, 120.0, 600.0
SAMPLED_ABOVE, SAMPLE = 20 << 20, 1000  # of larger files only the first rows are looked at
SHOWN_ROWS = 3
PLANNED = ("sft", "pt")  # what swift plan and swift data take the options of
RESOLVED = re.compile(r"^(\w+) = (.*?)(?:  # ([^:]+)(?:: (.*))?)?$")


def ask(argv: Sequence[str], seconds: float) -> tuple[int, str]:
    """The exit code and output of `swift ARGV`. SwiftError when it takes longer than `seconds`."""
    with tempfile.TemporaryDirectory(prefix="swift-ask-") as folder:
        log = Path(folder) / "output"
        with Child([sys.executable, "-m", "swift", *argv], log, {"SWIFT_LANG": language()}, grace=1.0) as child:
            try:
                code = child.wait(seconds)
            except subprocess.TimeoutExpired:
                raise SwiftError(f"swift {argv[0]} took longer than {seconds:.0f} s") from None
        return code, log.read_text(encoding="utf-8", errors="replace")


def refusal(output: str) -> str:
    """What a failed command says is wrong: its last `swift: ...` with the line of what to do."""
    lines = output.splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("swift: ")]
    if not starts:
        return "\n".join(lines[-5:])
    return "\n".join(lines[starts[-1] :][:4]).removeprefix("swift: ")


def objections(command: str, fields: forms.Fields) -> dict[str, str]:
    """Field -> what `--dry_run true` objects to; {} when the command would start.

    `swift plan` looks at a training's model and data in a tenth of the time: the dry run is only for what it refuses.
    """
    if command in PLANNED and fields.get("model") and fields.get("dataset"):
        code, _ = ask(_as("plan", command, fields), PLAN_SECONDS)
        if not code:
            return {}
    code, output = ask([*forms.argv(command, fields), "--dry_run", "true"], DRY_SECONDS)
    return forms.blame(refusal(output), fields, forms.specs_of(command)) if code else {}


def resolved(command: str, fields: forms.Fields) -> dict[str, Any]:
    """The options that were decided, each with its value and reason."""
    code, output = ask([*forms.argv(command, fields), "--dry_run", "true"], DRY_SECONDS)
    if code:
        return {"mistakes": forms.blame(refusal(output), fields, forms.specs_of(command))}
    found = (RESOLVED.match(line) for line in output.splitlines())
    rows = [(m[1], m[2], m[4] or m[3]) for m in found if m and m[3] and m[3] != "default"]
    return {"rows": rows, "all": output}


def plan(command: str, fields: forms.Fields) -> dict[str, Any]:
    """Memory and time of the training, by `swift plan`."""
    code, output = ask([*_as("plan", command, fields), "--json", "true"], PLAN_SECONDS)
    if code:
        return {"mistakes": forms.blame(refusal(output), fields, forms.specs_of(command))}
    try:
        facts = json.loads(output[output.index("{") : output.rindex("}") + 1])
    except ValueError:
        raise SwiftError("swift plan gave no answer that can be read") from None
    training, machine = facts["training"], facts["machine"]
    return {
        "fits": training["fits"],
        "total": human_bytes(training["total"]),
        "machine": machine["name"],
        "memory": human_bytes(machine["memory"]),
        "parts": [(name, human_bytes(size), size / max(training["total"], 1)) for name, size in _parts(training)],
        "steps": training["steps"],
        "seconds": training["seconds"],
        "remedy": _remedy(facts.get("remedy")),
        "rows": facts["data"]["rows"],
        "longest": facts["data"]["longest"],
    }


def _parts(training: Mapping[str, Any]) -> list[tuple[str, float]]:
    return sorted(training["parts"].items(), key=lambda part: -part[1])


def _remedy(remedy: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if remedy is None:
        return None
    fields = {name: forms.shown(value) for name, value in remedy["options"].items()}
    return {"fields": fields, "total": human_bytes(remedy["total"])}


def data(command: str, fields: forms.Fields) -> dict[str, Any]:
    """The data report with the first examples and what is learned of them, as a page without scripts."""
    specs = forms.specs_of(command)
    asked = dict(fields)
    sampled = False
    if str(asked.get("dataset", "")).strip():
        words = forms.split(str(asked["dataset"]), "--dataset")
        taken = [_sampled(word) for word in words]
        sampled = taken != words
        asked["dataset"] = forms.join(taken)
    asked.pop("output_dir", None)
    with tempfile.TemporaryDirectory(prefix="swift-data-") as folder:
        argv = [*_as("data", command, asked), "--show_rows", str(SHOWN_ROWS), "--output_dir", folder]
        code, output = ask(argv, DATA_SECONDS)
        page = Path(folder) / "data_report.html"
        if code and not page.is_file():
            return {"mistakes": forms.blame(refusal(output), fields, specs)}
        return {"html": safe_report(page), "sampled": SAMPLE if sampled else 0}


def _sampled(word: str) -> str:
    try:
        large = Path(word).expanduser().is_file() and Path(word).expanduser().stat().st_size > SAMPLED_ABOVE
    except OSError:
        large = False
    return f"{word}#{SAMPLE}" if large else word


def _as(other: str, command: str, fields: forms.Fields) -> list[str]:
    """The same options for a command that takes those of `command`."""
    if command not in PLANNED:
        raise UsageError(f"swift {other} knows nothing of swift {command}")
    words = forms.argv(command, fields)[1:]
    forced = ["--use_chat_template", "false", "--loss_scale", "all"] if command == "pt" else []
    return [other, *forced, *words]
