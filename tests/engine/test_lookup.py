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
    ids = [1, 2, 3, 4, 5, 9, 1, 2, 3]
    assert lookup.guess(ids, 4) == lookup.guess(ids, 4) == (4,), "one at first; asking changes nothing"
    lookup.learn(11, 1, 1)
    assert lookup.guess([*ids, 4, 5, 9, 1, 2, 3], 4) == (4, 5), "the latest place, and twice as many"
    lookup.learn(16, 2, 2)
    assert lookup.guess([*ids, 4, 5, 9, 1, 2, 3, 4, 5, 9], 3) == (1, 2, 3), "`most` at most"


def test_nothing_to_go_by() -> None:
    lookup = Lookup()
    assert lookup.guess([], 4) == lookup.guess([1, 2], 4) == lookup.guess([1, 2, 3, 4], 4) == ()


def test_a_wrong_guess_is_a_pause() -> None:
    lookup = Lookup()
    ids = [1, 2, 3, 4, 1, 2, 3]
    assert lookup.guess(ids, 4) == (4,)
    lookup.learn(8, 1, 0)
    assert lookup.guess([*ids, 5, 1, 2, 3], 4) == ()
    longer = [*ids, 5, *range(20, 20 + PAUSE_TOKENS), 1, 2, 3]
    assert lookup.guess(longer, 4) == (5,)


def test_a_loop_is_guessed_to_its_end() -> None:
    lookup, ids = Lookup(), [7, 8, 9, 7, 8, 9, 7]
    found = lookup.guess(ids, 8)
    assert found == (8,)
    lookup.learn(9, 1, 1)
    lookup.learn(11, 2, 2)
    assert lookup.guess([*ids, 8, 9, 7, 8], 8) == (9, 7, 8)


@pytest.mark.parametrize("together", [1, 3])
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
