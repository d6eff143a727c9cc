"""POST /v1/embeddings, /rerank, /score and /classify: texts in, vectors, scores or classes out.

Embeddings have OpenAI's shapes; the others Jina's and vLLM's. Whether a vector comes from a model that was trained for
it or from a chat model's last token is the deployer's business; scores only come from models made for them.
"""

from __future__ import annotations

import asyncio
import base64
import math
import struct
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from swift.engines.protocol import Text, Usage
from swift.serve.errors import ApiError, invalid, timed_out
from swift.serve.http import json_response, read_body, while_connected
from swift.serve.params import Param, harmless, read, token_ids
from swift.serve.service import Service

MOST_TEXTS = 2048  # as in the OpenAI API
INPUT = {"minItems": 1, "items": {"type": ["string", "integer", "array"]}, "minLength": 1}
CUT = Param("truncate_prompt_tokens", "integer", low=-1)
EMBEDDINGS = (
    Param("model", "string"),
    Param("input", "string|array", required=True, shape=INPUT),
    Param("encoding_format", "string", choices=("float", "base64")),
    Param("dimensions", "integer", low=1),
    CUT,
    *harmless("user", "input_type"),
)
TEXTS: dict[str, Any] = {"minItems": 1, "items": {"type": ["string", "object"]}}
RERANK = (
    Param("model", "string"),
    Param("query", "string", required=True),
    Param("documents", "array", required=True, shape=TEXTS),
    Param("top_n", "integer", low=0),
    Param("return_documents", "boolean"),
    CUT,
    *harmless("user"),
)
SCORE = (
    Param("model", "string"),
    Param("text_1", "string|array"),
    Param("text_2", "string|array"),
    Param("queries", "string|array"),
    Param("documents", "string|array"),
    CUT,
    *harmless("user"),
)
CLASSIFY = (
    Param("model", "string"),
    Param("input", "string|array", required=True, shape=INPUT),
    CUT,
    *harmless("user"),
)


async def embeddings(service: Service, request: Request) -> Response:
    body = read(await read_body(request, service.settings.limits), EMBEDDINGS)
    model, adapter = service.model(body.get("model"))
    texts = await while_connected(request, _inputs(service, body))
    vectors = await _numbers(service, request, texts, adapter)
    wanted = body.get("dimensions")
    if wanted is not None:
        if wanted > len(vectors[0]):
            raise invalid(f"dimensions may be at most {len(vectors[0])} here", "dimensions", "invalid_value")
        vectors = [_shorter(vector, wanted) for vector in vectors]
    form: Callable[[Sequence[float]], Any] = _base64 if body.get("encoding_format") == "base64" else list
    data = [{"object": "embedding", "index": i, "embedding": form(vector)} for i, vector in enumerate(vectors)]
    return json_response({"object": "list", "data": data, "model": model, "usage": _usage(texts)})


async def rerank(service: Service, request: Request) -> Response:
    body = read(await read_body(request, service.settings.limits), RERANK)
    model, adapter = service.model(body.get("model"))
    documents = _documents(body["documents"], "documents")
    scores, usage = await _scores(service, request, body, [body["query"]] * len(documents), documents, adapter)
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.get("top_n") or None]
    shown = body.get("return_documents", True)
    results = [
        {"index": i, "relevance_score": scores[i], **({"document": {"text": documents[i]}} if shown else {})}
        for i in order
    ]
    return json_response({"id": f"rerank-{uuid.uuid4().hex}", "model": model, "usage": usage, "results": results})


async def score(service: Service, request: Request) -> Response:
    """Each text of the second list for that of the first at its place, or all of them for its only one."""
    body = read(await read_body(request, service.settings.limits), SCORE)
    model, adapter = service.model(body.get("model"))
    firsts, seconds = _side(body, "text_1", "queries"), _side(body, "text_2", "documents")
    if len(firsts) == 1:
        firsts = firsts * len(seconds)
    if len(firsts) != len(seconds):
        message = f"{len(firsts)} first and {len(seconds)} second texts: send one first text, or as many as second ones"
        raise invalid(message, "text_2", "invalid_value")
    scores, usage = await _scores(service, request, body, firsts, seconds, adapter)
    data = [{"index": i, "object": "score", "score": value} for i, value in enumerate(scores)]
    return json_response({**_head("score", model), "data": data, "usage": usage})


async def classify(service: Service, request: Request) -> Response:
    body = read(await read_body(request, service.settings.limits), CLASSIFY)
    model, adapter = service.model(body.get("model"))
    texts = await while_connected(request, _inputs(service, body))
    found = await _numbers(service, request, texts, adapter)
    labels = service.reading.labels
    data = []
    for i, values in enumerate(found):
        best = max(range(len(values)), key=values.__getitem__)
        label = None if service.reading.plain_values else labels[best] if labels else f"LABEL_{best}"
        data.append({"index": i, "label": label, "probs": values, "num_classes": len(values)})
    return json_response({**_head("classify", model), "data": data, "usage": _usage(texts)})


# ---- texts ----


async def _inputs(service: Service, body: Mapping[str, Any]) -> list[Text]:
    """The texts of `input`: a string, token ids, or a list of either."""
    given = body["input"]
    if isinstance(given, str) or (given and all(isinstance(part, int) for part in given)):
        given = [given]
    _check_count(given, "input")
    most = _cut(service, body)
    return await service.in_thread(lambda: [_input(service, part, i, most) for i, part in enumerate(given)])


def _input(service: Service, part: Any, place: int, most: int | None) -> Text:
    where = f"input[{place}]"
    if isinstance(part, list):
        ids = token_ids(part, where)
        service.prompts.check(ids)
        return _fitting(service, Text(tuple(ids if most is None else ids[:most])), where)
    if not isinstance(part, str):
        raise invalid("input must be a string, token ids, or a list of these", where, "invalid_type")
    if not part:
        raise invalid(f"{where} is empty", where, "invalid_value")
    return _fitting(service, service.reading.texts.one(part, most), where)


def _check_count(texts: Sequence[Any], name: str) -> None:
    if not texts:
        raise invalid(f"{name} is empty", name, "invalid_value")
    if len(texts) > MOST_TEXTS:
        raise invalid(f"at most {MOST_TEXTS} texts in one request", name, "invalid_value")


def _cut(service: Service, body: Mapping[str, Any]) -> int | None:
    """truncate_prompt_tokens: a number of tokens, or -1 for as many as the model takes."""
    most, limit = body.get("truncate_prompt_tokens"), service.reading.texts.limit
    if most == 0:
        raise invalid("truncate_prompt_tokens must be -1 or at least 1", "truncate_prompt_tokens", "invalid_value")
    if most == -1 or (most is not None and limit is not None):
        return limit if most == -1 else min(most, limit or most)
    return most


def _fitting(service: Service, text: Text, where: str) -> Text:
    limit = service.reading.texts.limit
    if not text.ids:
        raise invalid(f"{where} has no tokens", where, "invalid_value")
    if limit is not None and len(text.ids) > limit:
        message = f"{where} has {len(text.ids)} tokens, the model takes {limit}; truncate_prompt_tokens: -1 cuts it"
        raise ApiError(400, message, param=where, code="context_length_exceeded")
    return text


def _side(body: Mapping[str, Any], name: str, other: str) -> list[str]:
    if (name in body) == (other in body):
        raise invalid(f"send either {name} or {other}", name, "missing_parameter")
    key = name if name in body else other
    return _documents([body[key]] if isinstance(body[key], str) else body[key], key)


def _documents(given: Sequence[Any], name: str) -> list[str]:
    """Texts, or objects with a `text`."""
    _check_count(given, name)
    found = [part.get("text") if isinstance(part, dict) else part for part in given]
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise invalid(f"{name}[{i}] must be a string, or an object with a text", f"{name}[{i}]", "invalid_type")
    return found


# ---- numbers ----


async def _numbers(service: Service, request: Request, texts: Sequence[Text], adapter: str | None) -> list[list[float]]:
    """One place in the queue, however many texts; they share batches with those of others."""
    service.admit(1)
    began = time.monotonic()
    try:
        found = await while_connected(request, _computed(service, texts, adapter))
        service.meters.answered(time.monotonic() - began, None, Usage(sum(len(text.ids) for text in texts), 0))
        return found
    finally:
        service.leave(1)


async def _computed(service: Service, texts: Sequence[Text], adapter: str | None) -> list[list[float]]:
    futures = await service.in_thread(service.engine.numbers, texts, adapter)
    limit = service.settings.limits.request_timeout
    try:
        return await asyncio.wait_for(asyncio.gather(*map(asyncio.wrap_future, futures)), limit)
    except asyncio.TimeoutError:
        raise timed_out(limit) from None
    finally:
        for future in futures:
            future.cancel()


async def _scores(
    service: Service,
    request: Request,
    body: Mapping[str, Any],
    firsts: Sequence[str],
    seconds: Sequence[str],
    adapter: str | None,
) -> tuple[list[float], dict[str, int]]:
    """How well each second text fits its first: by a ranker, or by the angle between an embedding model's vectors."""
    most, texts = _cut(service, body), service.reading.texts
    if "score" in service.engine.capabilities.tasks:
        pairs = await service.in_thread(
            lambda: [
                _fitting(service, texts.pair(one, other, most), f"the pair {i}")
                for i, (one, other) in enumerate(zip(firsts, seconds, strict=True))
            ]
        )
        return [value[0] for value in await _numbers(service, request, pairs, adapter)], _usage(pairs)
    known = {text: i for i, text in enumerate(dict.fromkeys((*firsts, *seconds)))}
    one_each = await service.in_thread(
        lambda: [_fitting(service, texts.one(text, most), f"the text {i}") for i, text in enumerate(known)]
    )
    vectors = await _numbers(service, request, one_each, adapter)
    scores = [_cosine(vectors[known[one]], vectors[known[other]]) for one, other in zip(firsts, seconds, strict=True)]
    return scores, _usage(one_each)


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other) or 1.0)


def _shorter(vector: Sequence[float], size: int) -> list[float]:
    """The first numbers of a vector (matryoshka), again as long as it was."""
    part = list(vector[:size])
    length = math.hypot(*part)
    scale = math.hypot(*vector) / length if length else 1.0
    return [value * scale for value in part]


def _base64(vector: Sequence[float]) -> str:
    """float32, the first byte the least significant, as OpenAI's clients read it."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _usage(texts: Sequence[Text]) -> dict[str, int]:
    tokens = sum(len(text.ids) for text in texts)
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def _head(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"{kind}-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": model}
