"""Put a directory on Hugging Face or ModelScope as one commit; what can be wrong (no name, no token) is said before
anything is sent.

Hugging Face through its own client. ModelScope is spoken to directly: weights as blobs named by their sha256, which
aren't sent again when the hub has them, then one commit that names all files. Training state stays here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swift.errors import HubError, UsageError
from swift.hub import huggingface, modelscope
from swift.hub.transfer import Http, StatusError, Unreachable, send

log = logging.getLogger("swift")

PRIVATE, PUBLIC = 1, 5  # ModelScope's numbers
SMALL = 1 << 20  # text files up to this size are sent inside the commit
TEXT = (".json", ".md", ".txt", ".jinja", ".py", ".jsonl", ".model_card", "Modelfile", "LICENSE")
# what only a training that goes on needs
STAYS = ("optimizer", "scheduler", "rng_state", "trainer_state.json", "training_args.bin", "scaler.pt", "global_step")


@dataclass(frozen=True)
class Target:
    """Where to: `hub_id` is OWNER/NAME (Hugging Face also takes a name alone: the token's owner)."""

    hub_id: str
    use_hf: bool
    token: str | None
    private: bool
    message: str

    @property
    def hub(self) -> str:
        return "Hugging Face" if self.use_hf else "ModelScope"


def check_target(hub_id: str | None, *, use_hf: bool, token: str | None, private: bool, message: str) -> Target:
    """UsageError for a name that can't be, or when no token is known."""
    if not hub_id:
        raise UsageError("no name on the hub", where="--push_to_hub", fix="--hub_model_id OWNER/NAME")
    if not re.fullmatch(r"[\w.\-]+/[\w.\-]+" if not use_hf else r"([\w.\-]+/)?[\w.\-]+", hub_id):
        raise UsageError("not a name on the hub", where=f"--hub_model_id {hub_id}", fix="--hub_model_id OWNER/NAME")
    token = token or _known_token(use_hf)
    if token is None:
        named = "HF_TOKEN" if use_hf else "MODELSCOPE_API_TOKEN"
        fix = f"--hub_token TOKEN, or set {named}; --use_hf {str(not use_hf).lower()} takes the other hub"
        raise UsageError("no token to write with", where="--push_to_hub", fix=fix)
    return Target(hub_id, use_hf, token, private, message)


def _known_token(use_hf: bool) -> str | None:
    if not use_hf:
        return os.environ.get("MODELSCOPE_API_TOKEN")
    from huggingface_hub import get_token

    return get_token()


def files_to_send(directory: Path) -> list[str]:
    """Names within the directory, without training state and hidden files."""
    found = []
    for path in sorted(p for p in directory.rglob("*") if p.is_file()):
        name = path.relative_to(directory).as_posix()
        if not any(part.startswith((".", *STAYS)) for part in name.split("/")):
            found.append(name)
    if not found:
        raise UsageError("the directory holds nothing to upload", where=str(directory))
    return found


def upload(directory: Path, target: Target) -> str:
    """Send the files and return the address of the repository; HubError when the hub refuses or can't be reached."""
    names = files_to_send(directory)
    try:
        return _to_huggingface(directory, names, target) if target.use_hf else _to_modelscope(directory, names, target)
    except StatusError as error:
        raise _refused(target, directory, error.status, error.body) from error
    except Unreachable as error:
        where = huggingface.endpoint() if target.use_hf else modelscope.endpoint()
        raise HubError(
            f"can't reach {target.hub} at {where}: {error}", where=target.hub_id, fix=_again(directory)
        ) from error


def _again(directory: Path) -> str:
    return f"{directory} is complete: later, swift export --model {directory} --push_to_hub true --hub_model_id ..."


def _refused(target: Target, directory: Path, status: int, body: str) -> HubError:
    if status in (401, 403):
        return HubError(
            f"{target.hub} denies writing ({status})", where=target.hub_id, fix="a token with write access: --hub_token"
        )
    text = " ".join(body.split())[:200]
    return HubError(
        f"{target.hub} answered with an error ({status}): {text}", where=target.hub_id, fix=_again(directory)
    )


def _to_huggingface(directory: Path, names: Sequence[str], target: Target) -> str:
    from huggingface_hub import HfApi, errors

    api = HfApi(endpoint=huggingface.endpoint(), token=target.token)
    try:
        made = api.create_repo(target.hub_id, private=target.private, exist_ok=True)
        api.upload_folder(
            repo_id=made.repo_id, folder_path=directory, allow_patterns=list(names), commit_message=target.message
        )
    except errors.HfHubHTTPError as error:
        raise StatusError(error.response.status_code, target.hub_id, str(error)) from error
    except (errors.HTTPError, ConnectionError) as error:
        raise Unreachable(str(error) or type(error).__name__) from error
    return str(made)


def _to_modelscope(directory: Path, names: Sequence[str], target: Target) -> str:
    http = Http(headers={**modelscope.headers(target.token), "Content-Type": "application/json"}, say=log.info)
    base, hub_id = modelscope.endpoint(), target.hub_id
    if not _exists(base, hub_id, http):
        owner, name = hub_id.split("/")
        seen = PRIVATE if target.private else PUBLIC
        made = {"Path": owner, "Name": name, "ChineseName": name, "Visibility": seen, "License": "Apache License 2.0"}
        _ask(f"{base}/api/v1/models", made, http)
    actions = []
    for name in names:
        path = directory / name
        size = path.stat().st_size
        if size <= SMALL and name.endswith(TEXT):
            content = base64.b64encode(path.read_bytes()).decode()
            kind = {"type": "normal", "sha256": "", "content": content, "encoding": "base64"}
        else:
            digest = _send_blob(path, size, f"{base}/api/v1/repos/models/{hub_id}", http)
            kind = {"type": "lfs", "sha256": digest, "content": "", "encoding": ""}
        actions.append({"action": "create", "path": name, "size": size, **kind})
    commit = {"commit_message": target.message, "actions": actions}
    _ask(f"{base}/api/v1/repos/models/{hub_id}/commit/{modelscope.DEFAULT_REVISION}", commit, http)
    return f"{base}/models/{hub_id}"


def _exists(base: str, hub_id: str, http: Http) -> bool:
    try:
        _ask(f"{base}/api/v1/models/{hub_id}", None, http)
    except StatusError as error:
        if error.status == 404:
            return False
        raise
    return True


def _send_blob(path: Path, size: int, repository: str, http: Http) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    oid = digest.hexdigest()
    wanted = {"operation": "upload", "objects": [{"oid": oid, "size": size}]}
    for entry in _ask(f"{repository}/info/lfs/objects/batch", wanted, http).get("objects") or ():
        address = ((entry.get("actions") or {}).get("upload") or {}).get("href")
        if address:
            log.info("sending %s (%.1f MB)", path.name, size / 1e6)

            def request(address: str = address) -> urllib.request.Request:
                headers = {**http.headers, "Content-Type": "application/octet-stream", "Content-Length": str(size)}
                return urllib.request.Request(address, data=open(path, "rb"), headers=headers, method="PUT")

            modelscope.answer_of(send(address, request, http), address)
    return oid


def _ask(url: str, value: Any, http: Http) -> Any:
    """The `Data` of the answer to a POST of `value` (a GET when None)."""
    body = None if value is None else json.dumps(value).encode()

    def request() -> urllib.request.Request:
        return urllib.request.Request(url, data=body, headers=dict(http.headers))

    return modelscope.answer_of(send(url, request, http), url) or {}
