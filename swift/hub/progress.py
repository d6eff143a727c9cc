"""One line about a download on stderr: rewritten in a terminal, start and end only elsewhere."""

from __future__ import annotations

import sys
import threading
import time

from swift.hub.resources import human_bytes


class Progress:
    """Counts bytes from any thread. `total` 0 means unknown."""

    def __init__(self, title: str, total: int):
        self.title, self.total, self.done = title, total, 0
        self._start = self._shown = time.monotonic()
        self._lock = threading.Lock()
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Progress:
        if self.total:
            print(f"downloading {self.title} ({human_bytes(self.total)})", file=sys.stderr)
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._live and self.done:
            print(file=sys.stderr)
        if kind is None and self.total:
            seconds = max(time.monotonic() - self._start, 1e-3)
            print(f"  done: {human_bytes(self.done)} in {seconds:.0f} s", file=sys.stderr)

    def add(self, count: int) -> None:
        with self._lock:
            self.done += count
            now = time.monotonic()
            if self._live and now - self._shown > 0.2:
                self._shown = now
                speed = self.done / max(now - self._start, 1e-3)
                share = f"{100 * self.done / self.total:5.1f} %  " if self.total else ""
                print(
                    f"\r  {share}{human_bytes(self.done)}  {human_bytes(speed)}/s   ",
                    end="",
                    file=sys.stderr,
                    flush=True,
                )
