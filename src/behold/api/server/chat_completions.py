"""POST /v1/chat/completions: whole answers, and streams of chunks."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Iterable
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from behold.api.server.choices import Choices, Written, cut_off, respond, total
from behold.api.server.errors import api_error_of, error_body
from behold.api.server.inputs import chat_messages, conversation_in
from behold.api.server.logprobs import entries, shown
from behold.api.server.options import chat_params, template_variables
from behold.api.server.refusals import CHAT
from behold.api.server.schemas import read
from behold.api.server.schemas_chat import ChatRequest
from behold.api.server.service import Service
from behold.api.server.sse import DONE, event, unless_gone
from behold.api.server.usage import timings_of, usage_of
from behold.processing.token_bytes import TokenBytes
from behold.types import Delta, Timings, TokenLogprob

router = APIRouter()


@router.post("/v1/chat/completions", response_model=None)
async def create(request: Request) -> Response:
    """One answer or several to a conversation with pictures, in the OpenAI API's shapes."""
    shape, choices = await _begin(request, request.app.state.service)
    return await respond(request, choices, _chunks(shape, choices) if shape.stream else None, shape.completion)


async def _begin(request: Request, service: Service) -> tuple[_Shape, Choices]:
    """Everything up to the queue, what is cheap to refuse first. The body's pictures are let go with the frame."""
    asked = await read(request, ChatRequest, service, CHAT)
    variables, policy = template_variables(asked), service.settings.media_policy

    async def begun() -> Choices:
        params = await service.in_thread(lambda: chat_params(service.vlm, asked))
        with conversation_in("messages"):
            prompt = await service.prompt(lambda: chat_messages(asked.messages, policy), **variables)
            return await Choices.begin([service.run(prompt, each) for each in params])

    return _Shape(service, asked), await unless_gone(request, begun())


async def _chunks(shape: _Shape, choices: Choices) -> AsyncGenerator[bytes, None]:
    """The events of a stream; one that breaks off says so."""
    # With include_usage every chunk has the field, and only the last one a value.
    nothing: dict[str, Any] = {"usage": None} if shape.with_usage else {}
    ends = [Written() for _ in range(choices.n)]
    try:
        for index in range(choices.n):
            yield event(shape.chunk(index, {"role": "assistant", "content": ""}) | nothing)
        async for index, delta in choices:
            logprobs = shown(delta)
            if delta.text or (shape.with_logprobs and logprobs):
                yield event(shape.chunk(index, {"content": delta.text}, logprobs) | nothing)
            if delta.finish_reason is not None:
                ends[index].last = delta
                yield event(shape.last_chunk(index, delta) | nothing)
        if shape.with_usage:
            yield event({**shape.head("chat.completion.chunk"), "choices": [], "usage": usage_of(total(ends))})
        yield DONE
    except Exception as error:
        yield event(error_body(api_error_of(error)))


class _Shape:
    """Answers and chunks of one request, as the API writes them: one id and one time in all of them."""

    def __init__(self, service: Service, asked: ChatRequest) -> None:
        self.stream = bool(asked.stream)
        self.with_usage = asked.with_usage
        self.with_logprobs = bool(asked.logprobs)
        self._token_bytes = TokenBytes(service.vlm.processor.tokenizer)
        self._fixed = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.model_id}

    def head(self, kind: str) -> dict[str, Any]:
        return {"id": self._fixed["id"], "object": kind, **self._fixed}

    def completion(self, answers: list[Written]) -> dict[str, Any]:
        slowest = max((answer.last.timings or Timings() for answer in answers), key=lambda timings: timings.total_s)
        return {
            **self.head("chat.completion"),
            "choices": [
                {
                    "index": index,
                    "message": {"role": "assistant", "content": answer.text, "refusal": None},
                    "logprobs": self._logprobs(answer.logprobs),
                    **_end(answer.last),
                }
                for index, answer in enumerate(answers)
            ],
            "usage": usage_of(total(answers)),
            "timings": timings_of(slowest),
        }

    def chunk(self, index: int, delta: dict[str, Any], logprobs: Iterable[TokenLogprob] = ()) -> dict[str, Any]:
        found = self._logprobs(logprobs) if "role" not in delta else None
        choice = {"index": index, "delta": delta, "logprobs": found, "finish_reason": None}
        return {**self.head("chat.completion.chunk"), "choices": [choice]}

    def last_chunk(self, index: int, delta: Delta) -> dict[str, Any]:
        choice = {"index": index, "delta": {}, "logprobs": None, **_end(delta)}
        return {
            **self.head("chat.completion.chunk"),
            "choices": [choice],
            "timings": timings_of(delta.timings or Timings()),
        }

    def _logprobs(self, logprobs: Iterable[TokenLogprob]) -> dict[str, Any] | None:
        return {"content": entries(logprobs, self._token_bytes), "refusal": None} if self.with_logprobs else None


def _end(last: Delta) -> dict[str, Any]:
    """Standard words, and in a field of our own what exactly ended the answer."""
    return {"finish_reason": "length" if cut_off(last) else last.finish_reason, "ended_by": last.ended_by}
