"""`swift infer` over rows: one JSON line per row, in the rows' order, written as soon as it is known.

Promises: a killed run leaves whole lines and goes on where it stopped when started again with the same rows, settings
and --result_path; other rows or settings are an error, never a mixture. A row that can't be answered gets a line with
its error. Knows rows as plain dicts and the engine protocol.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from swift.chat.media import media_of, with_blocks
from swift.engines.protocol import Engine, GenerationRequest, Result, Sampling, Usage, generate_all
from swift.engines.replies import Replies
from swift.errors import DataError
from swift.i18n.said import said
from swift.runs import disk_error, ensure_writable_dir


@dataclass(frozen=True)
class Question:
    """One row: what to ask (`asked`: with its media in their places), the reference answer if the row has one, and the
    hash of all that shapes the answer."""

    row: Mapping[str, Any]
    messages: list[dict[str, Any]]
    asked: list[dict[str, Any]]
    labels: str | None
    source: str
    row_hash: str

    @classmethod
    def of(cls, row: Mapping[str, Any], source: str, settings: Mapping[str, Any]) -> Question:
        """The assistant messages at the row's end are the reference, the rest is the prompt; DataError if that is
        empty.
        """
        messages = [dict(message) for message in row["messages"]]
        asked = with_blocks(messages, media_of(row))
        reference: list[dict[str, Any]] = []
        while messages and messages[-1]["role"] == "assistant":
            reference.insert(0, messages.pop())
        if not messages:
            raise DataError("nothing to answer: the row has only assistant messages", where=source)
        asked = asked[: len(messages)]
        text = json.dumps(
            {"row": dict(row), "settings": dict(settings)}, ensure_ascii=False, sort_keys=True, default=str
        )
        labels = "\n".join(_text(message) for message in reference) if reference else None
        return cls(
            row, messages, asked, labels, source, hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        )


def grounded(question: Question, encoder: Any) -> Question:
    """The question with the places of its row's `objects` written as the model's family writes them."""
    if not question.row.get("objects") or encoder.processor is None:
        return question
    made = Question.of(encoder.grounded(question.row), question.source, {})
    return replace(made, row=question.row, row_hash=question.row_hash)


def _text(message: Mapping[str, Any]) -> str:
    if message.get("tool_calls"):
        calls = json.dumps(message["tool_calls"], ensure_ascii=False)
        return f"{message['content']}\n{calls}" if message.get("content") else calls
    return str(message.get("content") or "")


def already_answered(path: Path, questions: Sequence[Question]) -> tuple[int, int]:
    """How many rows a result file has already, and how many of those are errors; a cut last line is removed from it.

    DataError when a line isn't JSON or answers another row or other settings.
    """
    if not path.exists():
        return 0, 0
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    lines = whole.split(b"\n")[:-1]
    fix = "name another --result_path, or delete the file"
    if len(lines) > len(questions):
        raise DataError(f"has {len(lines)} answers, but there are {len(questions)} rows", where=str(path), fix=fix)
    failed = 0
    for number, (line, question) in enumerate(zip(lines, questions, strict=False), 1):
        try:
            record = json.loads(line)
            found = record.get("row_hash")
        except (ValueError, AttributeError) as error:
            raise DataError(f"not a result line: {error}", where=f"{path}:{number}", fix=fix) from error
        failed += "error" in record
        if found != question.row_hash:
            what = f"answers another row, or the same with other settings, than {question.source}"
            raise DataError(what, where=f"{path}:{number}", fix=fix)
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    return len(lines), failed


def answer_rows(
    engine: Engine,
    questions: Sequence[Question],
    sampling_of: Callable[[int], Sampling],
    replies: Replies,
    path: Path,
    *,
    ahead: int,
    show: bool,
) -> int:
    """Answer the rows that `path` lacks and return how many of all failed. `show` prints question and answer to stdout.

    At most `ahead` rows are handed to the engine before their answers are read.
    """
    done, failed = already_answered(path, questions)
    if done:
        rest = f"going on with row {done + 1}" if done < len(questions) else "nothing is left to do"
        remark(f"{path} has {done} of {len(questions)} answers: {rest}")
    ensure_writable_dir(path.parent)
    todo = questions[done:]
    requests = (
        GenerationRequest(messages=question.asked, tools=question.row.get("tools"), sampling=sampling_of(done + i))
        for i, question in enumerate(todo)
    )
    progress = Progress(len(questions), done)
    with _append_to(path) as write:
        for question, result in zip(todo, generate_all(engine, requests, ahead), strict=True):
            if result.error is not None:
                failed += 1
                remark(f"swift: {question.source}: {said(result.error)}")
            record = _record(question, result, replies)
            write(record)
            if show:
                print(
                    f"<<< {_text(question.messages[-1])}\n{record.get('error', record['response'])}\n{'-' * 50}",
                    flush=True,
                )
            progress.advance(result.usage)
    progress.end()
    return failed


def _record(question: Question, result: Result, replies: Replies) -> dict[str, Any]:
    failed = result.error is not None
    tools = question.row.get("tools")
    text = "" if failed else replies.opening(question.messages, tools) + result.text
    record: dict[str, Any] = {
        "response": None if failed else text,
        "labels": question.labels,
        "logprobs": [_logprob(p) for p in result.logprobs] if result.logprobs else None,
        "messages": question.messages if failed else [*question.messages, replies.message(text, tools)],
    }
    record |= {key: value for key, value in question.row.items() if key not in record and value}
    record |= {"finish_reason": result.finish_reason, "usage": asdict(result.usage)}
    if failed:
        record["error"] = str(result.error)
    return {**record, "source": question.source, "row_hash": question.row_hash}


def _logprob(p: Any) -> dict[str, Any]:
    """The shape of the OpenAI API's logprobs.content."""
    top = [{"token": token, "logprob": logprob} for _, token, logprob in p.top]
    return {"token": p.token, "logprob": p.logprob, "top_logprobs": top}


class _append_to:
    """Context: a function that appends one JSON line and flushes it; failed writes are ResourceErrors."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self) -> Callable[[Mapping[str, Any]], None]:
        self._file = open(self._path, "a", encoding="utf-8", errors="backslashreplace")
        return self._write

    def _write(self, record: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise disk_error(error, self._path) from error

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()


class Progress:
    """Rows and tokens per second on stderr: one line that is redrawn at a terminal, else a line every ten seconds."""

    def __init__(self, total: int, done: int):
        self._total, self._done, self._start = total, done, done
        self._tokens = 0
        self._began = self._shown = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def advance(self, usage: Usage) -> None:
        self._done += 1
        self._tokens += usage.completion_tokens
        now = time.monotonic()
        if now - self._shown >= (0.2 if self._terminal else 10):
            self._shown = now
            self._draw(now)

    def _draw(self, now: float) -> None:
        seconds = max(now - self._began, 1e-9)
        rows_per_second = (self._done - self._start) / seconds
        left = (self._total - self._done) / rows_per_second if rows_per_second else 0
        line = f"{self._done}/{self._total} rows, {self._tokens / seconds:.1f} tokens/s, {left:.0f} s left"
        print(
            f"\r\x1b[K{line}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def end(self) -> None:
        seconds = max(time.monotonic() - self._began, 1e-9)
        start = "\r\x1b[K" if self._terminal else ""
        rows = self._done - self._start
        remark(f"{start}{rows} rows, {self._tokens} tokens in {seconds:.1f} s: {self._tokens / seconds:.1f} tokens/s")


def remark(text: str) -> None:
    if text:
        print(text, file=sys.stderr, flush=True)


def read_results(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a result file."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
