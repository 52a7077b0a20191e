"""POST /tokenize: what a chat completion would cost, without running it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from behold.api.server.errors import api_error_of
from behold.api.server.inputs import chat_messages
from behold.api.server.options import chat_params, template_variables
from behold.api.server.refusals import CHAT
from behold.api.server.schemas import read
from behold.api.server.schemas_chat import ChatRequest
from behold.api.server.service import Service
from behold.api.server.sse import unless_gone
from behold.types import Prompt, SamplingParams

router = APIRouter()


@router.post("/tokenize", response_model=None)
async def tokenize(request: Request) -> Response:
    """The body of a chat completion, refused as there; its token ids, and what it would need now."""
    service: Service = request.app.state.service
    asked = await read(request, ChatRequest, service, CHAT)
    variables, policy = template_variables(asked), service.settings.media_policy

    async def estimated() -> dict[str, Any]:
        params = await service.in_thread(lambda: chat_params(service.vlm, asked))
        prompt = await service.prompt(lambda: chat_messages(asked.messages, policy), **variables)
        return await service.in_thread(lambda: _record(service, prompt, params))

    return JSONResponse(await unless_gone(request, estimated()))


def _record(service: Service, prompt: Prompt, params: list[SamplingParams]) -> dict[str, Any]:
    """estimated_memory_bytes: keys and values of every choice, and the pictures' embeddings once."""
    try:
        cost = service.vlm.engine.estimate(prompt, params[0])
    except Exception as error:
        raise api_error_of(error, "messages") from error
    return {
        "object": "behold.tokens",
        "model": service.model_id,
        "tokens": prompt.ids,
        "count": cost.prompt_tokens,
        "image_tokens": cost.image_tokens,
        "cached_tokens": cost.cached_tokens,
        "max_new_tokens": cost.max_new_tokens,
        "max_model_len": service.context,
        "estimated_memory_bytes": cost.kv_bytes * len(params) + cost.image_bytes,
        "fits_now": cost.fits,
    }
