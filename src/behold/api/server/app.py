"""The application: routes, guards around them, and the engine's life."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI

from behold._version import __version__
from behold.api.server import chat_completions, handlers, info, look, page, responses, security, tokenize
from behold.api.server.front import Front
from behold.api.server.service import Service

if TYPE_CHECKING:
    from behold.api.server.settings import ServerSettings
    from behold.api.vlm import VLM


def create_app(vlm: VLM, settings: ServerSettings) -> FastAPI:
    """One model as an ASGI application; endpoints find the Service as `app.state.service`.

    /docs and /redoc are off: they load scripts from elsewhere. /openapi.json is there.
    """
    service = Service(vlm, settings)

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None, None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(title="behold", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    app.state.service = service
    handlers.install(app)
    for part in (chat_completions, responses, tokenize, look, info):
        app.include_router(part.router)
    page.mount(app)
    security.install(app, settings)
    app.add_middleware(Front, service=service)
    return app
