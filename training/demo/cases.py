"""What is asked about the held-out scenes, and in which words an answer is right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from conversations import Conversation, Exchange, ask_blindly, ask_change, ask_more, ask_one, ask_pair, ask_which
from questions import SINGLE, Turn, ask_describe, ask_follow_up
from scenes import HELD_OUT_SEED, is_variation, make_scene


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation whose last answer is judged, over the pool's pictures at `places`."""

    talk: Conversation
    places: tuple[int, ...]

    @property
    def last(self) -> Turn:
        return self.talk.exchanges[-1].turn


def make_cases(scenes: int) -> Iterator[Case]:
    """One question of each kind that a scene allows; each scene is also asked about beside its neighbour."""
    for place in range(scenes):
        yield from cases_of(place, scenes)


def cases_of(place: int, scenes: int) -> Iterator[Case]:
    """Those of `make_cases` about one scene, and about it beside the one before."""
    rng = random.Random(f"evaluate {place}")
    scene = make_scene(HELD_OUT_SEED + place)
    singles = [ask_describe(scene, rng, ""), *(maker(scene, rng, "") for maker in SINGLE)]
    for turn in singles:
        if turn:
            yield Case(Conversation((Exchange(turn, 1),)), (place,))
    before = ask_one(scene, rng)
    after = ask_follow_up(before, rng)
    if after:
        yield Case(Conversation((Exchange(before, 1), Exchange(after))), (place,))
    other = place - 1 if place else scenes - 1
    first = make_scene(HELD_OUT_SEED + other)
    pairs = [rng.choice((ask_more, ask_which))(first, scene, rng), ask_pair(first, scene, rng)]
    if is_variation(scene.seed):
        pairs.append(ask_change(scene, rng))
    for turn in pairs:
        yield Case(Conversation((Exchange(turn, 2),)), (other, place))
    if place % 10 == 0:
        yield Case(Conversation((Exchange(ask_blindly(scene, rng)),)), ())
