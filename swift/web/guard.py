"""Who may speak to the page: an ASGI layer in front of everything it serves.

The page starts commands, so three things are refused before any of it is reached: a request without the name and
password, where they are set; one whose Host is not this server's (a foreign name that resolves to it); and one that
another site's page sends (its Origin is not our Host).
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from swift.errors import UsageError

LOOPBACK = ("localhost", "127.0.0.1", "::1")
App = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]


def is_loopback(host: str) -> bool:
    if host in LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check(host: str, username: str | None, password: str | None) -> None:
    """The rule of addresses: other machines may reach the page only with a name and a password."""
    if bool(username) != bool(password):
        raise UsageError("--username and --password go together", fix="give both, or neither")
    if not is_loopback(host) and not username:
        raise UsageError(
            "other machines could start commands here",
            where=f"--server_name {host}",
            fix="add --username NAME --password SECRET, or keep 127.0.0.1 and use ssh -L",
        )


class Guard:
    """`hosts`: the names that a request's Host may have; None where any is fine (a password is asked for)."""

    def __init__(self, app: App, hosts: tuple[str, ...] | None, username: str | None, password: str | None):
        self._app, self._hosts = app, hosts
        pair = f"{username}:{password}".encode() if username else None
        self._word = b"Basic " + base64.b64encode(pair) if pair else None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        headers = {name.lower(): value for name, value in scope["headers"]}
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts is not None and _name(host) not in self._hosts:
            return await _refuse(scope, send, 403, b"this page is served under another name")
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and origin.partition("://")[2] != host:
            return await _refuse(scope, send, 403, b"another site may not speak to this page")
        if self._word and not hmac.compare_digest(headers.get(b"authorization", b""), self._word):
            return await _refuse(scope, send, 401, b"name and password, please")
        await self._app(scope, receive, send)


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


async def _refuse(scope: MutableMapping[str, Any], send: Any, status: int, words: bytes) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(words)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="swift", charset="UTF-8"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words})
