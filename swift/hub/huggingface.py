"""Hugging Face through its own client: the file list and a snapshot in its own cache.

huggingface_hub is imported inside the functions only: it costs half a second that a local model must not pay.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from swift.hub import local
from swift.hub.listing import RemoteFile

DEFAULT_ENDPOINT = "https://huggingface.co"


def endpoint() -> str:
    return (os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def list_files(kind: str, hub_id: str, revision: str | None, token: str | None) -> list[RemoteFile]:
    """All files of a repository with size and, for large ones, sha256."""
    from huggingface_hub import HfApi

    # one request; a listing of the tree would be retried for half a minute where there is no network
    api = HfApi(endpoint=endpoint(), token=token)
    info = api.repo_info(hub_id, revision=revision, repo_type=kind.removesuffix("s"), files_metadata=True)
    files = info.siblings or []
    return [RemoteFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None) for file in files]


def download(kind: str, hub_id: str, revision: str | None, files: Sequence[RemoteFile], token: str | None) -> Path:
    """Fetch `files` into the Hugging Face cache and return the snapshot directory."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            hub_id,
            repo_type=kind.removesuffix("s"),
            revision=revision,
            token=token,
            endpoint=endpoint(),
            cache_dir=local.huggingface_cache(),
            allow_patterns=[file.path for file in files],
        )
    )
