"""Answers on disk as they come: one JSON line each, keyed by the question, so that a killed evaluation asks nothing
twice.

A question that is asked several times (sampling) has an answer for each time. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from swift.runs import disk_error, read_log


def question_key(kind: str, *parts: Any) -> str:
    """Identifies a question by all that its answer depends on beside the model."""
    return hashlib.sha256(json.dumps([kind, *parts], ensure_ascii=False).encode("utf-8", "replace")).hexdigest()[:32]


class Answers:
    """The answers of one benchmark in `path`, with the tokens and seconds that they cost, also in earlier attempts."""

    def __init__(self, path: Path):
        self._path = path
        self._file: TextIO | None = None
        self.found: dict[str, list[Any]] = {}
        self.tokens: dict[str, int] = {}
        self.seconds = 0.0
        for record in read_log(path):
            self._take(record)
        self.before = sum(map(len, self.found.values()))

    def __enter__(self) -> Answers:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # a line that a kill cut short would swallow the next one
            whole = not self._path.exists() or self._path.read_bytes()[-1:] in (b"\n", b"")
            self._file = open(self._path, "a", encoding="utf-8")
            if not whole:
                self._file.write("\n")
        except OSError as error:
            raise disk_error(error, self._path) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self._file is not None:
            self._file.close()

    def _take(self, record: dict[str, Any]) -> None:
        if "key" in record:
            self.found.setdefault(record["key"], []).append(record["answer"])
        for name, count in record.get("tokens", {}).items():
            self.tokens[name] = self.tokens.get(name, 0) + count
        self.seconds += record.get("seconds", 0.0)

    def missing(self, keys: Sequence[str]) -> list[int]:
        """Indices of the questions that still have to be asked."""
        asked: dict[str, int] = {}
        missing = []
        for index, key in enumerate(keys):
            if asked.get(key, 0) >= len(self.found.get(key, ())):
                missing.append(index)
            asked[key] = asked.get(key, 0) + 1
        return missing

    def add(self, key: str, answer: Any) -> None:
        self._write({"key": key, "answer": answer})

    def spent(self, seconds: float, **tokens: int) -> None:
        self._write({"seconds": round(seconds, 3), "tokens": tokens})

    def _write(self, record: dict[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise disk_error(error, self._path) from error
        self._take(record)

    def collect(self, keys: Sequence[str]) -> list[Any]:
        """The answers in the order of the questions."""
        asked: dict[str, int] = {}
        answers = []
        for key in keys:
            answers.append(self.found[key][asked.get(key, 0)])
            asked[key] = asked.get(key, 0) + 1
        return answers
