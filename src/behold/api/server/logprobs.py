"""Log probabilities as the OpenAI API writes them: each token as text and as bytes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from behold.processing.token_bytes import TokenBytes
from behold.types import Delta, TokenLogprob

# JSON has no infinity; this is what OpenAI's own API writes for it.
IMPOSSIBLE = -9999.0


def shown(delta: Delta) -> tuple[TokenLogprob, ...]:
    """Those of the tokens that are text: the one that only ends an answer is none."""
    return delta.logprobs[:-1] if delta.ended_by == "end" else delta.logprobs


def entries(logprobs: Iterable[TokenLogprob], token_bytes: TokenBytes) -> list[dict[str, Any]]:
    """{"token", "logprob", "bytes", "top_logprobs"} for each token. Half a character shows as U+FFFD in `token`;
    joined, the bytes of neighbours are whole again."""
    return [
        {
            **_entry(each.id, each.logprob, token_bytes),
            "top_logprobs": [_entry(identifier, logprob, token_bytes) for identifier, logprob in each.top],
        }
        for each in logprobs
    ]


def _entry(identifier: int, logprob: float, token_bytes: TokenBytes) -> dict[str, Any]:
    raw = token_bytes(identifier)
    return {
        "token": raw.decode("utf-8", "replace"),
        "logprob": max(logprob, IMPOSSIBLE),
        "bytes": list(raw),
    }
