"""The chat's server side: models served by `swift deploy` children, answers that a page fetches as they grow.

Promises: a child ends with this process, however it ends; its server listens on this machine alone and asks for a key
that only we know (in a file of ours, not on its command line); at most as many children as a page shows models. An
answer that nobody fetches any more is given up. Knows nothing of pages; thinking stays in the text as <think> marks.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from swift.children import Child
from swift.engines.http import HttpEngine
from swift.engines.protocol import EngineUnavailable, GenerationRequest, Sampling
from swift.errors import ResourceError, UsageError
from swift.i18n.said import error_said
from swift.runs import JOB_VARIABLE, announced
from swift.web import forms, supervise
from swift.web.files import read_json, tail

ADDRESS = re.compile(r"https?://", re.IGNORECASE)
OWN = ("host", "port", "api_key", "ssl_keyfile", "ssl_certfile", "served_model_name", "log_level", "verbose")
FORGOTTEN_SECONDS = 60.0
KEPT_ANSWERS = 64
FOLDER = "chat-"
SETTINGS = {
    "temperature": (float, 0.0, 5.0),
    "top_p": (float, 0.0, 1.0),
    "top_k": (int, 0, 1_000_000),
    "min_p": (float, 0.0, 1.0),
    "repetition_penalty": (float, 0.01, 10.0),
    "max_new_tokens": (int, 1, 1_000_000),
    "seed": (int, 0, 2**32 - 1),
}


@dataclass(frozen=True)
class Spec:
    """What to talk to: a name, path or address as it was typed, and further options of `swift deploy`."""

    model: str
    options: str = ""

    def argv(self) -> list[str]:
        """`swift deploy`'s words. UsageError for options that can't be, or that the chat sets itself."""
        path = Path(self.model).expanduser()
        adapter = (path / "adapter_config.json").is_file() or (path.is_dir() and not (path / "config.json").is_file())
        words = forms.split(self.options, "options")
        fields = forms.from_words("deploy", words)
        for name in OWN:
            if name in fields:
                raise UsageError("the chat sets this itself", where=f"--{name}", fix="use the Deploy tab")
        name = "adapters" if adapter and path.exists() else "model"
        return forms.argv("deploy", {**fields, name: forms.join([self.model]) if name == "adapters" else self.model})


class Server:
    """One served model: a child of ours, or an address."""

    def __init__(self, argv: Sequence[str] | None, folder: Path, address: str = "", key: str | None = None):
        self.used = time.monotonic()
        self._address, self._name, self._engine = address, "", None
        self._lock = threading.Lock()
        self._child: Child | None = None
        self._folder, self._key = folder, key
        if argv is not None:
            self._key = secrets.token_urlsafe(24)
            folder.mkdir(mode=0o700, parents=True)
            config = folder / "server.json"
            config.touch(mode=0o600)
            config.write_text(json.dumps({"host": "127.0.0.1", "port": 0, "api_key": self._key}))
            words = [sys.executable, "-m", "swift", argv[0], "--config", str(config), *argv[1:]]
            env = {JOB_VARIABLE: str(folder.resolve())}
            self._child = Child(words, folder / "output.log", env, grace=5.0)

    def state(self) -> tuple[str, str]:
        """(loading, ready, failed; the end of what the server has said)."""
        self.used = time.monotonic()
        if self._child is None:
            return "ready", ""
        said = tail(self._folder / "output.log", lines=12)[0]
        if self._child.poll() is not None:
            return "failed", said
        return ("ready" if self._find() else "loading"), said

    def _find(self) -> bool:
        """Whether the child has said where it listens."""
        if not self._address and self._child is not None:
            self._address = announced(self._folder).get("address", "")
        return bool(self._address)

    def engine(self) -> HttpEngine:
        """The way to it. SwiftError while it loads or after it failed."""
        with self._lock:
            if self._engine is None:
                if not self._find():
                    raise EngineUnavailable("the model is still loading")
                self._name = served_name(self._address, self._key)
                self._engine = HttpEngine(
                    lambda: self._address, self._name, api_key=self._key, max_concurrency=4, patience=2.0
                )
            return self._engine

    def close(self) -> None:
        with self._lock:
            if self._engine is not None:
                self._engine.close()
                self._engine = None
        if self._child is not None:
            self._child.stop()
            shutil.rmtree(self._folder, ignore_errors=True)


def served_name(address: str, key: str | None) -> str:
    """The first model that an endpoint serves."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(f"{address}/v1/models", headers=headers, timeout=10.0, trust_env=False)
        if answer.status_code in (401, 403):
            raise UsageError(
                "the server asks for a key", where=address, fix="--engine_api_key KEY, in the model's options"
            )
        answer.raise_for_status()
        return str(answer.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError) as error:
        raise ResourceError(
            f"no model is served there: {str(error) or type(error).__name__}", where=address, fix="is it running?"
        ) from None


@dataclass
class Answer:
    """One answer on its way; `text` grows."""

    text: str = ""
    done: bool = False
    error: Exception | None = None
    reason: str = ""
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    ended: float = 0.0
    fetched: float = field(default_factory=time.monotonic)
    stream: Any = None


class Chat:
    """The servers and the answers of one page server. `fixed`: the one model that `swift app` talks to."""

    def __init__(self, directory: Path, fixed: Sequence[str] | None = None):
        self._directory = directory
        self._fixed = list(fixed) if fixed is not None else None
        self._servers: dict[Spec, Server] = {}
        self._answers: dict[str, Answer] = {}
        self._lock = threading.RLock()
        self._number = 0
        _remove_leftovers(directory)

    def load(self, spec: Spec, keep: Sequence[Spec] = ()) -> tuple[str, str]:
        """Serve `spec` unless it is served already; models that aren't in `keep` are put away. Its state."""
        with self._lock:
            server = self._servers.get(spec)
            if server is not None and server.state()[0] != "failed":
                return server.state()
            for other in [s for s in self._servers if s == spec or s not in keep]:
                self._servers.pop(other).close()
            self._servers[spec] = self._serve(spec)
            return self._servers[spec].state()

    def _serve(self, spec: Spec) -> Server:
        self._number += 1
        folder = self._directory / f"{FOLDER}{os.getpid()}-{supervise.birth(os.getpid()) or 0}-{self._number}"
        if self._fixed is None and ADDRESS.match(spec.model):
            key = forms.from_words("deploy", forms.split(spec.options, "options")).get("engine_api_key")
            return Server(None, folder, spec.model.rstrip("/").removesuffix("/v1"), key)
        return Server(self._fixed if self._fixed is not None else spec.argv(), folder)

    def state(self, spec: Spec) -> tuple[str, str]:
        with self._lock:
            server = self._servers.get(spec)
        return server.state() if server is not None else ("none", "")

    def unload(self, spec: Spec) -> None:
        with self._lock:
            server = self._servers.pop(spec, None)
        if server is not None:
            server.close()

    def send(self, spec: Spec, messages: Sequence[Mapping[str, Any]], sampling: Sampling) -> str:
        """Begin an answer; its id."""
        with self._lock:
            server = self._servers.get(spec)
        if server is None:
            raise UsageError("the model is not loaded")
        engine = server.engine()
        answer, id = Answer(), secrets.token_hex(8)
        answer.stream = engine.submit(GenerationRequest(messages=list(messages), sampling=sampling))
        threading.Thread(target=_read, args=(answer,), name="swift-chat", daemon=True).start()
        with self._lock:
            self._answers[id] = answer
            for old in list(self._answers)[:-KEPT_ANSWERS]:
                self._answers.pop(old).stream.cancel()
        return id

    def fetch(self, id: str) -> Answer:
        with self._lock:
            answer = self._answers.get(id)
        if answer is None:
            raise UsageError("this answer is gone: the server was started anew")
        answer.fetched = time.monotonic()
        return answer

    def stop(self, id: str) -> None:
        self.fetch(id).stream.cancel()

    def close(self) -> None:
        with self._lock:
            for spec in list(self._servers):
                self._servers.pop(spec).close()


def _read(answer: Answer) -> None:
    """Take the answer's pieces until it ends, or until nobody has fetched it for a while."""
    try:
        for delta in answer.stream:
            answer.text += delta.text
            answer.tokens = delta.usage.completion_tokens if delta.usage else answer.tokens
            answer.reason = delta.finish_reason or answer.reason
            if time.monotonic() - answer.fetched > FORGOTTEN_SECONDS:
                answer.stream.cancel()
    except Exception as error:  # whatever the server sent: the page must see the end
        answer.error = error
    answer.ended = time.monotonic()
    answer.done = True


def _remove_leftovers(directory: Path) -> None:
    """Directories of page servers that were killed."""
    for folder in directory.glob(f"{FOLDER}*-*-*"):
        pid, born = folder.name.removeprefix(FOLDER).split("-")[:2]
        if not pid.isdigit() or (supervise.birth(int(pid)) or "0") != born:
            shutil.rmtree(folder, ignore_errors=True)


# ---- what pages send ----


def spec_of(value: Any) -> Spec:
    if not isinstance(value, Mapping):
        raise UsageError("no model is chosen")
    model, options = value.get("model"), value.get("options", "")
    if not isinstance(model, str) or not model.strip() or not isinstance(options, str):
        raise UsageError("no model is chosen")
    return Spec(model.strip(), options.strip())


def sampling_of(value: Any) -> Sampling:
    """Settings as they were typed; what is empty is the model's own. UsageError beside the setting's name."""
    typed = value if isinstance(value, Mapping) else {}
    chosen: dict[str, Any] = {}
    for name, (kind, low, high) in SETTINGS.items():
        raw = str(typed.get(name, "")).strip()
        if not raw:
            continue
        try:
            number = kind(raw)
        except ValueError:
            raise UsageError(f"{raw!r} is not a number", where=name) from None
        if not low <= number <= high:
            raise UsageError(f"{raw} is not between {low:g} and {high:g}", where=name)
        chosen[name] = number
    return replace(Sampling(), **chosen)


def messages_of(value: Any, system: Any) -> list[dict[str, Any]]:
    """The conversation as the API wants it. UsageError for anything else."""
    if not isinstance(value, list) or not value:
        raise UsageError("the conversation is empty")
    messages: list[dict[str, Any]] = []
    if isinstance(system, str) and system.strip():
        messages.append({"role": "system", "content": system})
    for message in value:
        role = message.get("role") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        if role not in ("user", "assistant") or not isinstance(content, str):
            raise UsageError("the page sent no proper conversation", fix="reload the page")
        images = [i for i in message.get("images") or () if isinstance(i, str) and i.startswith("data:image/")]
        if images:
            parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": image}} for image in images]
            messages.append({"role": role, "content": [*parts, {"type": "text", "text": content}]})
        else:
            messages.append({"role": role, "content": content})
    return messages


def base_of(model: str) -> str:
    """The base model of an adapter, by its run's args.json or its own file; "" when there is none."""
    path = Path(model).expanduser()
    for folder in (path, path.parent):
        record = read_json(folder / "args.json")
        found = record.get("model_path") or (record.get("options") or {}).get("model")
        if isinstance(found, str) and found:
            return found
    found = read_json(path / "adapter_config.json").get("base_model_name_or_path")
    return found if isinstance(found, str) else ""


class ChatApi:
    """The chat's part of a page's table."""

    def __init__(self, chat: Chat):
        self.chat = chat
        self.table = {
            "chat_load": self.load,
            "chat_state": lambda a: self._state(self.chat.state(spec_of(a.get("spec")))),
            "chat_unload": lambda a: self.chat.unload(spec_of(a.get("spec"))) or {},
            "chat_send": self.send,
            "chat_fetch": self.fetch,
            "chat_stop": lambda a: self.chat.stop(str(a.get("id"))) or {},
            "chat_base": lambda a: {"model": base_of(spec_of(a.get("spec")).model)},
        }

    def load(self, args: Mapping[str, Any]) -> dict[str, Any]:
        keep = args.get("keep")
        kept = [spec_of(k) for k in keep] if isinstance(keep, list) else []
        return self._state(self.chat.load(spec_of(args.get("spec")), kept))

    @staticmethod
    def _state(found: tuple[str, str]) -> dict[str, Any]:
        return {"state": found[0], "said": found[1]}

    def send(self, args: Mapping[str, Any]) -> dict[str, Any]:
        messages = messages_of(args.get("messages"), args.get("system"))
        return {"id": self.chat.send(spec_of(args.get("spec")), messages, sampling_of(args.get("sampling")))}

    def fetch(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """What has come since the first `have` characters."""
        answer = self.chat.fetch(str(args.get("id")))
        have = args.get("have")
        done, text = answer.done, answer.text  # in this order: what is done has all its text
        return {
            "more": text[have if isinstance(have, int) and have >= 0 else 0 :],
            "length": len(text),
            "done": done,
            "failure": error_said(answer.error) if answer.error else "",
            "reason": answer.reason,
            "tokens": answer.tokens,
            "seconds": (answer.ended or time.monotonic()) - answer.started,
        }
