"""Fetch one file over HTTP so that it ends up whole or not at all.

Promises: written aside and renamed; an interrupted fetch goes on where it stopped (Range) in the next attempt or the
next run; size and sha256 are checked where they are known; credentials are not sent to another host after a redirect.
Knows HTTP, not the hubs.
"""

from __future__ import annotations

import hashlib
import http.client
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swift.errors import HubError
from swift.runs import disk_error

BLOCK = 1 << 20
RETRIED_STATUS = (408, 425, 429, 500, 502, 503, 504)
_SECRET_HEADERS = ("authorization", "cookie")


@dataclass(frozen=True)
class Http:
    """How to talk: seconds to wait for a connection or for data, attempts, and the first pause between them."""

    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 30.0
    attempts: int = 5
    pause: float = 1.0
    say: Callable[[str], None] = lambda message: None


class StatusError(Exception):
    """The server answered with an error status; `body` is the start of its answer."""

    def __init__(self, status: int, url: str, body: str):
        super().__init__(f"HTTP {status} from {url}")
        self.status, self.url, self.body = status, url, body


class Unreachable(Exception):
    """No whole answer after all attempts: no network, no such host, time-out, connection cut."""


class _DropSecrets(urllib.request.HTTPRedirectHandler):
    """Follows redirects as urllib does, but leaves the credentials behind when the host changes."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc:
            for name in list(request.headers):
                if name.lower() in _SECRET_HEADERS:
                    request.remove_header(name)
        return request


_OPENER = urllib.request.build_opener(_DropSecrets)


def _attempts(http_: Http, url: str, once: Callable[[], object]):
    """Run `once` until it returns; retries what may pass by itself, with a message and a growing pause."""
    reason, attempts = "", http_.attempts
    for attempt in range(http_.attempts):
        if attempt == attempts:
            break
        if attempt:
            pause = min(http_.pause * 2 ** (attempt - 1), 30.0)
            http_.say(f"{reason}; trying again in {pause:.0f} s ({attempt + 1} of {attempts})")
            time.sleep(pause)
        try:
            return once()
        except urllib.error.HTTPError as error:
            body = error.read(2000).decode("utf-8", errors="replace")
            if error.code not in RETRIED_STATUS:
                raise StatusError(error.code, url, body) from error
            reason = f"the server answered {error.code} {error.reason}"
            if attempt == http_.attempts - 1:
                raise StatusError(error.code, url, body) from error
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            reason = str(cause) or type(error).__name__
            if isinstance(cause, (socket.gaierror, ConnectionRefusedError)):
                attempts = min(attempts, 2)  # no network, most likely: the user shouldn't wait long to hear it
    raise Unreachable(reason)


def _open(url: str, http_: Http, extra: Mapping[str, str] | None = None):
    request = urllib.request.Request(url, headers={**http_.headers, **(extra or {})})
    return _OPENER.open(request, timeout=http_.timeout)


def get(url: str, http_: Http) -> bytes:
    """The whole body of a small answer; StatusError or Unreachable."""

    def once() -> bytes:
        with _open(url, http_) as response:
            return response.read()

    return _attempts(http_, url, once)


def send(url: str, request: Callable[[], urllib.request.Request], http_: Http) -> bytes:
    """The whole body of the answer to `request()`, which is made anew for every attempt; StatusError or Unreachable."""

    def once() -> bytes:
        with _OPENER.open(request(), timeout=http_.timeout) as response:
            return response.read()

    return _attempts(http_, url, once)


def fetch(
    url: str,
    target: Path,
    partial: Path,
    http_: Http,
    *,
    size: int | None = None,
    sha256: str | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Put the content of `url` at `target`. `partial` keeps what has arrived, across runs.

    `progress` is told the bytes as they arrive (what a previous run left included). HubError when the content isn't
    what was announced, ResourceError when the disk is full, StatusError or Unreachable otherwise.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    for last in (False, True):
        left = partial.stat().st_size if partial.exists() else 0
        progress(left)
        _attempts(http_, url, lambda: _fetch_rest(url, partial, http_, size, progress))
        problem = _difference(partial, size, sha256)
        if problem is None:
            partial.replace(target)
            return
        progress(-partial.stat().st_size)
        partial.unlink()
        if last or left == 0:
            break
        http_.say(f"{target.name}: what was left of an earlier download doesn't fit; fetching it anew")
    fix = "try again later; if it stays so, the repository on the hub is damaged: download the file elsewhere"
    raise HubError(f"{target.name} {problem}", where=url, fix=fix)


def _fetch_rest(url: str, partial: Path, http_: Http, size: int | None, progress: Callable[[int], None]) -> None:
    """Append what is still missing; a server that ignores Range sends everything, and the file starts anew."""
    have = partial.stat().st_size if partial.exists() else 0
    if size is not None and have >= size:
        if have == size:
            partial.touch()  # an empty file needs no request
            return
        progress(-have)
        partial.unlink()
        have = 0
    with _open(url, http_, {"Range": f"bytes={have}-"} if have else None) as response:
        if have and response.status != 206:
            progress(-have)
            have = 0
        _copy(response, partial, have > 0, progress)


def _copy(response: http.client.HTTPResponse, partial: Path, append: bool, progress: Callable[[int], None]) -> None:
    announced = response.headers.get("Content-Length")
    copied = 0
    try:
        with open(partial, "ab" if append else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                copied += len(block)
                progress(len(block))
    except (ConnectionError, TimeoutError):
        raise
    except OSError as error:
        raise disk_error(error, partial) from error
    if announced is not None and copied < int(announced):
        raise ConnectionError(f"the connection was cut after {copied} of {announced} bytes")


def _difference(path: Path, size: int | None, sha256: str | None) -> str | None:
    """How a fetched file differs from what was announced, or None."""
    actual = path.stat().st_size
    if size is not None and actual != size:
        return f"has {actual} bytes instead of {size}"
    if sha256:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        if digest.hexdigest() != sha256.lower():
            return "has another sha256 than the hub states"
    return None
