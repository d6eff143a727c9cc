"""Ctrl-C and SIGTERM while training: the first asks the loop to save and stop, a second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType


class Interrupt:
    """A context in which SIGINT and SIGTERM only set `signal`; the loop looks at it after each step.

    A second SIGINT raises KeyboardInterrupt where the program stands. A second SIGTERM does nothing more: schedulers
    and torchrun send several. Outside the main thread no handler can be set, and none is.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
        print(
            "\nstopping: this step is finished and a checkpoint saved (Ctrl-C again stops at once)",
            file=sys.stderr,
            flush=True,
        )

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it; 0 without a signal."""
        return 128 + self.signal if self.signal else 0
