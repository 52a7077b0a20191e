"""POST /v1/behold/look: what the model sees of a conversation. It computes nothing on the model, and costs no queue."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from behold.api.server.errors import api_error_of
from behold.api.server.inputs import chat_messages
from behold.api.server.refusals import Rules
from behold.api.server.schemas import Asked, read
from behold.api.server.schemas_chat import ChatMessage
from behold.api.server.service import Service
from behold.api.server.sse import unless_gone
from behold.api.show import look

if TYPE_CHECKING:
    from PIL.Image import Image

    from behold.api.show import SeenPicture, Sight

router = APIRouter()

_RULES: Rules = {"chat_template_kwargs": (({},), "the prompt is shown as the template writes it by itself")}


class LookRequest(Asked):
    """The messages of a chat completion; its sampling options change nothing of what is seen, and are ignored."""

    messages: list[ChatMessage] = Field(min_length=1)


@router.post("/v1/behold/look", response_model=None)
async def see(request: Request) -> Response:
    """The prompt as the model reads it, and each picture as its tower gets it: PNG in a data: URI, and its tokens."""
    service: Service = request.app.state.service
    asked = await read(request, LookRequest, service, _RULES)

    def seen() -> Response:
        messages = chat_messages(asked.messages, service.settings.media_policy)
        try:
            sight = look(service.vlm.processor, messages)
        except Exception as error:
            raise api_error_of(error, "messages") from error
        return JSONResponse({"object": "behold.look", "model": service.model_id, **_record(sight)})

    return await unless_gone(request, service.in_thread(seen))


def _record(sight: Sight) -> dict[str, Any]:
    return {
        "prompt": sight.short_text,
        "prompt_tokens": sight.prompt_tokens,
        "image_tokens": sum(seen.tokens for seen in sight.pictures),
        "images": [_picture(seen) for seen in sight.pictures],
    }


def _picture(seen: SeenPicture) -> dict[str, Any]:
    width, height = seen.size
    parts = [
        {"width": part.width, "height": part.height, "tokens": tokens, "url": _png(part)}
        for part, tokens in zip(seen.parts, seen.part_tokens, strict=True)
    ]
    return {"width": width, "height": height, "tokens": seen.tokens, "parts": parts}


def _png(image: Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)  # it goes over one connection once: time matters more than bytes
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
