"""The body of POST /v1/responses. Declared is what is honoured."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from behold.api.server.schemas import Body, SamplingBody
from behold.api.server.schemas_chat import MAX_TOP_LOGPROBS

LOGPROBS = "message.output_text.logprobs"


class TextOptions(Body):
    """format: {"type": "text"}, {"type": "json_object"}, or {"type": "json_schema", "name": …, "schema": …}."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(SamplingBody):
    """input: a question, or items of a conversation (see inputs). instructions: put before them as a system message.

    include: "message.output_text.logprobs" is honoured; other values name things that no answer here has.
    """

    input: str | list[Any] = Field(min_length=1)
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    text: TextOptions | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    include: list[str] | None = None
    metadata: dict[str, Any] | None = None
    user: str | None = None

    @property
    def with_logprobs(self) -> bool:
        return LOGPROBS in (self.include or ()) or bool(self.top_logprobs)
