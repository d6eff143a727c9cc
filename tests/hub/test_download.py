"""Downloads end whole or with an error that says what to do; the server's faults are those of real networks."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import pytest

from swift.errors import HubError, ResourceError
from swift.hub import check_model_files, resolve_dataset, resolve_model
from swift.hub import download as downloads
from swift.hub.listing import RemoteFile, model_files
from swift.hub.transfer import Http, StatusError, Unreachable, fetch
from tests.hub import handmade
from tests.hub.fake_hub import Hub, serve

QUICK = Http(timeout=5.0, attempts=4, pause=0.01)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """No long pauses between attempts."""
    monkeypatch.setattr(downloads, "Http", lambda **options: Http(**{**options, "timeout": 5.0, "pause": 0.01}))


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def repository(hub, tmp_path) -> dict[str, bytes]:
    files = contents(handmade.sharded(tmp_path / "source", 3))
    hub.repos[("models", "org/tiny")] = {**files, "README.md": b"hello", "pytorch_model.bin": b"PK" * 50}
    return files


def test_modelscope_model(hub, repository):
    found = resolve_model("org/tiny")
    assert found.source == "modelscope"
    got = contents(found.path)
    assert {name: got[name] for name in repository} == repository
    assert "pytorch_model.bin" not in got  # the same weights again
    check_model_files(found.path)
    assert not [p for p in found.path.rglob("*") if ".writing-" in p.name]


def test_second_time_asks_nobody(hub, repository):
    first = resolve_model("org/tiny")
    hub.requests.clear()
    assert resolve_model("org/tiny").path == first.path and hub.requests == []


@pytest.mark.parametrize("layout", ["models/org/tiny", "hub/models/org/tiny", "models/org--tiny/snapshots/master"])
def test_what_the_official_client_fetched_is_found(hub, layout):
    place = Path(os.environ["MODELSCOPE_CACHE"]) / layout
    handmade.model(place)
    assert resolve_model("org/tiny").path == place and hub.requests == []


def test_only_what_is_missing_is_fetched(hub, repository):
    first = resolve_model("org/tiny").path
    (first / "model-00002-of-00003.safetensors").unlink()
    hub.requests.clear()
    assert contents(resolve_model("org/tiny").path)["model-00002-of-00003.safetensors"]
    assert [p for p in hub.paths() if "FilePath" in p and "model-00002" not in p] == []


def test_hugging_face_model(hub, repository):
    found = resolve_model("HF::org/tiny")
    assert found.source == "huggingface" and str(found.path).startswith(os.environ["HF_HOME"])
    got = contents(found.path)
    assert {name: got[name] for name in repository} == repository and "pytorch_model.bin" not in got
    hub.requests.clear()
    assert resolve_model("org/tiny", use_hf=True).path == found.path and hub.requests == []


def test_without_weights(hub, repository):
    names = contents(resolve_model("org/tiny", want_weights=False).path)
    assert "config.json" in names and not [n for n in names if n.endswith((".safetensors", ".bin"))]


def test_data_set_in_pages_and_its_subset(hub):
    hub.repos[("datasets", "org/rows")] = {f"part/{i:03}.jsonl": b'{"a": %d}\n' % i for i in range(430)}
    hub.repos[("datasets", "org/rows")]["other/x.jsonl"] = b"{}\n"
    found = resolve_dataset("org/rows", subsets=["part"])
    assert len(found.files) == 430 and found.source == "modelscope"
    hub.requests.clear()
    assert len(resolve_dataset("org/rows").files) == 431 and hub.requests == []


def test_hugging_face_data_set(hub):
    hub.repos[("datasets", "org/rows")] = {"data/train.jsonl": b"{}\n", "README.md": b"x"}
    found = resolve_dataset("HF::org/rows")
    assert [f.name for f in found.files] == ["train.jsonl"] and found.split == "train"


def test_catalog_name_asks_each_hub_for_its_own_id(hub, tmp_path):
    files = contents(handmade.model(tmp_path / "source"))
    hub.repos[("models", "LLM-Research/Llama-3.2-1B-Instruct")] = files
    hub.repos[("models", "meta-llama/Llama-3.2-1B-Instruct")] = files
    assert resolve_model("Llama-3.2-1B-Instruct").source == "modelscope"
    assert resolve_model("Llama-3.2-1B-Instruct", use_hf=True).source == "huggingface"


def test_cut_connection_is_resumed_not_restarted(hub, tmp_path):
    content = os.urandom(300_000)
    hub.repos[("models", "org/big")] = {"f": content}
    hub.cut_after, hub.cuts = 100_000, 2
    seen = []
    target = tmp_path / "out/f"
    url = f"{hub.url}/cdn/models/org/big/f"
    sha = hashlib.sha256(content).hexdigest()
    fetch(url, target, tmp_path / "part/f", QUICK, size=len(content), sha256=sha, progress=seen.append)
    assert target.read_bytes() == content and sum(seen) >= len(content)
    assert [h.get("range") for _, _, h in hub.requests] == [None, "bytes=100000-", "bytes=200000-"]


def test_next_run_goes_on_where_the_last_one_stopped(hub, tmp_path):
    content = os.urandom(50_000)
    hub.repos[("models", "org/big")] = {"f": content}
    hub.cut_after, hub.cuts = 20_000, 1
    url, target, part = f"{hub.url}/cdn/models/org/big/f", tmp_path / "f", tmp_path / "p"
    with pytest.raises(Unreachable):
        fetch(url, target, part, Http(attempts=1), size=50_000)
    assert not target.exists() and part.stat().st_size == 20_000
    fetch(url, target, part, QUICK, size=50_000)
    assert target.read_bytes() == content and not part.exists()
    assert hub.requests[-1][2]["range"] == "bytes=20000-"


def test_server_without_ranges(hub, tmp_path):
    content = os.urandom(50_000)
    hub.repos[("models", "org/big")] = {"f": content}
    hub.cut_after, hub.cuts, hub.ignore_range = 20_000, 1, True
    fetch(f"{hub.url}/cdn/models/org/big/f", tmp_path / "f", tmp_path / "p", QUICK, size=50_000)
    assert (tmp_path / "f").read_bytes() == content


def test_stale_part_is_thrown_away(hub, tmp_path):
    content = os.urandom(5_000)
    hub.repos[("models", "org/big")] = {"f": content}
    (tmp_path / "p").write_bytes(b"of an older version")
    sha = hashlib.sha256(content).hexdigest()
    fetch(f"{hub.url}/cdn/models/org/big/f", tmp_path / "f", tmp_path / "p", QUICK, size=5_000, sha256=sha)
    assert (tmp_path / "f").read_bytes() == content


@pytest.mark.parametrize("fault", ["corrupt", "extra"])
def test_wrong_content_leaves_nothing(hub, repository, fault):
    hub.corrupt, hub.extra = fault == "corrupt", b"x" if fault == "extra" else b""
    with pytest.raises(HubError) as caught:
        resolve_model("org/tiny")
    assert ("sha256" if fault == "corrupt" else "instead of") in str(caught.value)
    left = contents(Path(os.environ["MODELSCOPE_CACHE"]))
    assert not [name for name in left if name.endswith((".safetensors", ".json")) and ".writing-" not in name]


def test_busy_server_is_asked_again(hub, repository):
    hub.busy = 2
    assert resolve_model("org/tiny").path.is_dir()


def test_busy_server_is_not_asked_for_ever(hub, repository):
    hub.busy = 1000
    with pytest.raises(HubError, match="503"):
        resolve_model("org/tiny")


@pytest.mark.parametrize("use_hf", [False, True])
def test_unknown_repository(hub, use_hf):
    with pytest.raises(HubError) as caught:
        resolve_model("Qwen/Qwen3-4BB", use_hf=use_hf)
    assert "has no model of this name" in str(caught.value) and "Qwen/Qwen3-4B" in caught.value.fix
    with pytest.raises(HubError) as caught:
        resolve_dataset("AI-ModelScope/alpaca-gpt4-data-zhh", use_hf=use_hf)
    assert "has no data set of this name" in str(caught.value) and "alpaca-gpt4-data-zh" in caught.value.fix


@pytest.mark.parametrize(("use_hf", "variable"), [(False, "MODELSCOPE_API_TOKEN"), (True, "HF_TOKEN")])
def test_gated_repository(hub, repository, use_hf, variable):
    hub.gated.add("org/tiny")
    with pytest.raises(HubError) as caught:
        resolve_model("org/tiny", use_hf=use_hf)
    assert "denies access" in str(caught.value) and "--hub_token" in caught.value.fix and variable in caught.value.fix
    assert resolve_model("org/tiny", use_hf=use_hf, hub_token="good").path.is_dir()


@pytest.mark.parametrize("use_hf", [False, True])
def test_no_network(use_hf):
    with pytest.raises(HubError) as caught:
        resolve_model("org/tiny", use_hf=use_hf)
    assert "can't reach" in str(caught.value) and "127.0.0.1:9" in str(caught.value)
    assert "--model DIR" in caught.value.fix


def test_token_stays_with_the_hub(hub, repository):
    with serve(Hub(repos=hub.repos)) as elsewhere:
        hub.redirect_to = elsewhere.url.replace("127.0.0.1", "localhost")
        resolve_model("org/tiny", hub_token="good")
        assert all(h.get("authorization") == "Bearer good" for _, _, h in hub.requests)
        assert elsewhere.requests
        assert not [h for _, _, h in elsewhere.requests if "authorization" in h or "cookie" in h]


def test_two_processes_want_the_same(hub, repository):
    found = []
    threads = [threading.Thread(target=lambda: found.append(resolve_model("org/tiny").path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 4
    fetched = [p for p in hub.paths() if "FilePath=model-00001" in p]
    assert len(fetched) == 1


def test_silent_server_is_left_after_the_time_out(hub, tmp_path):
    hub.repos[("models", "org/big")] = {"f": b"content"}
    hub.stall = 1.5
    said = []
    quick = Http(timeout=0.2, attempts=2, pause=0.01, say=said.append)
    fetch(f"{hub.url}/cdn/models/org/big/f", tmp_path / "f", tmp_path / "p", quick, size=7)
    assert (tmp_path / "f").read_bytes() == b"content" and "timed out" in said[0]


def test_hugging_face_download_over_a_bad_line(hub, tmp_path):
    big = {f"layer.{i}": (100, 100) for i in range(4)}
    hub.repos[("models", "org/big")] = contents(handmade.model(tmp_path / "source", handmade.safetensors(big)))
    hub.cut_after, hub.cuts = 100_000, 1
    check_model_files(resolve_model("HF::org/big").path)
    assert hub.cuts == 0


def test_disk_too_small(hub, repository, monkeypatch):
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(ResourceError, match="not enough disk space"):
        resolve_model("org/tiny")
    assert not [p for p in hub.paths() if "FilePath" in p]


def test_path_outside_the_cache_is_refused(hub):
    hub.repos[("models", "org/evil")] = {"config.json": b"{}", "../../../../evil.json": b"{}"}
    with pytest.raises(HubError, match="outside"):
        resolve_model("org/evil")


def test_gguf_repository(hub):
    one = handmade.gguf()
    hub.repos[("models", "org/m-GGUF")] = {"m-Q4_0.gguf": one, "m-Q8_0.gguf": one, "README.md": b""}
    with pytest.raises(HubError) as caught:
        resolve_model("org/m-GGUF")
    assert "2 GGUF models" in str(caught.value) and "org/m-GGUF:m-Q4_0" in caught.value.fix
    for _ in range(2):
        found = resolve_model("org/m-GGUF:q8_0")
        assert found.path.name == "m-Q8_0.gguf" and check_model_files(found.path).is_gguf
    assert not [p for p in hub.paths() if "FilePath=m-Q4_0" in p]


def test_sub_directory_of_a_repository(hub, tmp_path):
    inner = contents(handmade.model(tmp_path / "source"))
    hub.repos[("models", "org/many")] = {f"{d}/{n}": c for d in ("base", "chat") for n, c in inner.items()}
    found = resolve_model("org/many:chat")
    assert found.path.name == "chat" and check_model_files(found.path)
    assert not (found.path.parent / "base").exists()


def chosen(*paths: str, **options) -> set[str]:
    return {f.path for f in model_files("org/m", [RemoteFile(p) for p in paths], **options)}


def test_which_files_a_model_needs():
    common = ("config.json", "tokenizer.json", "modeling_x.py", "chat_template.jinja")
    assert chosen(*common, "model.safetensors", "pytorch_model.bin", "tf_model.h5", "original/x.pth") == {
        *common,
        "model.safetensors",
    }
    assert chosen(*common, "pytorch_model.bin", "training_args.bin", "onnx/model.onnx") == {
        *common,
        "pytorch_model.bin",
        "training_args.bin",
    }
    assert chosen("config.json", "model-00001-of-00001.safetensors", "consolidated.safetensors") == {
        "config.json",
        "model-00001-of-00001.safetensors",
    }
    assert chosen("a-00001-of-00002.gguf", "a-00002-of-00002.gguf") == {
        "a-00001-of-00002.gguf",
        "a-00002-of-00002.gguf",
    }
    with pytest.raises(HubError, match="nothing called 'zz'"):
        chosen("config.json", "a.gguf", sub="zz")


def test_error_status_without_retry(hub, tmp_path):
    with pytest.raises(StatusError) as caught:
        fetch(f"{hub.url}/api/v1/models/no/where/repo?FilePath=x", tmp_path / "f", tmp_path / "p", QUICK)
    assert caught.value.status == 404 and len(hub.requests) == 1
