"""Nobody but the one in front of this machine, or who has the password, reaches the page."""

import base64

import httpx
import pytest

from swift.cli import main
from swift.errors import UsageError
from swift.web.guard import Guard, check, is_loopback


async def hello(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


async def ask(guard, **headers):
    transport = httpx.ASGITransport(app=guard)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:7860") as client:
        return await client.post("/", headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "127.0.0.1:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"host": "evil.example:7860"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"origin": "http://localhost:7860"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:1234"}, 403),
    ],
)
def test_foreign_names_and_foreign_pages_are_refused(headers, status):
    import asyncio

    guard = Guard(hello, ("localhost", "127.0.0.1", "::1"), None, None)
    assert asyncio.run(ask(guard, **headers)).status_code == status


def test_the_password_is_asked_for_everything():
    import asyncio

    guard = Guard(hello, None, "ann", "pä:ss")
    word = base64.b64encode("ann:pä:ss".encode()).decode()
    assert asyncio.run(ask(guard)).status_code == 401
    assert "Basic" in asyncio.run(ask(guard)).headers["www-authenticate"]
    assert asyncio.run(ask(guard, authorization="Basic " + base64.b64encode(b"ann:no").decode())).status_code == 401
    assert asyncio.run(ask(guard, authorization=f"Basic {word}", host="any.name")).text == "hello"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "::", "myhost"])
def test_other_addresses_need_a_password(host, capsys):
    with pytest.raises(UsageError):
        check(host, None, None)
    check(host, "ann", "secret")
    assert main(["web-ui", "--server_name", host]) == 2
    assert "--password" in capsys.readouterr().err


def test_name_and_password_go_together_and_loopback_needs_none():
    check("127.0.0.1", None, None)
    check("::1", None, None)
    for pair in (("ann", None), (None, "secret"), ("ann", "")):
        with pytest.raises(UsageError):
            check("127.0.0.1", *pair)
    assert is_loopback("127.0.0.2") and not is_loopback("10.0.0.1") and not is_loopback("localhost.example")


def test_a_public_tunnel_is_refused_with_what_to_do(capsys):
    assert main(["web-ui", "--share", "true"]) == 2
    assert "ssh -L" in capsys.readouterr().err
    assert main(["web-ui", "--share", "false", "--dry_run", "true", "--password", "s3cret", "--username", "a"]) == 0
    assert "s3cret" not in capsys.readouterr().out
