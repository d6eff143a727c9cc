"""What a command says while it works: the `swift` logger, plain lines on stdout, as loud as --log_level."""

from __future__ import annotations

import logging
import os

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def speak(level: str) -> None:
    """Send the `swift` logger to stdout; under torchrun only the first process speaks up to warnings."""
    logger = logging.getLogger("swift")
    quiet_rank = int(os.environ.get("RANK", "0")) > 0
    logger.setLevel(logging.ERROR if quiet_rank else LEVELS[level])
    logger.propagate = False
    if not logger.handlers:
        logger.addHandler(_Printer())


class _Printer(logging.Handler):
    """Prints to whatever stdout is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)
