"""A page server of its own and a Chromium to look at it with, for tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swift.web import supervise

ROOT = str(Path(__file__).resolve().parents[2])
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str:
    """The browser's program; the test is skipped, with the reason, where there is none."""
    pytest.importorskip("playwright.sync_api", reason="playwright isn't installed")
    found = os.environ.get("SWIFT_TEST_CHROMIUM") or next((p for p in map(shutil.which, NAMES) if p), None)
    if not found:
        pytest.skip("no chromium on this machine")
    return found


class Ui:
    """`swift web-ui` (or another command) in `folder`; `start` and `kill` as often as wanted."""

    def __init__(self, folder: Path, *argv: str):
        self.folder, self.argv = folder, argv or ("web-ui",)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        env = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
        words = [sys.executable, "-m", "swift", *self.argv, "--server_port", str(self.port)]
        self.process = subprocess.Popen(words, cwd=self.folder, env=env, stdout=subprocess.PIPE, text=True)
        assert str(self.port) in self.process.stdout.readline()

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait(20)


@contextlib.contextmanager
def served(folder: Path, *argv: str) -> Iterator[Ui]:
    ui = Ui(folder, *argv)
    ui.start()
    try:
        yield ui
    finally:
        ui.kill(signal.SIGTERM)


@contextlib.contextmanager
def browser_page(width: int = 1280, height: int = 900) -> Iterator[object]:
    """A page whose errors, and requests to elsewhere, fail the test at its end."""
    program = chromium()
    from playwright.sync_api import sync_playwright

    wrong: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.set_default_timeout(120_000)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: wrong.append(r.url) if _elsewhere(r.url) else None)
        page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        yield page
        browser.close()
    assert wrong == []


def _elsewhere(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1:", "data:", "blob:", "about:"))


def processes_in(folder: Path) -> list[str]:
    """Command lines of the processes that work in `folder` or name it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            inside = str(os.readlink(entry / "cwd")).startswith(str(folder)) or str(folder) in line
            if inside and int(entry.name) != os.getpid() and supervise.birth(int(entry.name)):
                found.append(line)
    return found


def wait_for(condition, seconds: float = 120.0):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found
