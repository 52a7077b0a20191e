"""The body of POST /v1/chat/completions. Declared is what is honoured."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from behold.api.server.schemas import Body, SamplingBody

MAX_CHOICES = 16
MAX_TOP_LOGPROBS = 20


class StreamOptions(Body):
    """include_usage: one more chunk at the end, with the token counts."""

    include_usage: bool | None = None


class ChatMessage(Body):
    """One turn. content: text or a list of parts (see inputs); further fields go to the chat template."""

    role: str
    content: Any = None


class ChatRequest(SamplingBody):
    """max_tokens and max_completion_tokens are the same thing. n: that many answers to the one prompt."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    response_format: dict[str, Any] | None = None

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)
