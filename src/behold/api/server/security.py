"""Who may ask, and how much at once: API keys, the size of a body, and pages of other origins."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from contextlib import suppress
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from behold.api.server.errors import ApiError
from behold.api.server.handlers import error_response, refuse_and_close

if TYPE_CHECKING:
    from behold.api.server.settings import ServerSettings

# A load balancer has no key, and the page asks its user for one.
OPEN_PATHS = ("/", "/health", "/favicon.ico")
OPEN_FOLDERS = ("/page/",)
# A body that does not go on for so long is given up.
IDLE_S = 60.0


def install(app: FastAPI, settings: ServerSettings) -> None:
    """Put the guards around the app; CORS is the outermost of them, so that a page can read a refusal."""
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if settings.api_keys:
        app.add_middleware(ApiKeys, keys=settings.api_keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )


class ApiKeys:
    """Lets a request in whose `Authorization: Bearer …` is one of the keys. Pure ASGI, as all here."""

    def __init__(self, app: ASGIApp, keys: tuple[str, ...]) -> None:
        self._app = app
        self._digests = [_digest(key.encode()) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_open(scope) and not self._fits(Headers(scope=scope)):
            text = "this server asks for an API key: send the header Authorization: Bearer KEY with a valid one"
            error = ApiError(401, text, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _fits(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        digest = _digest(given.strip().encode("latin-1", "replace"))
        # Digests have one length, and all of them are compared: the time tells nothing about any key.
        matches = [hmac.compare_digest(digest, own) for own in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _is_open(scope: Scope) -> bool:
    path = scope["path"]
    return scope["method"] in ("GET", "HEAD") and (path in OPEN_PATHS or path.startswith(OPEN_FOLDERS))


class BodyLimit:
    """Refuses a body that is longer than the limit (by its header, or as soon as it has come too far without one), or
    that stops coming."""

    def __init__(self, app: ASGIApp, max_bytes: int, idle_s: float = IDLE_S) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._idle_s = idle_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        stated = Headers(scope=scope).get("content-length", "0")
        if stated.isascii() and stated.isdigit() and int(stated[:20]) > self._max_bytes:
            await refuse_and_close(self._too_large(), scope, receive, send, at_most=self._max_bytes)
            return
        n_bytes, whole, begun = 0, False, False
        refusal: ApiError | None = None

        async def counted() -> Message:
            nonlocal n_bytes, whole, refusal
            if whole:  # what comes now is only that the client went away, however late
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._idle_s)
            except asyncio.TimeoutError:
                refusal = ApiError(408, f"nothing of the body came for {self._idle_s:g} seconds", code="body_timeout")
                raise _Refused from None
            n_bytes += len(message.get("body", b""))
            whole = not message.get("more_body", False)
            if n_bytes > self._max_bytes:
                refusal = self._too_large()
                raise _Refused
            return message

        async def noted(message: Message) -> None:
            nonlocal begun
            # What an endpoint makes of our exception is not what the client should read.
            if begun or refusal is None:
                begun = True
                await send(message)

        with suppress(_Refused):
            await self._app(scope, counted, noted)
        if refusal is not None and not begun:
            # Of one who sends nothing, nothing is to be read.
            at_most = self._max_bytes if refusal.status == 413 else 0
            await refuse_and_close(refusal, scope, receive, send, at_most=at_most)

    def _too_large(self) -> ApiError:
        text = f"the body is larger than {self._max_bytes:,} bytes, this server's limit; send smaller pictures"
        return ApiError(413, text, code="body_too_large")


class _Refused(Exception):
    """Ends the reading of a body; never leaves BodyLimit."""
