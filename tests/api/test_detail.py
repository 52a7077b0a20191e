"""`detail` from the message to the answer: what pictures cost, and that answers do not depend on their company."""

from __future__ import annotations

from typing import Any

import pytest

import behold
from behold.api.show import look
from behold.api.turns import conversation, user_message
from tests import toys

DETAILS = ("low", "auto", "high")
PER_INPUT = {"idefics2": 5, "idefics2-split": 5, "llava-siglip-qwen2": 16}
COSTS = {"idefics2": (5, 5, 25), "idefics2-split": (5, 25, 25), "llava-siglip-qwen2": (16, 16, 16)}


def asked(*details: str) -> list[dict[str, Any]]:
    """One question about a picture for each detail, all of the same picture."""
    parts = [{"type": "image", "image": toys.picture(90, 60), "detail": detail} for detail in details]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What do we see?"}]}]


@pytest.mark.parametrize("name", COSTS)
def test_what_pictures_cost_and_that_answers_in_company_are_those_alone(name: str) -> None:
    vlm = behold.load(toys.checkpoint(name))
    several = [asked(*details) for details in (("low",), ("auto",), ("high",), ("high", "low"), ("low", "high"))]
    alone = [vlm.generate(messages, max_new_tokens=6) for messages in several]
    low, auto, high = COSTS[name]
    assert [answer.usage.image_tokens for answer in alone] == [low, auto, high, high + low, high + low]
    together = vlm.batch(several, max_new_tokens=6)
    assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    fresh = behold.load(toys.checkpoint(name))
    assert [answer.ids for answer in fresh.batch(several[::-1], max_new_tokens=6)] == [each.ids for each in alone[::-1]]


def test_the_details_of_one_picture_are_different_pictures_to_the_cache() -> None:
    processor = behold.load(toys.checkpoint("idefics2")).processor
    low, auto, high = (processor.chat(conversation(asked(detail))).images for detail in DETAILS)
    assert low[0].pixels.shape != auto[0].pixels.shape
    assert low[0].digest != auto[0].digest == high[-1].digest


def test_what_is_shown_is_what_is_asked_for() -> None:
    processor = behold.load(toys.checkpoint("idefics2")).processor
    sights = [
        look(processor, [user_message(toys.picture(90, 60), "What?", detail=detail)]) for detail in ("low", "high")
    ]
    assert [len(sight.pictures[0].parts) for sight in sights] == [1, 5]
    for sight in sights:
        assert sight.text.count(sight.image_token) == sight.pictures[0].tokens
