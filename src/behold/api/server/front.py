"""What wraps every request: its id, the count of those under way, the stop of the server, and the last resort."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from behold.api.server.errors import api_error_of, request_id, unavailable
from behold.api.server.handlers import error_response, refuse_and_close

if TYPE_CHECKING:
    from behold.api.server.service import Service


class Front:
    """The outermost middleware. A pure ASGI one: nothing is buffered, so streams stay streams."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own_id = f"req_{uuid.uuid4().hex}"
        request_id.set(own_id)
        status = 0

        async def with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", own_id.encode())]
            await send(message)

        service = self._service
        # What was let in is finished; what comes now is not begun. Metrics are still read until the end.
        refused = service.draining and scope["path"] not in ("/metrics", "/health")
        service.in_flight += not refused
        try:
            if refused:
                error = unavailable("the server is about to stop and takes no new requests", code="stopping")
                await refuse_and_close(error, scope, receive, with_id, at_most=service.settings.max_body_bytes)
            else:
                await self._app(scope, receive, with_id)
        except Exception as error:
            if status:  # too late to say so; the server cuts the connection, which clients notice
                raise
            await error_response(api_error_of(error))(scope, receive, with_id)
        finally:
            service.in_flight -= not refused
            service.metrics.responded(getattr(scope.get("route"), "path", "other"), status)
