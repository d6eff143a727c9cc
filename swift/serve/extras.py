"""The small routes: models, tokenizing, metrics."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from swift.serve.errors import invalid
from swift.serve.http import json_response, read_body
from swift.serve.messages import conversation, tools
from swift.serve.metrics import CONTENT_TYPE
from swift.serve.params import MESSAGES, TOKENS, Param, read, token_ids
from swift.serve.service import Service

TOKENIZE = (
    Param("model", "string"),
    Param("prompt", "string"),
    Param("messages", "array", shape=MESSAGES),
    Param("tools", "array"),
    Param("chat_template_kwargs", "object"),
)
DETOKENIZE = (Param("model", "string"), Param("tokens", "array", required=True, shape=TOKENS))


async def tokenize(service: Service, request: Request) -> Response:
    body = read(await read_body(request, service.settings.limits), TOKENIZE)
    service.model(body.get("model"))
    if ("prompt" in body) == ("messages" in body):
        raise invalid("send either prompt or messages", "prompt", "missing_parameter")
    if "prompt" in body:
        ids = await service.in_thread(service.prompts.encode, body["prompt"])
    else:
        rows, offered = conversation(body["messages"]), tools(body.get("tools"))
        variables = body.get("chat_template_kwargs", {})
        prompt = await service.in_thread(service.prompts.chat, rows, offered or None, variables)
        if prompt.prompt_ids is None:
            raise invalid("this engine has no chat template here", "messages", "unsupported")
        ids = list(prompt.prompt_ids)
    return json_response(
        {"count": len(ids), "max_model_len": service.engine.capabilities.context_length, "tokens": ids}
    )


async def detokenize(service: Service, request: Request) -> Response:
    body = read(await read_body(request, service.settings.limits), DETOKENIZE)
    service.model(body.get("model"))
    ids = token_ids(body["tokens"], "tokens")
    return json_response({"prompt": await service.in_thread(service.prompts.decode, ids)})


async def metrics(service: Service, request: Request) -> Response:
    return Response(service.meters.page(service.engine.stats(), service.active), media_type=CONTENT_TYPE)


async def models(service: Service, request: Request) -> Response:
    settings = service.settings
    names = [*settings.names, *service.engine.capabilities.adapters]
    entries = [_entry(service, request, name) for name in names]
    if _is_anthropic(request):
        return json_response({"data": entries, "has_more": False, "first_id": names[0], "last_id": names[-1]})
    return json_response({"object": "list", "data": entries})


async def model(service: Service, request: Request) -> Response:
    name, _ = service.model(request.path_params["name"])
    return json_response(_entry(service, request, name))


def _is_anthropic(request: Request) -> bool:
    return "anthropic-version" in request.headers


def _entry(service: Service, request: Request, name: str) -> dict[str, Any]:
    settings = service.settings
    if _is_anthropic(request):
        created = datetime.fromtimestamp(settings.created, timezone.utc).isoformat()
        return {"type": "model", "id": name, "display_name": name, "created_at": created}
    return {
        "id": name,
        "object": "model",
        "created": settings.created,
        "owned_by": settings.owned_by,
        "root": settings.names[0],
        "parent": settings.names[0] if name in service.engine.capabilities.adapters else None,
        "max_model_len": service.engine.capabilities.context_length,
        "tasks": sorted(service.engine.capabilities.tasks),
        "engine": service.engine.name,
        "engine_notes": list(service.engine.capabilities.notes),
        **settings.facts,
    }
