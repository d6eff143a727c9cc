"""What goes wrong with a request, as the status and the error object that the OpenAI and Anthropic clients read.

Promises: every failure has one status, one sentence, and where it is known the parameter at fault; nothing of the
server's inside (paths, tracebacks) is shown.
"""

from __future__ import annotations

import math
from typing import Any

from swift.engines.protocol import EngineUnavailable, PromptTooLong, RequestError
from swift.errors import DataError, SwiftError, TemplateError

# status -> (type in OpenAI's error objects, type in Anthropic's)
TYPES = {
    400: ("invalid_request_error", "invalid_request_error"),
    401: ("invalid_request_error", "authentication_error"),
    404: ("invalid_request_error", "not_found_error"),
    405: ("invalid_request_error", "invalid_request_error"),
    408: ("invalid_request_error", "invalid_request_error"),
    413: ("invalid_request_error", "request_too_large"),
    415: ("invalid_request_error", "invalid_request_error"),
    422: ("invalid_request_error", "invalid_request_error"),
    429: ("rate_limit_error", "rate_limit_error"),
    500: ("server_error", "api_error"),
    503: ("server_error", "overloaded_error"),
}


# fields of the engine's requests -> of the API's
PARAMS = {"max_new_tokens": "max_tokens", "grammar": "response_format", "prompt_ids": "prompt", "adapter": "model"}


class ApiError(Exception):
    """A failed request. `param` names the field at fault, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def openai(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, TYPES[500])[0]
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, TYPES[500])[1]
        message = f"{self.param}: {self.message}" if self.param else self.message
        return {"type": "error", "error": {"type": kind, "message": message}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def queue_full(waiting: int, retry_after: float) -> ApiError:
    seconds = str(max(1, math.ceil(retry_after)))
    message = f"the queue is full: {waiting} requests are being answered or wait; try again in {seconds} s"
    return ApiError(429, message, code="queue_full", headers={"Retry-After": seconds})


def timed_out(limit: float) -> ApiError:
    """Clients retry a 503 by themselves; doing the same work again would only make a slow server slower."""
    message = f"the request was not answered within {limit:g} s and has been cancelled; ask for fewer tokens"
    return ApiError(503, message, code="timeout", headers={"x-should-retry": "false"})


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "30"})


def as_api_error(error: BaseException) -> ApiError | None:
    """What the client is told; None for a failure that is the server's own and that its log must explain."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptTooLong):
        return ApiError(400, _sentence(error), param="messages", code="context_length_exceeded")
    if isinstance(error, RequestError):
        return ApiError(400, _sentence(error), param=PARAMS.get(error.param or "", error.param), code="invalid_value")
    if isinstance(error, EngineUnavailable):
        seconds = str(max(1, math.ceil(error.retry_after)))
        message = "the engine is not available at the moment: it starts, or starts again"
        return ApiError(503, message, code="engine_unavailable", headers={"Retry-After": seconds})
    if isinstance(error, (TemplateError, DataError)):
        return ApiError(422, _sentence(error), param="messages")
    return None


def internal() -> ApiError:
    return ApiError(500, "the server failed on this request; its log says why", code="internal_error")


def _sentence(error: SwiftError) -> str:
    return f"{error.what}; {error.fix}" if error.fix else error.what
