"""The response object of /v1/responses and the events that tell how it comes about."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from behold.api.server.choices import Written, cut_off
from behold.api.server.errors import ApiError
from behold.api.server.logprobs import entries
from behold.api.server.schemas_responses import ResponsesRequest
from behold.api.server.sse import event
from behold.api.server.usage import response_usage_of, timings_of
from behold.processing.token_bytes import TokenBytes
from behold.types import SamplingParams, Timings, TokenLogprob

_TEXT = {"type": "text"}


class ResponseShape:
    """One response: the same ids and times wherever it appears. Its output is one message with one text."""

    def __init__(self, asked: ResponsesRequest, params: SamplingParams, *, model_id: str, tokens: TokenBytes) -> None:
        self._token_bytes = tokens
        self.stream = bool(asked.stream)
        self._with_logprobs = asked.with_logprobs
        self._item_id = f"msg_{uuid.uuid4().hex}"
        self._fixed: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model_id,
            "instructions": asked.instructions,
            "max_output_tokens": params.max_new_tokens,
            "metadata": asked.metadata or {},
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": params.temperature or 0.0,
            "text": {"format": (asked.text.format if asked.text else None) or _TEXT},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": params.logprobs or 0,
            "top_p": 1.0 if params.top_p is None else params.top_p,
            "truncation": "disabled",
            "user": asked.user,
        }

    def begun(self) -> dict[str, Any]:
        """The response while nothing of it is known."""
        nothing: dict[str, Any] = {"error": None, "incomplete_details": None, "output": [], "usage": None}
        return {**self._fixed, "status": "in_progress", **nothing}

    def finished(self, answer: Written) -> dict[str, Any]:
        """The response when it is complete, or was cut off."""
        last = answer.last
        assert last.usage is not None
        return {
            **self.begun(),
            "status": _status(answer),
            "incomplete_details": {"reason": "max_output_tokens"} if cut_off(last) else None,
            "output": [self.item(answer)],
            "usage": response_usage_of(last.usage),
            "ended_by": last.ended_by,
            "timings": timings_of(last.timings or Timings()),
        }

    def failed(self, error: ApiError) -> dict[str, Any]:
        code = "server_error" if error.status >= 500 else error.code or error.type
        return {**self.begun(), "status": "failed", "error": {"code": code, "message": error.message}}

    def item(self, answer: Written | None = None) -> dict[str, Any]:
        """The message, without content where there is no answer yet."""
        status = "in_progress" if answer is None else _status(answer)
        content = [] if answer is None else [self.part(answer)]
        return {"id": self._item_id, "type": "message", "role": "assistant", "status": status, "content": content}

    def part(self, answer: Written | None = None) -> dict[str, Any]:
        logprobs = self.logprobs(answer.logprobs if answer else ())
        text = answer.text if answer else ""
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

    def logprobs(self, logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
        return entries(logprobs, self._token_bytes) if self._with_logprobs else []

    @property
    def in_part(self) -> dict[str, Any]:
        """Where the text is, for events about it."""
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}


class EventWriter:
    """Numbers the events of one stream."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, kind: str, fields: Mapping[str, Any]) -> bytes:
        number, self._next = self._next, self._next + 1
        return event({"type": kind, "sequence_number": number, **fields}, kind)


def _status(answer: Written) -> str:
    return "incomplete" if cut_off(answer.last) else "completed"
