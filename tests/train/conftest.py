"""Runs of these tests keep their encoded rows in a cache of their own."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    before = os.environ.get("SWIFT_CACHE")
    os.environ["SWIFT_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("SWIFT_CACHE")
    if before is not None:
        os.environ["SWIFT_CACHE"] = before
