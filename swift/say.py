"""What a command says while it works: the `swift` logger as plain lines, as loud as it was told to be."""

from __future__ import annotations

import logging
import os
import sys

from swift.i18n.said import said

# Loggers of libraries that warn, in every run, of a faster kernel that nobody asked for.
CHATTY = ("bitsandbytes.backends.cpu.ops",)
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def speak(level: str = "info", stream: str = "stdout") -> None:
    """Send the `swift` logger to `stream`: stderr where stdout is for answers.

    The last call counts, so several commands can run in one process. Under torchrun only the first process speaks up to
    warnings.
    """
    logger = logging.getLogger("swift")
    quiet_rank = int(os.environ.get("RANK", "0")) > 0
    logger.setLevel(logging.ERROR if quiet_rank else LEVELS[level])
    logger.propagate = False
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    for handler in [h for h in logger.handlers if isinstance(h, _Printer)]:
        logger.removeHandler(handler)
    logger.addHandler(_Printer(stream))


class _Printer(logging.Handler):
    """Prints to whatever sys.stdout or sys.stderr is at that moment."""

    def __init__(self, stream: str):
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        print(said(record.getMessage()), file=getattr(sys, self.stream), flush=True)
