"""What a command says while it works: the `swift` logger, plain lines on stdout, as loud as --log_level."""

from __future__ import annotations

import logging
import os
import sys

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def speak(level: str) -> None:
    """Send the `swift` logger to stdout; under torchrun only the first process speaks up to warnings."""
    logger = logging.getLogger("swift")
    quiet_rank = int(os.environ.get("RANK", "0")) > 0
    logger.setLevel(logging.ERROR if quiet_rank else LEVELS[level])
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
