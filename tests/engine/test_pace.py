"""How much reading fits beside running answers, from made-up seconds."""

from __future__ import annotations

import pytest

from behold.engine.pace import FEWEST_TOKENS, SHARE, Pace


def test_it_begins_small_and_grows_to_what_doubles_a_step() -> None:
    pace = Pace()
    assert pace.portion(500) == FEWEST_TOKENS and pace.portion(3) == 3
    assert pace.pictures_s == 0
    for _ in range(30):
        pace.record(0.1, decoding=1, prompt_tokens=0, pictures=False)
        portion = pace.portion(500)
        pace.record(0.1 + 0.002 * portion, decoding=1, prompt_tokens=portion, pictures=False)
    assert pace.portion(500) == pytest.approx(SHARE * 0.1 / 0.002, abs=FEWEST_TOKENS)
    assert pace.portion(20) == 20
    assert pace.pictures_s == pytest.approx(SHARE * 0.1)


def test_steps_that_say_nothing_about_it_are_not_counted() -> None:
    pace = Pace()
    pace.record(9.0, decoding=0, prompt_tokens=100, pictures=False)
    pace.record(9.0, decoding=3, prompt_tokens=0, pictures=True)
    assert pace.decode_s == 0 and pace.token_s == 0
