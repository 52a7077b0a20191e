"""Common beginnings: found whole, told apart by pictures, never cut where attention goes both ways."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from behold.engine.prefix import Match, Source, best, common, extended, symbols, whole
from behold.types import ImageInput, ImageSpan, Prompt


def prompt(digest: str, *, ids: tuple[int, ...] = (1, 2, 9, 9, 9, 3, 4)) -> Prompt:
    picture = ImageInput(np.zeros((3, 1), np.float32), 3, digest)
    return Prompt(ids, (picture,), (ImageSpan(2, 3, 0),))


def test_two_pictures_behind_the_same_placeholders_share_only_what_is_before_them() -> None:
    one, other = symbols(prompt("cat")), symbols(prompt("dog"))
    assert common(one, symbols(prompt("cat"))) == 7
    assert common(one, other) == 2
    assert (one[2:5] < 0).all() and len(set(one[2:5])) == 3, "places of a picture differ from ids and each other"


def test_a_picture_never_equals_text() -> None:
    text = Prompt((1, 2, 9, 9, 9, 3, 4))
    assert common(symbols(prompt("cat")), symbols(text)) == 2


@given(st.lists(st.integers(0, 2), max_size=12), st.lists(st.integers(0, 2), max_size=12))
def test_common_is_what_a_loop_finds(a: list[int], b: list[int]) -> None:
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common(np.array(a, np.int64), np.array(b, np.int64)) == expected


def test_the_longest_that_is_ready_and_the_longest_that_is_coming() -> None:
    wanted = np.arange(100)
    sources = [Source(1, np.arange(30), 30), Source(2, np.arange(80), 10), Source(3, np.arange(5, 50), 45)]
    found = best(wanted, sources, ())
    assert found == Match(1, 30, 80) and found.worth_waiting
    assert best(wanted, sources[:1], ()) == Match(1, 30, 30)
    assert not best(wanted, sources[:1], ()).worth_waiting
    assert best(wanted, [Source(4, np.arange(100), 100)], ()) == Match(4, 99, 99), "the last token is always computed"


def test_a_beginning_never_ends_inside_what_attends_both_ways() -> None:
    spans = (ImageSpan(2, 6, 0, True), ImageSpan(10, 5, 1, False))
    assert [whole(length, spans) for length in (1, 2, 3, 7, 8, 12)] == [1, 2, 2, 2, 8, 12]
    assert best(np.arange(20), [Source(0, np.arange(20), 6)], spans) == Match(0, 2, 19)


def test_an_answer_extends_its_prompt() -> None:
    assert extended(symbols(prompt("cat")), [5, 6, 7], 9)[-3:].tolist() == [4, 5, 6]
