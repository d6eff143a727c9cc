"""Runs of these tests keep their encoded rows in a cache of their own."""

import os

import pytest

from swift.cli import main


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    before = os.environ.get("SWIFT_CACHE")
    os.environ["SWIFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("SWIFT_CACHE")
    if before is not None:
        os.environ["SWIFT_CACHE"] = before


@pytest.fixture
def type_words(capfd):
    """Type `swift WORDS` in this process; gives (exit code, stdout + stderr)."""

    def typed(words: list[str]) -> tuple[int, str]:
        code = main(words)
        captured = capfd.readouterr()
        return code, captured.out + captured.err

    return typed
