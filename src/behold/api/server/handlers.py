"""Every way FastAPI refuses a request, in the words and the shape of our own refusals."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from behold.api.server.errors import ApiError, api_error_of, error_body
from behold.errors import BeholdError

# What a refused client still sends is read for so long.
_LINGER_S = 10.0


def error_response(error: ApiError) -> Response:
    """The refusal as a response. Any text can be said: it is escaped."""
    body = json.dumps(error_body(error), separators=(",", ":"))
    return Response(body, status_code=error.status, headers=error.headers, media_type="application/json")


async def refuse_and_close(error: ApiError, scope: Scope, receive: Receive, send: Send, *, at_most: int) -> None:
    """Send the refusal, and end the connection once the body is read and thrown away, or `at_most` bytes of it: were it
    closed on a client that still sends, it would be reset, and the client would never read why."""

    async def lingering(message: Message) -> None:
        if message["type"] == "http.response.body" and at_most:
            await send({**message, "more_body": True})
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(_discard(receive, at_most), _LINGER_S)
            message = {"type": "http.response.body", "body": b""}
        await send(message)

    response = error_response(error)
    response.headers["connection"] = "close"
    await response(scope, receive, lingering)


async def _discard(receive: Receive, left: int) -> None:
    more = True
    while more and left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        more = message.get("more_body", False)  # False too when the client is gone


def install(app: FastAPI) -> None:
    """Make every exception of an endpoint such a response."""
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(BeholdError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)


async def _refused(request: Request, error: Exception) -> Response:
    return error_response(api_error_of(error))


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()[0]
    param = ".".join(str(step) for step in found["loc"][1:]) or None
    return error_response(ApiError(400, f"{param}: {found['msg']}" if param else str(found["msg"]), param=param))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        message = f"there is nothing at {request.method} {request.url.path[:200]}"
        return error_response(ApiError(404, message, code="not_found"))
    if error.status_code == 405:
        allowed = Headers(error.headers).get("allow", "another method")
        message = f"{request.method} is not possible at {request.url.path[:200]}; use {allowed}"
        return error_response(ApiError(405, message, code="method_not_allowed", headers=error.headers))
    return error_response(ApiError(error.status_code, str(error.detail), headers=error.headers))
