"""Every test of the hub has its own home, caches and collections, and can reach nothing but the loopback."""

from __future__ import annotations

import pytest

from tests.hub.fake_hub import Hub, serve


@pytest.fixture(autouse=True)
def own_place(tmp_path, monkeypatch):
    """The working directory is an empty one; both hubs are addresses where nobody answers, unless `hub` is used."""
    for name in ("SWIFT_MODEL_DIR", "SWIFT_DATASET_DIR", "SWIFT_OFFLINE", "HF_HUB_OFFLINE", "MODELSCOPE_DOMAIN"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MODELSCOPE_API_TOKEN", "HF_TOKEN", "HF_HUB_CACHE", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "cache/modelscope"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache/huggingface"))
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def hub(monkeypatch):
    with serve(Hub()) as running:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", running.url)
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
