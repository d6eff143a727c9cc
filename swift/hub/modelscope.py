"""ModelScope's HTTP interface: a repository's file list, and downloads into ModelScope's own cache.

Spoken directly because the official package brings a second HTTP stack with it; the cache layout is the official
client's, so that each finds what the other fetched. Promises: a snapshot is marked complete only when every file is
in place.
"""

from __future__ import annotations

import json
import os
import urllib.parse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from swift.errors import HubError
from swift.hub import local
from swift.hub.listing import RemoteFile
from swift.hub.progress import Progress
from swift.hub.transfer import Http, StatusError, fetch, get
from swift.runs import STAGING_PREFIX, write_json

DEFAULT_ENDPOINT = "https://www.modelscope.cn"
DEFAULT_REVISION = "master"
COMPLETE = ".swift-complete.json"
PARTIAL = f"{STAGING_PREFIX}parts"
PAGE = 200
PARALLEL = 4


def endpoint() -> str:
    """MODELSCOPE_ENDPOINT, else MODELSCOPE_DOMAIN, else the public site."""
    named = os.environ.get("MODELSCOPE_ENDPOINT") or os.environ.get("MODELSCOPE_DOMAIN") or DEFAULT_ENDPOINT
    return (named if "://" in named else f"https://{named}").rstrip("/")


def headers(token: str | None) -> dict[str, str]:
    """Older addresses of the interface read the token from a cookie, newer ones from the header."""
    token = token or os.environ.get("MODELSCOPE_API_TOKEN")
    secret = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
    return {"User-Agent": "swift", **secret}


def _address(kind: str, hub_id: str, what: str, **query: Any) -> str:
    path = urllib.parse.quote(f"/api/v1/{kind}/{hub_id}/{what}")
    return f"{endpoint()}{path}?{urllib.parse.urlencode(query)}"


def _answer(url: str, http: Http) -> Any:
    return answer_of(get(url, http), url)


def answer_of(body: bytes, url: str) -> Any:
    """`Data` of a JSON answer. The server also reports errors in the body of an answer with status 200."""
    try:
        answer = json.loads(body)
    except ValueError as error:
        fix = "check MODELSCOPE_ENDPOINT and the proxy: something else than ModelScope answered"
        raise HubError("the answer is not JSON", where=url, fix=fix) from error
    code = answer.get("Code", 200)
    if code != 200 or answer.get("Success") is False:
        status = 404 if str(code).startswith(("404", "10010205", "10010206")) else 403 if code == 403 else 400
        raise StatusError(status, url, str(answer.get("Message", answer)))
    return answer.get("Data", answer)


def list_files(kind: str, hub_id: str, revision: str | None, http: Http) -> list[RemoteFile]:
    """All files of a repository. `kind` is models or datasets; the list of a data set comes in pages."""
    revision = revision or DEFAULT_REVISION
    if kind == "models":
        entries = _entries(_answer(_address(kind, hub_id, "repo/files", Revision=revision, Recursive="True"), http))
    else:
        entries, number = [], 1
        while True:
            query = dict(Revision=revision, Recursive="True", PageNumber=number, PageSize=PAGE)
            page = _entries(_answer(_address(kind, hub_id, "repo/tree", **query), http))
            entries += page
            if len(page) < PAGE:
                break
            number += 1
    return [RemoteFile(e["Path"], e.get("Size"), e.get("Sha256") or None) for e in entries if e.get("Type") != "tree"]


def _entries(data: Any) -> list[dict[str, Any]]:
    return data if isinstance(data, list) else data.get("Files") or []


def snapshot_dir(kind: str, hub_id: str, revision: str | None) -> Path:
    """Where a download goes: into what the cache has already, else the official client's present layout."""
    for found in local.cached_snapshots(kind, hub_id, use_hf=False, revision=revision):
        return found
    root = local.modelscope_cache() / kind / hub_id.replace("/", "--")
    return root / "snapshots" / (revision or DEFAULT_REVISION)


def is_complete(snapshot: Path) -> bool:
    """Did a download of ours finish there, and are its files still the size they had?"""
    marker = snapshot / COMPLETE
    if not marker.is_file():
        return False
    sizes = json.loads(marker.read_text(encoding="utf-8"))
    return all((snapshot / name).is_file() and (snapshot / name).stat().st_size == n for name, n in sizes.items())


def missing(snapshot: Path, files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Those of `files` that aren't in the snapshot with their size."""
    return [f for f in files if not _in_place(snapshot / f.path, f.size)]


def _in_place(path: Path, size: int | None) -> bool:
    return path.is_file() and (size is None or path.stat().st_size == size)


def download(kind: str, hub_id: str, revision: str | None, files: Sequence[RemoteFile], http: Http) -> Path:
    """Fetch `files` into the cache and return the snapshot directory. Whoever calls holds the repository's lock."""
    snapshot = snapshot_dir(kind, hub_id, revision)
    snapshot.mkdir(parents=True, exist_ok=True)
    todo = missing(snapshot, files)
    with Progress(f"{hub_id} from ModelScope", sum(f.size or 0 for f in todo)) as progress:

        def one(file: RemoteFile) -> None:
            url = _address(kind, hub_id, "repo", Revision=revision or DEFAULT_REVISION, FilePath=file.path)
            # the hash in the name keeps parts of different versions of a file apart
            part = snapshot / PARTIAL / f"{file.path.replace('/', '--')}.{(file.sha256 or 'part')[:12]}"
            fetch(
                url, _inside(snapshot, file.path), part, http, size=file.size, sha256=file.sha256, progress=progress.add
            )

        with ThreadPoolExecutor(PARALLEL) as pool:
            futures = [pool.submit(one, file) for file in todo]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                for future in futures:
                    future.cancel()
                raise
    if (snapshot / PARTIAL).is_dir() and not any((snapshot / PARTIAL).iterdir()):
        (snapshot / PARTIAL).rmdir()
    write_json(snapshot / COMPLETE, {f.path: (snapshot / f.path).stat().st_size for f in files})
    return snapshot


def _inside(snapshot: Path, path: str) -> Path:
    """A file's place; a list that names a path outside the snapshot is refused."""
    target = (snapshot / path).resolve()
    if not target.is_relative_to(snapshot.resolve()):
        raise HubError(f"the file list names a path outside the repository: {path}", where=str(snapshot))
    return target
