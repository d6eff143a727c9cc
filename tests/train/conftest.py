"""Runs of these tests keep their encoded rows in a cache of their own, and draw their curves only where asked: that is
a third of what a tiny run costs.
"""

import os

import pytest

from swift.cli import main
from swift.train import summary


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    before = os.environ.get("SWIFT_CACHE")
    os.environ["SWIFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("SWIFT_CACHE")
    if before is not None:
        os.environ["SWIFT_CACHE"] = before


@pytest.fixture(autouse=True)
def undrawn(request, monkeypatch):
    """No PNG of curves is drawn, except by tests marked `draws`."""
    if not request.node.get_closest_marker("draws"):
        monkeypatch.setattr(summary, "save_images", lambda records, directory: [])


@pytest.fixture
def type_words(capfd):
    """Type `swift WORDS` in this process; gives (exit code, stdout + stderr)."""

    def typed(words: list[str]) -> tuple[int, str]:
        code = main(words)
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    return typed
