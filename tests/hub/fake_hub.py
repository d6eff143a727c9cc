"""A small HTTP server on the loopback that speaks as much of the two hubs' interfaces as downloads and uploads need.

Its faults are those of real networks: a cut connection, a wrong size, a wrong content, error statuses.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
import urllib.parse
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """`repos` maps (kind, id) to {path: content}. The rest are faults, and what was asked (method, path, headers)."""

    repos: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut_after: int | None = None  # bytes of a file after which the connection is cut ...
    cuts: int = 0  # ... this many times
    busy: int = 0  # this many answers are 503
    extra: bytes = b""  # sent beyond what the list states
    corrupt: bool = False  # flip the first byte of every file
    ignore_range: bool = False
    stall: float = 0.0  # seconds before the first answer
    redirect_to: str | None = None  # files come from this other address
    private: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)  # uploaded, by sha256
    commits: list[tuple[str, str]] = field(default_factory=list)  # (id, message)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def paths(self) -> list[str]:
        return [path for _, path, _ in self.requests]


@contextmanager
def serve(hub: Hub):
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def do_POST(self):
        self._upload()

    def do_PUT(self):
        self._upload()

    def _upload(self) -> None:
        """Writing needs the token `good`. Blobs are checked against their sha256."""
        hub = self.hub
        sent = self._body()
        hub.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if hub.busy > 0:
            hub.busy -= 1
            return self._json(503, {"Message": "busy"})
        path = urllib.parse.unquote(self.path).strip("/")
        if path.startswith("blob/"):
            oid = path.removeprefix("blob/")
            if hashlib.sha256(sent).hexdigest() != oid:
                return self._json(400, {"Code": 400, "Message": "wrong content"})
            hub.blobs[oid] = sent
            return self._json(200, {"Code": 200, "Success": True})
        if self.headers.get("Authorization") != "Bearer good":
            return self._json(401, {"error": "denied", "Code": 401, "Message": "denied"})
        if path.startswith("api/v1/"):
            return self._modelscope_upload(path.removeprefix("api/v1/"), json.loads(sent))
        return self._huggingface_upload(path, sent)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _batch(self, value: dict) -> list[dict]:
        """What is still to be sent; a blob that is here has no upload action."""
        found = []
        for entry in value["objects"]:
            missing = entry["oid"] not in self.hub.blobs
            actions = {"actions": {"upload": {"href": f"{self.hub.url}/blob/{entry['oid']}"}}} if missing else {}
            found.append({**entry, **actions})
        return found

    def _modelscope_upload(self, path: str, value: dict) -> None:
        hub = self.hub
        if path == "models":
            hub_id = f"{value['Path']}/{value['Name']}"
            hub.repos[("models", hub_id)] = {}
            if value["Visibility"] == 1:
                hub.private.add(hub_id)
            return self._json(200, {"Code": 200, "Success": True, "Data": {}})
        _, kind, owner, name, *what = path.split("/")
        files = hub.repos[(kind, f"{owner}/{name}")]
        if what == ["info", "lfs", "objects", "batch"]:
            objects = [entry for entry in self._batch(value) if "actions" in entry]
            return self._json(200, {"Code": 200, "Success": True, "Data": {"objects": objects}})
        for action in value["actions"]:
            inline = base64.b64decode(action["content"])
            content = inline if action["type"] == "normal" else hub.blobs[action["sha256"]]
            assert len(content) == action["size"]
            files[action["path"]] = content
        hub.commits.append((f"{owner}/{name}", value["commit_message"]))
        return self._json(200, {"Code": 200, "Success": True, "Data": {}})

    def _huggingface_upload(self, path: str, sent: bytes) -> None:
        hub = self.hub
        if path == "api/repos/create":
            value = json.loads(sent)
            hub_id = f"{value.get('organization') or 'me'}/{value['name']}"
            if ("models", hub_id) in hub.repos:
                return self._json(409, {"error": "exists", "url": f"{hub.url}/{hub_id}"})
            hub.repos[("models", hub_id)] = {}
            if value.get("private") or value.get("visibility") == "private":
                hub.private.add(hub_id)
            return self._json(200, {"url": f"{hub.url}/{hub_id}", "id": hub_id, "name": hub_id})
        if path.endswith("/info/lfs/objects/batch"):
            return self._json(200, {"transfer": "basic", "objects": self._batch(json.loads(sent))})
        _, _, owner, name, what, *_ = path.split("/")
        if what == "preupload":
            big = [(f["path"], f["size"] > 20000) for f in json.loads(sent)["files"]]
            files = [{"path": p, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False} for p, lfs in big]
            return self._json(200, {"files": files})
        files = hub.repos[("models", f"{owner}/{name}")]
        for line in map(json.loads, sent.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                hub.commits.append((f"{owner}/{name}", value["summary"]))
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.blobs[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        return self._json(200, {"commitUrl": f"{hub.url}/{owner}/{name}/commit/{COMMIT}", "commitOid": COMMIT})

    def _answer(self, body: bool) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        self.hub.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if self.hub.stall:
            seconds, self.hub.stall = self.hub.stall, 0.0
            time.sleep(seconds)
        if self.hub.busy > 0:
            self.hub.busy -= 1
            return self._json(503, {"Message": "busy"})
        parts = urllib.parse.unquote(url.path).strip("/").split("/")
        if parts[:2] == ["api", "v1"]:
            return self._modelscope(parts[2], "/".join(parts[3:5]), "/".join(parts[5:]), query)
        if parts[0] == "cdn":
            return self._file(self.hub.repos[(parts[1], "/".join(parts[2:4]))]["/".join(parts[4:])], body)
        return self._huggingface(parts, body)

    def _modelscope(self, kind: str, hub_id: str, what: str, query: dict[str, str]) -> None:
        files = self.hub.repos.get((kind, hub_id))
        if files is None:
            return self._json(404, {"Code": 10010205001, "Message": "not found", "Success": False})
        if hub_id in self.hub.gated and self.headers.get("Authorization") != "Bearer good":
            return self._json(403, {"Code": 403, "Message": "denied", "Success": False})
        if what == "":
            return self._json(200, {"Code": 200, "Success": True, "Data": {"Name": hub_id}})
        if what in ("repo/files", "repo/tree"):
            entries = [
                {"Path": p, "Type": "blob", "Size": len(c), "Sha256": hashlib.sha256(c).hexdigest()}
                for p, c in files.items()
            ]
            entries.insert(0, {"Path": "sub", "Type": "tree", "Size": 0})
            if what == "repo/tree":
                number, size = int(query["PageNumber"]), int(query["PageSize"])
                entries = entries[(number - 1) * size : number * size]
            return self._json(200, {"Code": 200, "Success": True, "Data": {"Files": entries}})
        path = query["FilePath"]
        if path not in files:
            return self._json(404, {"Code": 404, "Message": "no such file"})
        if self.hub.redirect_to:
            self.send_response(302)
            self.send_header("Location", f"{self.hub.redirect_to}/cdn/{kind}/{hub_id}/{path}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        return self._file(files[path], True)

    def _huggingface(self, parts: list[str], body: bool) -> None:
        if parts[0] == "api":
            kind, hub_id, what = parts[1], "/".join(parts[2:4]), parts[4:]
        else:
            kind, parts = ("datasets", parts[1:]) if parts[0] == "datasets" else ("models", parts)
            hub_id, what = "/".join(parts[:2]), parts[2:]
        files = self.hub.repos.get((kind, hub_id))
        if files is None:
            return self._json(404, {"error": "not found"}, {"X-Error-Code": "RepoNotFound"})
        if hub_id in self.hub.gated and self.headers.get("Authorization") != "Bearer good":
            return self._json(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})
        if what[:1] == ["tree"]:
            entries = [{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in files.items()]
            return self._json(200, [{"type": "directory", "path": "sub", "oid": "0" * 40}, *entries])
        if what[:1] == ["revision"] or not what:
            siblings = [{"rfilename": p, "size": len(c), "blobId": _oid(c)} for p, c in files.items()]
            return self._json(200, {"id": hub_id, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings})
        path = "/".join(what[2:])
        if what[:1] != ["resolve"] or path not in files:
            return self._json(404, {"error": "no such file"}, {"X-Error-Code": "EntryNotFound"})
        extra = {"X-Repo-Commit": COMMIT, "ETag": f'"{_oid(files[path])}"'}
        return self._file(files[path], body, extra)

    def _json(self, status: int, value, extra: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, text in (extra or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _file(self, content: bytes, body: bool, extra: dict[str, str] | None = None) -> None:
        hub = self.hub
        content = (bytes([content[0] ^ 255]) + content[1:] if hub.corrupt else content) + hub.extra
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and not hub.ignore_range else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        for name, text in (extra or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if not body:
            return
        rest = content[start:]
        if hub.cuts > 0 and hub.cut_after is not None and len(rest) > hub.cut_after:
            hub.cuts -= 1
            self.wfile.write(rest[: hub.cut_after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(rest)


def _oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
