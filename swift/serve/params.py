"""Request bodies: which fields an endpoint knows, what they may hold, and what is said about all others.

Promises: a field that is unknown, of the wrong type, out of range or not supported is a 400 that names it; only
fields that can't change an answer are accepted without effect. The same tables give the OpenAPI page. null means: not
given.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from swift.engines.protocol import Sampling
from swift.serve.errors import invalid

JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


@dataclass(frozen=True)
class Param:
    """`types` as in JSON schema, separated by |. `low`, `high` are inclusive, `above` is exclusive.

    `only`: the values at which an unsupported field means nothing. `harmless`: accepted without effect. `shape`: what
    else the OpenAPI page says of it; the endpoint itself checks that.
    """

    name: str
    types: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    choices: tuple[str, ...] = ()
    required: bool = False
    only: tuple[Any, ...] | None = None
    harmless: bool = False
    shape: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def check(self, value: Any, where: str = "") -> None:
        name = f"{where}{self.name}"
        if self.only is not None:
            if not any(value == allowed and type(value) is type(allowed) for allowed in self.only):
                raise invalid(f"{name} is not supported by this server", name, "unsupported_parameter")
            return
        kinds = self.types.split("|")
        if not any(_is(value, kind) for kind in kinds):
            raise invalid(f"{name} must be {_spoken(kinds)}, not {_kind_of(value)}", name, "invalid_type")
        problem = None
        if self.choices and value not in self.choices:
            problem = f"one of {', '.join(self.choices)}"
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            problem = self._bound_missed(value)
        if problem:
            raise invalid(f"{name} must be {problem}", name, "invalid_value")

    def _bound_missed(self, value: float) -> str | None:
        if isinstance(value, float) and not math.isfinite(value):
            return "a finite number"
        if self.low is not None and value < self.low:
            return f"at least {self.low:g}"
        if self.above is not None and value <= self.above:
            return f"above {self.above:g}"
        if self.high is not None and value > self.high:
            return f"at most {self.high:g}"
        return None

    def schema(self) -> dict[str, Any]:
        """The field in an OpenAPI page; null is allowed everywhere."""
        if self.only is not None:
            return {"description": "not supported; accepted only at these values", "enum": [*self.only, None]}
        schema: dict[str, Any] = {"type": [*self.types.split("|"), "null"]}
        if self.harmless:
            schema["description"] = "accepted, without effect"
        if self.choices:
            schema["enum"] = [*self.choices, None]
        for key, bound in (("minimum", self.low), ("exclusiveMinimum", self.above), ("maximum", self.high)):
            if bound is not None:
                schema[key] = bound
        return {**schema, **self.shape}


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, JSON_TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    return next(_spoken([kind]) for kind in ("boolean", *JSON_TYPES) if _is(value, kind))


def _spoken(kinds: Iterable[str]) -> str:
    return " or ".join(f"{'an' if kind[0] in 'aio' else 'a'} {kind}" for kind in kinds)


def harmless(*names: str) -> tuple[Param, ...]:
    return tuple(Param(name, "string|object|boolean|integer|number|array", harmless=True) for name in names)


def unsupported(**neutral: tuple[Any, ...]) -> tuple[Param, ...]:
    """name=(values that mean nothing, ...)"""
    return tuple(Param(name, "object", only=values) for name, values in neutral.items())


def read(body: Any, params: tuple[Param, ...], where: str = "") -> dict[str, Any]:
    """The fields that are given and mean something, checked. `where` prefixes the names in messages ("tools[0].")."""
    if not isinstance(body, dict):
        raise invalid(f"{where.rstrip('.') or 'the request body'} must be a JSON object", where.rstrip(".") or None)
    known = {param.name: param for param in params}
    values: dict[str, Any] = {}
    for name, value in body.items():
        param = known.get(name)
        if param is None:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise invalid(f"unknown parameter {where}{name}{hint}", f"{where}{name}", "unknown_parameter")
        if value is None:
            continue
        param.check(value, where)
        if not param.harmless and param.only is None:
            values[name] = value
    for param in params:
        if param.required and param.name not in values:
            raise invalid(f"{where}{param.name} is required", f"{where}{param.name}", "missing_parameter")
    return values


def schema(params: tuple[Param, ...]) -> dict[str, Any]:
    """The OpenAPI schema of a body."""
    return {
        "type": "object",
        "properties": {param.name: param.schema() for param in params},
        "required": [param.name for param in params if param.required],
        "additionalProperties": False,
    }


def read_json(raw: bytes) -> Any:
    """A body as JSON. Python's reader takes more than JSON has (NaN, lone surrogates): those are refused too."""
    try:
        value = json.loads(raw, parse_constant=_no_constant)
        if b"\\ud" in raw or b"\\uD" in raw:
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise invalid("the request body holds half of a surrogate pair, which is no character") from None
    except RecursionError:
        raise invalid("the request body is nested too deeply") from None
    except ValueError as error:
        raise invalid(f"the request body is not valid JSON: {error}") from None
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


# What is more than a type, as the OpenAPI page shows it.
def _message(roles: list[str], content: Any, **more: Any) -> dict[str, Any]:
    properties = {"role": {"enum": roles}, "content": content, **more}
    return {"type": "object", "required": ["role", "content", *more], "properties": properties}


TEXT = {"type": "string"}
CALLS = {"type": "array", "minItems": 1, "items": {"type": "object"}}
MESSAGES: dict[str, Any] = {
    "minItems": 1,
    "items": {
        "anyOf": [
            _message(["system", "developer", "user", "assistant"], {**TEXT, "minLength": 1}),
            _message(["system", "developer", "user", "assistant"], {"type": "array", "items": {"type": "object"}}),
            _message(["assistant"], {"type": ["string", "null"]}, tool_calls=CALLS),
            _message(["tool"], TEXT, tool_call_id=TEXT),
        ]
    },
}
TURNS: dict[str, Any] = {
    "minItems": 1,
    "items": _message(["user", "assistant"], {"type": ["string", "array"], "items": {"type": "object"}}),
}
TOKENS: dict[str, Any] = {"items": {"type": "integer", "minimum": 0}}

# What a request may say about the choice of tokens, beside max_tokens and stop, whose names differ between endpoints.
CHOICE = (
    Param("temperature", "number", low=0),
    Param("top_p", "number", above=0, high=1),
    Param("top_k", "integer", low=-1, high=2**31 - 1),
)
SAMPLING = (
    *CHOICE,
    Param("min_p", "number", low=0, high=1),
    Param("repetition_penalty", "number", above=0),
    Param("num_beams", "integer", low=1, high=16),
    Param("seed", "integer", low=-(2**63), high=2**63 - 1),
    Param("stop", "string|array"),
    Param("stop_token_ids", "array"),
    Param("n", "integer", low=1, high=64),
    Param("frequency_penalty", "number", low=-2, high=2),
    Param("presence_penalty", "number", low=-2, high=2),
    Param("logit_bias", "object"),
    Param("min_tokens", "integer", low=0),
)
FORMS = (Param("response_format", "object"), Param("structured_outputs", "object"))


def stop_texts(values: Mapping[str, Any], name: str = "stop") -> tuple[str, ...]:
    stops = values.get(name, ())
    if isinstance(stops, str):
        stops = [stops]
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise invalid(f"{name} must be non-empty strings", name, "invalid_value")
    return tuple(stops)


def token_ids(values: Any, name: str) -> list[int]:
    if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in values):
        raise invalid(f"{name} must be token ids", name, "invalid_value")
    return list(values)


def sampling(
    values: Mapping[str, Any],
    defaults: Sampling,
    *,
    max_new_tokens: int | None,
    stop: tuple[str, ...] = (),
    top_logprobs: int | None = None,
) -> Sampling:
    """The request's settings over the server's. `top_logprobs`: None for no log-probabilities at all."""
    ids = values.get("stop_token_ids", ())
    if any(not isinstance(i, int) or isinstance(i, bool) or i < 0 for i in ids):
        raise invalid("stop_token_ids must be token ids", "stop_token_ids", "invalid_value")
    frequency, presence = values.get("frequency_penalty"), values.get("presence_penalty")
    return Sampling(
        max_new_tokens=defaults.max_new_tokens if max_new_tokens is None else max_new_tokens,
        temperature=values.get("temperature", defaults.temperature),
        top_k=values.get("top_k", defaults.top_k),
        top_p=values.get("top_p", defaults.top_p),
        min_p=values.get("min_p", defaults.min_p),
        repetition_penalty=values.get("repetition_penalty", defaults.repetition_penalty),
        presence_penalty=defaults.presence_penalty if presence is None else presence,
        frequency_penalty=defaults.frequency_penalty if frequency is None else frequency,
        logit_bias=logit_bias(values["logit_bias"]) if "logit_bias" in values else defaults.logit_bias,
        min_new_tokens=values.get("min_tokens", defaults.min_new_tokens),
        num_beams=values.get("num_beams", defaults.num_beams),
        stop=(*defaults.stop, *stop),
        stop_token_ids=(*defaults.stop_token_ids, *ids),
        seed=values.get("seed", defaults.seed),
        logprobs=top_logprobs is not None,
        top_logprobs=top_logprobs or 0,
    )


def logit_bias(values: Mapping[str, Any]) -> dict[int, float]:
    """{"token id": -100..100}, as the API writes it."""
    found = {}
    for key, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and -100 <= value <= 100
        if not (key.isascii() and key.isdigit()) or len(key) > 9 or not number:
            raise invalid("logit_bias maps token ids to numbers from -100 to 100", "logit_bias", "invalid_value")
        found[int(key)] = float(value)
    return found
