"""A model served by `swift deploy` on a local port, in a child process, for tools that talk to an OpenAI-style API."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from swift.children import Child
from swift.config.commands import EvalConfig
from swift.engines.server import answers, free_port
from swift.errors import ResourceError

log = logging.getLogger("swift")

SECTIONS = ("model", "quantization", "chat", "engine")
PAUSE_SECONDS = 0.5


@contextmanager
def deployed(config: EvalConfig, name: str, log_file: Path) -> Iterator[str]:
    """The server's address (http://127.0.0.1:PORT/v1) while it runs; it answers to the model's `name`.

    ResourceError with the end of its output when it doesn't start.
    """
    port = free_port()
    base = f"http://127.0.0.1:{port}/v1"
    words = [sys.executable, "-m", "swift", "deploy", *arguments(config), "--port", str(port)]
    words += ["--served_model_name", name, "--log_interval", "0"]
    log.info("serving the model at %s (its output: %s)", base, log_file)
    with Child(words, log_file) as child:
        while not answers(f"{base}/models"):
            if child.poll() is not None:
                raise ResourceError(
                    f"swift deploy ended with exit code {child.poll()}:\n{child.output().strip()}", where=str(log_file)
                )
            time.sleep(PAUSE_SECONDS)
        yield base


def arguments(config: EvalConfig) -> list[str]:
    """The typed options that deploy needs to serve the same model, as words of its command line."""
    words: list[str] = []
    for name, spec in config.specs().items():
        if config.given(name) and spec.section in SECTIONS:
            words += [f"--{name}", *_words(config.value(name))]
    return words


def _words(value: Any) -> list[str]:
    if isinstance(value, tuple):
        return [str(item) for item in value]
    if isinstance(value, bool):
        return [str(value).lower()]
    return [json.dumps(value) if isinstance(value, dict) else str(value)]
