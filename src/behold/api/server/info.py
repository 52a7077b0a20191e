"""What the server says of itself: the model, whether it is well, and its figures."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from behold.api.server.service import Service

router = APIRouter()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The loaded model, and no other: clients take the first of the list."""
    return {"object": "list", "data": [_model(request.app.state.service)]}


@router.get("/v1/models/{model_id:path}")
async def model(request: Request, model_id: str) -> dict[str, Any]:
    """One model; its id may have slashes."""
    service: Service = request.app.state.service
    service.check_model(model_id)
    return _model(service)


@router.head("/health", include_in_schema=False)
@router.get("/health")
async def health(request: Request) -> Response:
    """200 once the model has really generated and for as long as it can; else 503 with the reason."""
    service: Service = request.app.state.service
    status = service.health
    return JSONResponse({"status": status, "model": service.model_id}, 200 if status == "ok" else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus's text format."""
    service: Service = request.app.state.service
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.model_id,
        "object": "model",
        "created": service.created,
        "owned_by": "behold",
        "modalities": {"input": ["text", "image"], "output": ["text"]},
        "context_length": service.context,
        "max_model_len": service.context,
    }
