"""POST /v1/responses: the OpenAI API's newer way to ask. Nothing is stored, so each request brings its conversation."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from behold.api.server.choices import Choices, Written, respond
from behold.api.server.errors import api_error_of
from behold.api.server.inputs import conversation_in, response_messages
from behold.api.server.logprobs import shown
from behold.api.server.options import response_params, template_variables
from behold.api.server.refusals import RESPONSES, TEXT, refuse
from behold.api.server.response_shape import EventWriter, ResponseShape
from behold.api.server.schemas import read
from behold.api.server.schemas_responses import ResponsesRequest
from behold.api.server.service import Service
from behold.api.server.sse import unless_gone
from behold.processing.token_bytes import TokenBytes
from behold.types import Message, SamplingParams

router = APIRouter()


@router.post("/v1/responses", response_model=None)
async def create(request: Request) -> Response:
    """One answer to a question or a conversation with pictures, in the OpenAI API's shapes."""
    shape, choices = await _begin(request, request.app.state.service)
    events = _events(shape, choices) if shape.stream else None
    return await respond(request, choices, events, lambda answers: shape.finished(*answers))


async def _begin(request: Request, service: Service) -> tuple[ResponseShape, Choices]:
    """Everything up to the queue, what is cheap to refuse first. The body's pictures are let go with the frame."""
    asked = await read(request, ResponsesRequest, service, RESPONSES)
    refuse(asked.text.given if asked.text else {}, TEXT, inside="text")
    variables, policy = template_variables(asked), service.settings.media_policy

    def messages() -> list[Message]:
        return response_messages(asked.input, asked.instructions, policy)

    async def begun() -> tuple[SamplingParams, Choices]:
        params = await service.in_thread(lambda: response_params(service.vlm, asked))
        with conversation_in("input"):
            prompt = await service.prompt(messages, **variables)
            return params, await Choices.begin([service.run(prompt, params)])

    params, choices = await unless_gone(request, begun())
    tokens = TokenBytes(service.vlm.processor.tokenizer)
    return ResponseShape(asked, params, model_id=service.model_id, tokens=tokens), choices


async def _events(shape: ResponseShape, choices: Choices) -> AsyncGenerator[bytes, None]:
    """The events of a stream; one that breaks off says so."""
    say, answer = EventWriter(), Written()
    try:
        yield say("response.created", {"response": shape.begun()})
        yield say("response.in_progress", {"response": shape.begun()})
        yield say("response.output_item.added", {"output_index": 0, "item": shape.item()})
        yield say("response.content_part.added", {**shape.in_part, "part": shape.part()})
        async for _, delta in choices:
            answer.add(delta)
            logprobs = shape.logprobs(shown(delta))
            if delta.text or logprobs:
                fields = {**shape.in_part, "delta": delta.text, "logprobs": logprobs}
                yield say("response.output_text.delta", fields)
        part, item, response = shape.part(answer), shape.item(answer), shape.finished(answer)
        fields = {**shape.in_part, "text": answer.text, "logprobs": part["logprobs"]}
        yield say("response.output_text.done", fields)
        yield say("response.content_part.done", {**shape.in_part, "part": part})
        yield say("response.output_item.done", {"output_index": 0, "item": item})
        yield say(f"response.{response['status']}", {"response": response})
    except Exception as error:
        refusal = api_error_of(error)
        yield say("error", {"code": refusal.code, "message": refusal.message, "param": refusal.param})
        yield say("response.failed", {"response": shape.failed(refusal)})
