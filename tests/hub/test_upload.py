"""Uploads to a server that speaks both hubs' interfaces: what is there afterwards is the directory, and can be
downloaded again.
"""

import json

import pytest
from huggingface_hub import constants

from swift.cli import main
from swift.errors import HubError, UsageError
from swift.hub import resolve_model
from swift.hub.upload import check_target, files_to_send, upload
from tests import tiny
from tests.export.test_merge import adapter_of

HUBS = {"ModelScope": False, "Hugging Face": True}


@pytest.fixture(autouse=True)
def plain_blobs(monkeypatch):
    """Hugging Face's other transport needs a second server of its own."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


def target(use_hf, token="good", private=False):
    return check_target("me/model", use_hf=use_hf, token=token, private=private, message="first")


def directory_in(folder):
    path = tiny.checkpoint(folder / "model", intermediate_size=512)
    for name in ("optimizer.pt", "rng_state.pth", ".lock", "trainer_state.json"):
        (path / name).write_text("{}")
    (path / "sub").mkdir()
    (path / "sub" / "notes.txt").write_text("你好")
    return path


def content(path, names):
    return {name: (path / name).read_bytes() for name in names}


@pytest.mark.parametrize("name", HUBS)
def test_the_repository_holds_the_directory(hub, tmp_path, name):
    path = directory_in(tmp_path)
    names = files_to_send(path)
    assert "sub/notes.txt" in names and "model.safetensors" in names and "optimizer.pt" not in names
    upload(path, target(HUBS[name], private=True))
    assert hub.repos[("models", "me/model")] == content(path, names)
    assert hub.commits == [("me/model", "first")] and hub.private == {"me/model"}
    there = resolve_model("me/model", use_hf=HUBS[name], hub_token="good").path
    assert (there / "model.safetensors").read_bytes() == (path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", HUBS)
def test_a_second_upload_sends_only_what_changed(hub, tmp_path, name):
    path = directory_in(tmp_path)
    upload(path, target(HUBS[name]))
    hub.requests.clear()
    (path / "sub" / "notes.txt").write_text("more")
    upload(path, target(HUBS[name]))
    assert not [request for request in hub.requests if request[0] == "PUT"]
    assert hub.repos[("models", "me/model")]["sub/notes.txt"] == b"more"


@pytest.mark.parametrize("name", HUBS)
def test_a_token_that_may_not_write_is_said(hub, tmp_path, name):
    path = directory_in(tmp_path)
    with pytest.raises(HubError, match="denies writing"):
        upload(path, target(HUBS[name], token="bad"))


def test_a_busy_hub_is_asked_again(hub, tmp_path, monkeypatch):
    monkeypatch.setattr("swift.hub.transfer.time.sleep", lambda seconds: None)
    hub.busy = 2
    upload(directory_in(tmp_path), target(False))
    assert len(hub.commits) == 1


def test_nobody_there_is_said_with_how_to_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("swift.hub.transfer.time.sleep", lambda seconds: None)
    with pytest.raises(HubError, match="can't reach ModelScope") as caught:
        upload(directory_in(tmp_path), target(False))
    assert "--push_to_hub true" in caught.value.fix


@pytest.mark.parametrize(
    "hub_id, token, says", [(None, "good", "no name"), ("a/b/c", "good", "not a name"), ("me/model", None, "no token")]
)
def test_what_is_missing_is_said_before_anything_is_sent(hub_id, token, says):
    with pytest.raises(UsageError, match=says):
        check_target(hub_id, use_hf=False, token=token, private=False, message="")


def test_an_export_and_an_adapter_are_pushed_by_the_command(hub, tmp_path, capfd):
    base = tiny.checkpoint(tmp_path / "base")
    adapter = adapter_of(base, tmp_path / "adapter")
    push = ["--push_to_hub", "true", "--hub_token", "good", "--hub_model_id"]
    merge = ["export", "--adapters", str(adapter), "--merge_lora", "true", "--output_dir", str(tmp_path / "out")]
    assert main(["export", "--adapters", str(adapter), *push, "me/adapter"]) == 0
    assert "adapter_model.safetensors" in hub.repos[("models", "me/adapter")]
    assert main([*merge, "--push_to_hub", "true", "--hub_model_id", "me/out"]) == 2
    assert not (tmp_path / "out").exists(), "the missing token is said first"
    assert main([*merge, *push, "me/merged", "--commit_message", "merged"]) == 0
    files = hub.repos[("models", "me/merged")]
    assert files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert b"good" not in files["args.json"] and hub.commits[-1] == ("me/merged", "merged")
    assert json.loads(files["manifest.json"])["files"]
    assert "uploaded: " in capfd.readouterr().err
