"""Guesses from what was said before: where they come from, how many, and when they stop."""

from __future__ import annotations

import pytest

from behold.engine.engine import Engine
from behold.engine.lookup import PAUSE_TOKENS, Lookup
from behold.engine.options import EngineOptions
from behold.types import SamplingParams
from tests.engine.fake import Parrot, prompt


def test_what_came_after_the_same_three_tokens() -> None:
    lookup = Lookup()
    ids = [1, 2, 3, 4, 5, 9, 8, 1, 2, 3]
    assert lookup.guess(ids, 4) == lookup.guess(ids, 4) == (4, 5, 9, 8), "asking changes nothing"
    assert lookup.guess([*ids, 6, 7, 7, 1, 2, 3], 3) == (6, 7, 7), "the latest place"
    assert lookup.guess(ids, 2) == (), "few are not worth a step"


def test_nothing_to_go_by() -> None:
    lookup = Lookup()
    assert lookup.guess([], 4) == lookup.guess([1, 2], 4) == lookup.guess([1, 2, 3, 4], 4) == ()


def waits(*learned: int) -> int:
    """Tokens until the next guess, after guesses of which so many were right."""
    lookup, ids = Lookup(), [1, 2, 3, 4] * 20
    for right in learned:
        lookup.learn(8, right)
    return next(n for n in range(8, 80) if lookup.guess(ids[:n], 4)) - 8


def test_a_wrong_guess_is_a_pause_and_the_next_one_a_longer() -> None:
    assert waits() == waits(3) == 0
    assert waits(0) == PAUSE_TOKENS
    assert waits(0, 0) == 2 * PAUSE_TOKENS
    assert waits(0, 0, 2, 0) == PAUSE_TOKENS


def test_a_loop_goes_on_in_what_is_guessed() -> None:
    assert Lookup().guess([7, 8, 9, 7, 8, 9, 7], 8) == (8, 9, 7, 8, 9, 7, 8, 9)
    assert Lookup().guess([5, 5, 5, 5], 3) == (5, 5, 5)


@pytest.mark.parametrize("together", [1, 2])
def test_right_guesses_spare_steps_and_change_nothing(together: int) -> None:
    requests = [(prompt(i), SamplingParams(max_new_tokens=60)) for i in range(together)]
    answers, steps = [], []
    for rows in (0, 12):
        engine = Engine(Parrot(), tokenizer=None, eos_token_ids=frozenset({1}), options=EngineOptions(lookup_rows=rows))
        answers.append([done.ids for done in engine.complete(requests)])
        steps.append(engine.stats().steps)
        engine.check()
    assert answers[0] == answers[1] and all(len(ids) == 60 for ids in answers[0])
    assert steps[1] < steps[0] / 2
