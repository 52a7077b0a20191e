"""Token counts and timings as answers carry them."""

from __future__ import annotations

from typing import Any

from behold.types import Timings, Usage


def usage_of(usage: Usage) -> dict[str, Any]:
    """As in chat completions. prompt_tokens include those of pictures, and those that did not have to be read again."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "image_tokens": usage.image_tokens},
    }


def response_usage_of(usage: Usage) -> dict[str, Any]:
    """As in responses, which call the same things otherwise."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "image_tokens": usage.image_tokens},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def timings_of(timings: Timings) -> dict[str, float]:
    """Seconds, and tokens a second; a field of our own."""
    return {
        "queue_s": round(timings.queue_s, 4),
        "vision_s": round(timings.vision_s, 4),
        "first_token_s": round(timings.first_token_s, 4),
        "total_s": round(timings.total_s, 4),
        "tokens_per_s": round(timings.decode_tokens_per_s, 2),
    }
