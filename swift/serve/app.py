"""The HTTP application: routes, the key, errors in each API's shape, counts and the log line of every request.

Promises: whatever a request does wrong is answered in the shape that its API's clients read; /health and /ping need
no key; prompts and answers are logged only when the server is verbose.
"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swift import __version__
from swift.serve import adapters, anthropic, chat, completions, extras, numbers, responses
from swift.serve.errors import ApiError, as_api_error, internal, invalid
from swift.serve.health import Watch
from swift.serve.http import CLOSED, ClientGone, json_response
from swift.serve.params import Param, schema
from swift.serve.service import Service

log = logging.getLogger("swift.serve")

Handler = Callable[[Service, Request], Awaitable[Response]]
OPEN_PATHS = frozenset(("/health", "/ping"))
KNOWN_STATUS = {404: "there is no such path here", 405: "this path doesn't take that method"}

# (method, path, handler, the fields of its body, what the model must be able to do, one line)
Route = tuple[str, str, Handler, "tuple[Param, ...] | None", frozenset[str], str]
WRITES, VECTORS, SCORES = frozenset({"generate"}), frozenset({"embed"}), frozenset({"score", "embed"})
CLASSES, ANY = frozenset({"classify"}), frozenset[str]()
ROUTES: tuple[Route, ...] = (
    ("POST", "/v1/chat/completions", chat.chat_completions, chat.CHAT, WRITES, "Answer a conversation (OpenAI)."),
    ("POST", "/v1/completions", completions.completions, completions.COMPLETION, WRITES, "Continue a text (OpenAI)."),
    (
        "POST",
        "/v1/responses",
        responses.create,
        responses.RESPONSE,
        WRITES,
        "Answer a conversation (OpenAI Responses).",
    ),
    ("POST", "/v1/messages", anthropic.messages, anthropic.MESSAGES, WRITES, "Answer a conversation (Anthropic)."),
    ("POST", "/v1/messages/count_tokens", anthropic.count_tokens, anthropic.COUNT, WRITES, "Count its tokens."),
    ("POST", "/v1/embeddings", numbers.embeddings, numbers.EMBEDDINGS, VECTORS, "Texts to vectors (OpenAI)."),
    *(
        ("POST", f"{version}/rerank", numbers.rerank, numbers.RERANK, SCORES, "Documents by how well they fit a query.")
        for version in ("", "/v1", "/v2")
    ),
    *(
        ("POST", f"{version}/score", numbers.score, numbers.SCORE, SCORES, "How well texts fit each other (vLLM).")
        for version in ("", "/v1")
    ),
    ("POST", "/classify", numbers.classify, numbers.CLASSIFY, CLASSES, "Texts to classes (vLLM)."),
    ("POST", "/tokenize", extras.tokenize, extras.TOKENIZE, ANY, "Text or a conversation to token ids."),
    ("POST", "/detokenize", extras.detokenize, extras.DETOKENIZE, ANY, "Token ids to text."),
    ("POST", "/v1/load_lora_adapter", adapters.load, adapters.LOAD, ANY, "Load a LoRA adapter from the server's disk."),
    ("POST", "/v1/unload_lora_adapter", adapters.unload, adapters.UNLOAD, ANY, "Take a LoRA adapter away again."),
    ("GET", "/v1/models", extras.models, None, ANY, "The models served here."),
    ("GET", "/v1/models/{name:path}", extras.model, None, ANY, "One of them."),
    ("GET", "/metrics", extras.metrics, None, ANY, "Counts in Prometheus' text format."),
)
# task -> (what a model with it does, where it is asked)
ASKED = {
    "generate": ("writes text", "/v1/chat/completions"),
    "embed": ("embeds texts", "/v1/embeddings"),
    "score": ("ranks documents", "/v1/rerank"),
    "classify": ("classifies texts", "/classify"),
}


def create_app(service: Service) -> FastAPI:
    app = FastAPI(title="swift", version=__version__, docs_url=None, redoc_url=None)
    watch = Watch(service)
    for method, path, handler, params, tasks, line in ROUTES:
        _add(app, service, method, path, _for(tasks, handler), params, line)

    async def health(service: Service, request: Request) -> Response:
        found = await watch.check()
        stats = service.engine.stats()
        body = {"status": "ok" if found.ok else "unavailable", "reason": found.reason}
        counts: dict[str, Any] = {"running": stats.running, "waiting": stats.waiting, "restarts": stats.restarts}
        if stats.last_death is not None:
            counts["last_death"] = stats.last_death
        return json_response({**body, **counts}, 200 if found.ok else 503)

    for path in sorted(OPEN_PATHS):
        _add(app, service, "GET", path, health, None, "Whether the engine is alive and answering.")

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = KNOWN_STATUS.get(error.status_code, str(error.detail))
        return error_response(request.scope, ApiError(error.status_code, message, headers=dict(error.headers or {})))

    app.add_exception_handler(HTTPException, on_http_error)
    app.add_middleware(Guard, service=service)
    return app


def _for(tasks: frozenset[str], handler: Handler) -> Handler:
    """The handler, for models that have one of these tasks; a 400 for others says what to ask of them."""

    async def checked(service: Service, request: Request) -> Response:
        own = service.engine.capabilities.tasks
        # A model that writes text has vectors too, but nobody taught it to rank by them.
        if tasks and not (own & tasks and not (tasks == SCORES and "generate" in own)):
            does = " and ".join(ASKED[task][0] for task in sorted(own))
            ask = " or ".join(ASKED[task][1] for task in sorted(own))
            model = service.settings.names[0]
            raise invalid(f"{model} {does}: ask {ask}; for this, deploy another model", "model", "unsupported_model")
        return await handler(service, request)

    return checked if tasks else handler


def _add(
    app: FastAPI,
    service: Service,
    method: str,
    path: str,
    handler: Handler,
    params: tuple[Param, ...] | None,
    line: str,
) -> None:
    async def endpoint(request: Request) -> Response:
        try:
            return await handler(service, request)
        except ClientGone:
            return CLOSED
        except Exception as error:
            known = as_api_error(error)
            if known is None:
                log.exception("%s %s failed", method, path)
            return error_response(request.scope, known or internal())

    extra: dict[str, Any] = {}
    if params is not None:
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema(params)}}}
    if "{" in path:
        held = path.partition("{")[2].partition(":")[0].rstrip("}")
        extra["parameters"] = [{"name": held, "in": "path", "required": True, "schema": {"type": "string"}}]
    name = f"{method} {path}"
    app.add_api_route(
        path,
        endpoint,
        methods=[method],
        summary=line,
        name=name,
        operation_id=name,
        openapi_extra=extra,
        response_model=None,
    )


def error_response(scope: Scope, error: ApiError) -> Response:
    body = error.anthropic() if scope["path"].startswith("/v1/messages") else error.openai()
    return json_response(body, error.status, error.headers)


class Guard:
    """Asks for the key, counts, and writes one log line for every request."""

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        status = 0

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self._allowed(scope):
                await self._app(scope, receive, counting)
            else:
                wrong = ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
                await error_response(scope, wrong)(scope, receive, counting)
        finally:
            endpoint = scope["route"].path if "route" in scope else "other"
            self._service.meters.requests.add(endpoint=endpoint, status=str(status))
            if scope["path"] not in OPEN_PATHS:
                seconds = time.monotonic() - began
                log.info("%s %s %s %.3f s", scope["method"], scope["path"], status or "aborted", seconds)

    def _allowed(self, scope: Scope) -> bool:
        key = self._service.settings.api_key
        if key is None or scope["path"] in OPEN_PATHS:
            return True
        headers = {name: value for name, value in scope["headers"] if name in (b"authorization", b"x-api-key")}
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        offered = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        return hmac.compare_digest(offered, key.encode())
