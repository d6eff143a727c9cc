"""An inference server of another program as a child process of ours: started, watched, started again, ended with us.

Promises: it counts as started when it says that it is healthy; its output is kept in a log; when it dies, requests are
told so at once and it is started again, at most MOST_RESTARTS times in RESTART_WINDOW seconds; it never outlives us
(see swift/children.py). Knows nothing of requests.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swift.children import Child
from swift.engines.protocol import EngineUnavailable

log = logging.getLogger("swift")

MOST_RESTARTS, RESTART_WINDOW = 3, 600.0
PROGRESS_SECONDS = 15.0
WARNED = re.compile(r"\bWARN(ING)?\b")
BLAME = re.compile(r"\b\w*(Error|Exception): .*|\berror: .*")


@dataclass(frozen=True)
class Launch:
    """What to start: `argv(port)` is its command line; `health` the path that answers 200 once it is ready."""

    name: str
    argv: Callable[[int], list[str]]
    env: Mapping[str, str] = field(default_factory=dict)
    health: str = "/health"


class Server:
    """`start` returns when the server is ready; `url` is where, while it is."""

    def __init__(self, launch: Launch, logfile: Path, start_within: float):
        self.launch, self.log = launch, logfile
        self.restarts = 0
        self.last_death: str | None = None
        self._start_within = start_within
        self._child: Child | None = None
        self._url: str | None = None
        self._closing = threading.Event()
        self._deaths: deque[float] = deque(maxlen=MOST_RESTARTS + 1)
        self._watcher = threading.Thread(target=self._watch, name=f"swift-watch-{launch.name}", daemon=True)

    @property
    def alive(self) -> bool:
        return self._url is not None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child is not None else None

    def url(self) -> str:
        """http://127.0.0.1:PORT; EngineUnavailable while there is none."""
        url = self._url
        if url is None:
            again = "it is being started again" if self._watcher.is_alive() else f"see {self.log}"
            raise EngineUnavailable(f"{self.launch.name} is not running: {self.last_death}; {again}")
        return url

    def start(self) -> None:
        """Raises EngineUnavailable with the end of its log when it ends instead of becoming ready."""
        try:
            self._up()
        except BaseException:
            self.close()
            raise
        self._watcher.start()

    def close(self) -> None:
        self._closing.set()
        self._url = None
        if self._child is not None:
            self._child.stop()
        if self._watcher.is_alive():
            self._watcher.join()

    def _up(self) -> None:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        began = said = time.monotonic()
        self._child = child = Child(self.launch.argv(port), self.log, self.launch.env)
        log.info("starting %s (process %s), log: %s", self.launch.name, child.pid, self.log)
        while not answers(url + self.launch.health):
            code = child.poll()
            if code is not None or self._closing.is_set():
                raise EngineUnavailable(self._obituary(code, "before it was ready"), where=str(self.log))
            now = time.monotonic()
            if now - began > self._start_within:
                child.stop()
                raise EngineUnavailable(
                    f"{self.launch.name} was not ready within {self._start_within:g} s\n{blame(child.output())}",
                    where=str(self.log),
                    fix="--engine_start_timeout SECONDS gives it longer",
                )
            if now - said > PROGRESS_SECONDS:
                said = now
                log.info("  %.0f s: %s", now - began, last_line(child.output()))
            self._closing.wait(0.25)
        self._url = url
        log.info("%s is ready after %.0f s", self.launch.name, time.monotonic() - began)

    def _obituary(self, code: int | None, when: str) -> str:
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        assert self._child is not None
        return f"{self.launch.name} ended {when} ({how})\n{blame(self._child.output())}"

    def _watch(self) -> None:
        while not self._closing.is_set():
            assert self._child is not None
            code = self._child.poll()
            if code is None:
                self._closing.wait(0.2)
                continue
            self._url = None
            if self._closing.is_set():
                return
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            self.last_death = f"it ended by itself ({how})"
            log.error("%s", self._obituary(code, "while it was needed"))
            if not self._revive():
                return

    def _revive(self) -> bool:
        """Start it again; False when that has been tried too often."""
        while not self._closing.is_set():
            now = time.monotonic()
            self._deaths.append(now)
            if len(self._deaths) > MOST_RESTARTS and now - self._deaths[0] < RESTART_WINDOW:
                log.error("%s died %d times: it is not started again", self.launch.name, len(self._deaths))
                return False
            self.restarts += 1
            try:
                self._up()
                return True
            except EngineUnavailable as error:
                self.last_death = error.what.partition("\n")[0]
                log.error("%s", error)
        return False


def free_port() -> int:
    """A port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str) -> bool:
    """Whether a GET is answered with a status below 400."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def last_line(output: str) -> str:
    return next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "no output yet")[:160]


def blame(output: str) -> str:
    """The lines of a log that say what went wrong: the first and the last that state an error, else the last ten.

    A warning that speaks of an error is none.
    """
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    errors = (BLAME.search(line) for line in lines if not WARNED.search(line))
    named = list(dict.fromkeys(found[0] for found in errors if found))
    chosen = [named[0], *named[1:][-1:]] if named else lines[-10:]
    return "\n".join(f"    {line[:400]}" for line in chosen)


def log_path(name: str) -> Path:
    """A new file for a server's log."""
    home = Path(os.environ.get("SWIFT_LOG_DIR") or Path.home() / ".cache" / "swift" / "logs")
    return home / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
