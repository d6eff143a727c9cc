"""Loading and unloading LoRA adapters while the server runs, by the paths and bodies that vLLM has for it.

The path is one on the server's own disk. Whoever may send requests may load adapters: --api_key says who that is.
"""

from __future__ import annotations

import logging
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from swift.engines.protocol import RequestError
from swift.errors import SwiftError
from swift.serve.errors import ApiError, invalid
from swift.serve.http import read_body
from swift.serve.params import Param, harmless, read
from swift.serve.service import Service

log = logging.getLogger("swift.serve")

LOAD = (
    Param("lora_name", "string", required=True),
    Param("lora_path", "string", required=True),
    Param("load_inplace", "boolean"),
    *harmless("lora_int_id", "base_model_name"),
)
UNLOAD = (Param("lora_name", "string", required=True), *harmless("lora_int_id"))


async def load(service: Service, request: Request) -> Response:
    body = read(await read_body(request, service.settings.limits), LOAD)
    name, path = body["lora_name"], Path(body["lora_path"])
    _check(service)
    settings = service.settings
    if not name or name in (*settings.names, *settings.also):
        raise invalid(f"{name!r} is the name of the base model" if name else "lora_name is empty", "lora_name")
    if not path.is_dir():
        raise ApiError(404, "there is no such directory", param="lora_path", code="not_found")
    known = name in service.engine.capabilities.adapters
    if known and not body.get("load_inplace"):
        raise invalid(f"an adapter named {name!r} is loaded already", "lora_name", "already_loaded")
    try:
        if known:
            await service.in_thread(service.engine.unload_adapter, name)
        await service.in_thread(service.engine.load_adapter, name, path)
    except SwiftError as error:
        raise invalid(error.what, "lora_path", "bad_adapter") from error
    log.info("adapter %s loaded from %s", name, path)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


async def unload(service: Service, request: Request) -> Response:
    body = read(await read_body(request, service.settings.limits), UNLOAD)
    name = body["lora_name"]
    _check(service)
    try:
        await service.in_thread(service.engine.unload_adapter, name)
    except RequestError as error:
        raise ApiError(404, error.what, param="lora_name", code="not_found") from error
    log.info("adapter %s unloaded", name)
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")


def _check(service: Service) -> None:
    if not service.engine.capabilities.loads_adapters:
        raise invalid("this server's engine loads no adapters while it runs", code="unsupported")
