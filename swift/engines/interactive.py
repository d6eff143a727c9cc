"""`swift infer` as a conversation: a person at a terminal, or lines from a pipe, and an engine that answers.

Promises: one failed or interrupted answer doesn't end the session; the transcript is on stdout, remarks are on
stderr. Knows only the engine protocol.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from typing import Any

from swift.engines.asking import user_message
from swift.engines.protocol import Collector, Engine, GenerationRequest, Result, Sampling
from swift.engines.replies import Replies
from swift.errors import SwiftError
from swift.i18n.said import error_said

HELP = """\
exit, quit (or Ctrl-D)  leave            clear         forget the conversation
multi-line              texts of several lines, each ended by #; single-line goes back
reset-system            a new system prompt, and forget the conversation
Ctrl-C stops an answer."""
RULE = "-" * 50


@dataclass
class Conversation:
    """What has been said. `system` None: the model's default."""

    system: str | None = None
    messages: list[dict[str, Any]] = field(default_factory=list)

    def asking(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        head = [{"role": "system", "content": self.system}] if self.system is not None else []
        return [*head, *self.messages, message]


@dataclass
class Input:
    """Texts from stdin: lines, or in multi-line mode what stands before a line that ends with #."""

    multi_line: bool = False

    def read(self, prompt: str) -> str:
        """The next text; EOFError at the end of the input."""
        if not self.multi_line:
            return self._line(prompt)
        lines: list[str] = []
        while True:
            try:
                line = self._line(prompt if not lines else " " * len(prompt))
            except EOFError:
                if not lines:
                    raise
                return "\n".join(lines)
            if line.rstrip().endswith("#"):
                return "\n".join([*lines, line.rstrip()[:-1]]).strip()
            if line.strip().lower() in COMMANDS and not lines:
                return line
            lines.append(line)

    def _line(self, prompt: str) -> str:
        if sys.stdin.isatty():
            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        print(f"{prompt}{line.rstrip()}", flush=True)
        return line.rstrip("\r\n")


COMMANDS = ("exit", "quit", "clear", "multi-line", "single-line", "reset-system", "help")


class Session:
    """One conversation after the other. `stream` shows answers as they come; `takes_media`: <image>, <video> and
    <audio> in a text stand for files that are asked for. `failures` counts the answers that failed."""

    def __init__(self, engine: Engine, sampling: Sampling, replies: Replies, stream: bool, takes_media: bool = False):
        self._engine, self._sampling, self._replies, self._stream = engine, sampling, replies, stream
        self._takes_media = takes_media
        self._conversation = Conversation()
        self._input = Input()
        self._turn = 0
        self.failures = 0

    def run(self) -> None:
        """Talk until the person leaves or the input ends."""
        if sys.stdin.isatty():
            _remark(HELP)
            import readline  # noqa: F401  arrow keys and history for input()
        while True:
            try:
                query = self._input.read("<<< ")
            except EOFError:
                return
            except KeyboardInterrupt:
                _remark("\n(exit or Ctrl-D leaves)")
                continue
            word = query.strip().lower()
            if word in ("exit", "quit"):
                return
            if word in COMMANDS:
                self._command(word)
            elif query.strip():
                self._answer(query)

    def _command(self, word: str) -> None:
        if word == "clear":
            self._conversation.messages.clear()
            _remark("(the conversation is forgotten)")
        elif word in ("multi-line", "single-line"):
            self._input.multi_line = word == "multi-line"
            _remark("(end each text with #)" if self._input.multi_line else "(one line, one text)")
        elif word == "reset-system":
            try:
                text = self._input.read("system: ")
            except (EOFError, KeyboardInterrupt):
                return
            self._conversation = Conversation(text.strip() or None)
        else:
            _remark(HELP)

    def _answer(self, query: str) -> None:
        try:
            message = self._message(query)
        except SwiftError as error:
            self.failures += 1
            _remark(f"swift: {error_said(error)}")
            return
        request = GenerationRequest(
            messages=self._conversation.asking(message), sampling=turn_sampling(self._sampling, self._turn)
        )
        self._turn += 1
        began = time.monotonic()
        try:
            result, text = print_answer(self._engine, request, self._replies, self._stream)
        except SwiftError as error:
            self.failures += 1
            _remark(f"swift: {error_said(error)}")
            return
        seconds = time.monotonic() - began
        print(RULE, flush=True)
        if sys.stdin.isatty():
            count = result.usage.completion_tokens
            _remark(f"({count} tokens, {count / max(seconds, 1e-9):.1f} tokens/s{', stopped' * _stopped(result)})")
        self._conversation.messages += [message, self._replies.message(text)]

    def _message(self, query: str) -> dict[str, Any]:
        """What was typed, with the media that its tags stand for: those without a name are asked for."""
        if not self._takes_media:
            return {"role": "user", "content": query}
        return user_message(query, ask=lambda kind: self._input.read(f"{kind} (path or URL) <<< ").strip())


def _stopped(result: Result) -> bool:
    return result.finish_reason == "cancelled"


def print_answer(engine: Engine, request: GenerationRequest, replies: Replies, stream: bool) -> tuple[Result, str]:
    """Print one answer to stdout, as it comes or at once; Ctrl-C cancels it and keeps what has come.

    Returns the result and the whole text, with what the prompt had written of it.
    """
    opening = replies.opening(request.messages or (), request.tools)
    collector = Collector()
    with engine.submit(request) as deltas:
        shown = False
        while True:
            try:
                for delta in deltas:
                    collector.add(delta)
                    if stream and delta.text:
                        print(delta.text if shown else opening + delta.text, end="", flush=True)
                        shown = True
                break
            except KeyboardInterrupt:
                deltas.cancel()
    result = collector.result()
    text = opening + result.text
    print("" if shown else text, flush=True)
    return result, text


def turn_sampling(sampling: Sampling, turn: int) -> Sampling:
    """The sampling of the n-th question of a session or row of a file: the seed moves on, so that equal questions
    differ.
    """
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + turn)


def _remark(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
