"""What the bodies of the endpoints have in common, and how a body is read.

Names, defaults and ranges are the OpenAI API's where it has the field. Fields that are not declared are kept: some of
them are refused (see refusals), all others ignored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect, Request

from behold.api.server.errors import ApiError
from behold.api.server.refusals import Rules, refuse

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from behold.api.server.service import Service

AskedT = TypeVar("AskedT", bound="Asked")

_SMALL_BYTES = 1 << 16
CLOSED_REQUEST = 499  # nobody reads it; it keeps such requests apart in logs and metrics


class Body(BaseModel):
    """A JSON object whose unknown fields are kept in `model_extra`. null is the same as not given."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    @property
    def given(self) -> dict[str, Any]:
        """Every field that is not null, undeclared ones too."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return {name: value for name, value in {**fields, **(self.model_extra or {})}.items() if value is not None}


class Asked(Body):
    """A whole body. model: the one it is for; without it, the one there is."""

    model: str | None = None


class SamplingBody(Asked):
    """How to choose tokens: OpenAI's fields, vLLM's further ones under its names, and loop_stop.

    temperature: absent or 0 is greedy, which is behold's default on every door; OpenAI's is 1. `top_p`, `top_k` or
        `min_p` alone sample.
    top_k: 0 and -1 are off.
    add_generation_prompt, continue_final_message: as in chat templates; a final assistant message is continued.
    chat_template_kwargs: further variables for the checkpoint's chat template.
    structured_outputs: one of {"json": schema}, {"regex": …}, {"choice": […]}, {"grammar": Lark}.
    """

    temperature: float | None = Field(None, ge=0)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    no_repeat_ngram_size: int | None = Field(None, ge=0)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    seed: int | None = None
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    loop_stop: bool | None = None
    structured_outputs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


async def read(request: Request, kind: type[AskedT], service: Service, rules: Rules) -> AskedT:
    """The request's body as `kind`; a large one, which holds pictures, is parsed in a thread.

    Raises:
        ApiError: 400, not JSON, a field has a wrong type or value, or `rules` refuse it (`param` names the first); 404,
            for another model; 415, not said to be JSON; 499, the client went away.
    """
    asked = await _body(request, kind, service)
    service.check_model(asked.model)
    refuse(asked.given, rules)
    return asked


async def _body(request: Request, kind: type[AskedT], service: Service) -> AskedT:
    said = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if said != "application/json" and not (said.startswith("application/") and said.endswith("+json")):
        # Also what keeps a page of another origin out: a browser asks first before it sends JSON.
        found = f"Content-Type is {said!r}" if said else "there is no Content-Type"
        raise ApiError(415, f"{found}; send the body as application/json")
    try:
        # Not request.body(): that keeps the bytes for as long as the answer takes.
        body = b"".join([piece async for piece in request.stream()])
    except ClientDisconnect as error:
        raise ApiError(CLOSED_REQUEST, "the client has closed the connection") from error
    if len(body) <= _SMALL_BYTES:
        return _parsed(body, kind)
    return await service.in_thread(lambda: _parsed(body, kind))


def _parsed(body: bytes, kind: type[AskedT]) -> AskedT:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error, body) from None  # the error holds the whole body


def _refusal(error: ValidationError, body: bytes) -> ApiError:
    """The first field that is wrong, with all that is wrong with it: a union says so once for each of its kinds."""
    errors = error.errors(include_url=False, include_input=False, include_context=False)
    if errors[0]["type"] == "json_invalid":
        return ApiError(
            400, f"the body is not valid JSON: {errors[0]['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json"
        )
    raw = json.loads(body)
    places = [_place(each, raw) for each in errors]
    found = [each["msg"] for each, place in zip(errors, places, strict=True) if place == places[0]]
    said = " or ".join(dict.fromkeys(text[:1].lower() + text[1:] for text in found))
    param = places[0] or None
    return ApiError(400, f"{param or 'the body'}: {said}", param=param, code="invalid_value")


def _place(error: ErrorDetails, raw: object) -> str:
    """messages[0].content for ("messages", 0, "content"). What is no step into the body (a kind of a union) is left
    out, but for the name of a field that is missing."""
    place, here = "", raw
    for step in error["loc"]:
        if isinstance(step, int) and isinstance(here, Sequence) and not isinstance(here, str):
            place, here = f"{place}[{step}]", here[step]
        elif isinstance(step, str) and isinstance(here, Mapping) and (step in here or error["type"] == "missing"):
            place, here = f"{place}.{step}" if place else step, here.get(step)
    return place
