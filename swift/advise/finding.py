"""What a check found: one line of fact, and the one command that mends it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from swift.errors import SwiftError
from swift.i18n.said import said

OK, WARN, FAIL = "ok", "warn", "fail"
MARKS = {OK: "ok  ", WARN: "WARN", FAIL: "FAIL"}


@dataclass(frozen=True)
class Finding:
    """`name`: what was looked at. `status`: ok, warn (works, but ...), fail (won't work). `fix`: a command, or what
    to do.
    """

    name: str
    status: str
    what: str
    fix: str = ""


def of_error(name: str, error: SwiftError, status: str = FAIL) -> Finding:
    """A finding that says what a SwiftError says."""
    what = f"{error.where}: {error.what}" if error.where else error.what
    return Finding(name, status, what, error.fix or "")


def as_text(findings: Iterable[Finding]) -> str:
    lines = []
    for finding in findings:
        lines.append(f"{MARKS[finding.status]}  {finding.name}: {said(finding.what)}")
        if finding.fix:
            lines.append(f"      -> {said(finding.fix)}")
    return "\n".join(lines)


def as_json(findings: Iterable[Finding]) -> str:
    return json.dumps([asdict(finding) for finding in findings], ensure_ascii=False, indent=2)
