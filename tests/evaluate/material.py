"""Small benchmark files in published layouts, made up for tests, and an answerer that needs no model."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from swift.evaluate.answering import Ask, Generated

WORDS = ("cat", "dog", "Paris", "two", "story", "assistant", "question", "capital")


def arc(count: int) -> list[dict]:
    """Rows in the layout of the hub's ARC."""
    return [
        {
            "id": str(i),
            "question": f"What is {WORDS[i % 8]} number {i}?",
            "choices": {"text": [f"a {WORDS[(i + j) % 8]} {j}" for j in range(4)], "label": ["A", "B", "C", "D"]},
            "answerKey": "ABCD"[i % 4],
        }
        for i in range(count)
    ]


def write_jsonl(path: Path, rows: Sequence[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_mmlu(folder: Path, subjects: Sequence[str], count: int = 2) -> Path:
    """hendrycks/test's files, without a header."""
    for split, rows in (("test", count), ("dev", 5)):
        for subject in subjects:
            path = folder / "mmlu" / split / f"{subject}_{split}.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "w", encoding="utf-8", newline="") as file:
                for i in range(rows):
                    csv.writer(file).writerow(
                        [f"{subject}, question {i}?", "one", "two", "three", "four", "ABCD"[i % 4]]
                    )
    return folder


class Scripted:
    """Options are the likelier the longer their text is; a generation answers `reply`. Fails after `lives` answers."""

    name, scores, chats = "scripted", True, True
    facts = {"engine": "scripted"}

    def __init__(self, reply: str = "B", lives: int | None = None, scores: bool = True):
        self.reply, self.lives, self.scores = reply, lives, scores
        self.asked: list[tuple] = []

    def _live(self, asked: tuple) -> None:
        if self.lives is not None and len(self.asked) >= self.lives:
            raise RuntimeError("the engine died")
        self.asked.append(asked)

    def score(self, pairs: Sequence[tuple[str, str]]) -> Iterator[tuple[int, tuple[float, bool]]]:
        for index, pair in enumerate(pairs):
            self._live(pair)
            yield index, (float(len(pair[1])), False)

    def generate(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Generated]]:
        for index, ask in enumerate(asks):
            self._live((ask.prompt,))
            yield index, Generated(self.reply, 3, 1, "stop")

    def chat_prompt(self, messages: list[dict[str, str]], opened: bool) -> str:
        return json.dumps(messages)

    def spent(self) -> dict[str, int]:
        return {"scored": 1}

    def close(self) -> None:
        pass
