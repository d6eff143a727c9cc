"""The English texts that commands say, by file, and those of them that swift/i18n/said.zh.toml has no Chinese for.

python scripts/make_said.py              # what is missing, as lines for said.zh.toml
python scripts/make_said.py --stale      # keys that no code says any more
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
SPOKEN = {"said", "decide", "info", "warning", "error", "disk_error", "Finding"}
# What goes to programmers stays English, like what only a program can get wrong in a request (serve/, `invalid`).
WIRE = {"ValueError", "IndexError", "AttributeError", "TypeError"}
LOGGERS = ("log", "logger", "self.log")
WORDS = ("what", "where", "fix", "why", "because", "reason", "note", "notes", "against")
REASONS = re.compile(r"_?(why|against|refus|reason|dtype_why)")  # functions that return a text of why not
NOT_WORDS = re.compile(r"\{\}|--?\w+|`[^`]*`|'[^']*'|\w+[._/]\w+")
COMMAND = re.compile(r"(pip|apt|apt-get|python|export|unset|ulimit|swift [a-z-]+ --?|swift \{\})\b.*")


def texts(file: Path) -> list[str]:
    """Templates of `file` in order: arguments of errors, decisions and log lines, and names that hold such a text."""
    found: dict[str, None] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        for part in _parts(node):
            for text in _templates(part):
                if not COMMAND.fullmatch(text) and len(re.findall(r"[A-Za-z]{2,}", NOT_WORDS.sub(" ", text))) > 1:
                    found[text] = None
    return list(found)


def _parts(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        logs = isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in LOGGERS
        if name in WIRE:
            return
        if name == "append" and ast.unparse(node.func).endswith("remarks.append"):
            yield from node.args
        if name.endswith(("Error", "Package", "Unavailable", "Dropped", "BuiltYet", "Unreachable")) or name in SPOKEN:
            if name in ("info", "warning", "error") and not logs:
                return
            yield from node.args[:1] if name == "decide" else node.args
            yield from (k.value for k in node.keywords if k.arg in WORDS)
    elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "notes":
        yield node.slice
    elif isinstance(node, ast.FunctionDef) and REASONS.match(node.name):
        yield from (part.value for part in ast.walk(node) if isinstance(part, ast.Return) and part.value is not None)
    elif isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id.lower() in WORDS for t in node.targets):
        yield from node.value.values if isinstance(node.value, ast.Dict) else [node.value]


def _templates(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.sub(r"%(?:\.\d+)?[sdrifg]", "{}", node.value).replace("%%", "%")
    elif isinstance(node, ast.JoinedStr):
        yield "".join(v.value if isinstance(v, ast.Constant) else "{}" for v in node.values)
    elif isinstance(node, ast.IfExp):
        yield from _templates(node.body)
        yield from _templates(node.orelse)
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from _templates(value)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        for left in _templates(node.left):
            for right in _templates(node.right):
                yield left + right


def spoken() -> dict[str, list[str]]:
    """Texts by file, each named once, where it is met first."""
    seen: set[str] = set()
    by_file: dict[str, list[str]] = {}
    for file in sorted((ROOT / "swift").rglob("*.py")):
        new = [text for text in texts(file) if text not in seen]
        seen.update(new)
        if new:
            by_file[str(file.relative_to(ROOT / "swift"))] = new
    return by_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stale", action="store_true")
    options = parser.parse_args()
    from swift.i18n.said import pairs

    known, by_file = pairs(), spoken()
    if options.stale:
        said = {text for found in by_file.values() for text in found}
        print("\n".join(json.dumps(key, ensure_ascii=False) for key in pairs("words") if key not in said))
        return
    for file, found in by_file.items():
        missing = [text for text in found if text not in known]
        if missing:
            print(f"# {file}")
            print("\n".join(f'{json.dumps(text, ensure_ascii=False)} = ""' for text in missing))


if __name__ == "__main__":
    main()
