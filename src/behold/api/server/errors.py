"""What a client is told when something goes wrong: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from behold.errors import (
    BusyError,
    CapacityError,
    ChatError,
    MediaError,
    MissingDependencyError,
    OptionError,
    StructuredOutputError,
)

# The id of the request that the current task serves, for the log.
request_id: ContextVar[str] = ContextVar("request_id", default="-")

_logger = logging.getLogger("behold.server")
_CLIENT_MISTAKES = (MediaError, ChatError, OptionError, CapacityError)
# openai-python asks for nothing a second time when it reads this, though it would retry the status.
NO_RETRY = {"x-should-retry": "false"}


class ApiError(Exception):
    """A refusal. `type`, `param` and `code` are those of the OpenAI API; `headers` go with the response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})


def error_body(error: ApiError) -> dict[str, Any]:
    """The body of the response; also what a stream sends that breaks in the middle."""
    return {"error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}}


def busy(message: str, *, retry_after_s: float = 1.0) -> ApiError:
    """429: the same request may be sent again later."""
    headers = {"retry-after": str(max(1, math.ceil(retry_after_s)))}
    return ApiError(429, message, type="rate_limit_error", code="queue_full", headers=headers)


def unavailable(message: str, *, code: str, retry_after_s: float = 5.0) -> ApiError:
    """503: this server takes no requests now."""
    headers = {"retry-after": str(max(1, math.ceil(retry_after_s)))}
    return ApiError(503, message, type="service_unavailable", code=code, headers=headers)


def overdue(deadline_s: float) -> ApiError:
    """504: the deadline of a request is over."""
    text = f"the answer was not complete after {deadline_s:g} seconds, this server's limit for a request; ask for less"
    return ApiError(504, text, type="timeout", code="deadline_exceeded", headers=NO_RETRY)


def api_error_of(error: BaseException, param: str | None = None) -> ApiError:
    """Any exception as what the client is told. What is no fault of the request is logged, and its text kept back."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, _CLIENT_MISTAKES):
        code = "context_length_exceeded" if isinstance(error, CapacityError) else None
        return ApiError(400, str(error), param=param, code=code)
    if isinstance(error, BusyError):
        return busy(str(error), retry_after_s=error.retry_after_s)
    if isinstance(error, StructuredOutputError):
        return ApiError(500, str(error), type="server_error", param=param, code="structured_output", headers=NO_RETRY)
    if isinstance(error, MissingDependencyError):
        return ApiError(501, str(error), type="server_error", param=param, code="not_installed", headers=NO_RETRY)
    _logger.error("request %s failed", request_id.get(), exc_info=error)
    return ApiError(500, "internal error; the server's log has it under the x-request-id", type="server_error")
