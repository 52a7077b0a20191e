"""What a picture holds, decided from a seed: shapes in a 3 x 3 grid of places, perhaps with a short word or number.

A `Scene` is the ground truth. `drawing.py` paints it; `questions.py` asks about it. Sampling a scene draws nothing, so
a pool of pictures needs to keep only pixels: the truth comes back from the seed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from words import WORDS

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
SIZES = ("small", "large")
# Places in reading order; the index is the cell of the grid.
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")
ROWS = ("top", "centre", "bottom")
MAX_THINGS = 5
HELD_OUT_SEED = 1_000_000_000  # training seeds stay below, held-out seeds start here


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape: all four words that can be said about it."""

    shape: str
    colour: str
    size: str
    cell: int

    @property
    def row(self) -> int:
        return self.cell // 3

    @property
    def column(self) -> int:
        return self.cell % 3


@dataclass(frozen=True, slots=True)
class Scene:
    """`things` are in reading order (by cell); a text takes a whole row of the grid for itself."""

    seed: int
    things: tuple[Thing, ...]
    text: str | None = None
    text_row: int = 0
    change: str | None = None  # what differs from the scene before it, if this is a variation of one

    @property
    def text_noun(self) -> str:
        return "number" if self.text and self.text.isdigit() else "word"

    @property
    def text_cell(self) -> int:
        """The cell that names the text's place: the middle one of its row."""
        return self.text_row * 3 + 1


def is_variation(seed: int) -> bool:
    """Every fourth scene repeats the one before it with one change, for questions about two pictures."""
    return seed % 4 == 3


def make_scene(seed: int) -> Scene:
    """The scene of a seed; the same on every machine."""
    if is_variation(seed):
        return _vary(make_scene(seed - 1), seed)
    rng = random.Random(seed)
    text, text_row, count = None, 0, rng.randint(1, MAX_THINGS)
    if rng.random() < 0.42:
        text = rng.choice(WORDS) if rng.random() < 0.7 else str(rng.randint(0, 99))
        text_row = rng.randrange(3)
        count = rng.choice((0, 1, 1, 2, 2, 3))
    free = [cell for cell in range(9) if text is None or cell // 3 != text_row]
    cells = sorted(rng.sample(free, count))
    # A few shapes and colours per scene make repeats likely, so that counting by kind is worth asking.
    shapes = rng.sample(SHAPES, rng.randint(2, len(SHAPES)))
    colours = rng.sample(COLOURS, rng.randint(2, len(COLOURS)))
    things = [Thing(rng.choice(shapes), rng.choice(colours), rng.choice(SIZES), cell) for cell in cells]
    return Scene(seed, tuple(things), text, text_row)


def _vary(scene: Scene, seed: int) -> Scene:
    """`scene` with one shape recoloured, removed, added or moved, and that said in words."""
    rng = random.Random(seed)
    things = list(scene.things)
    taken = {thing.cell for thing in things}
    free = [c for c in range(9) if c not in taken and (scene.text is None or c // 3 != scene.text_row)]
    kinds = ["recolour", "remove"] if things else []
    if len(things) < MAX_THINGS:
        kinds.append("add")
    kind = rng.choice(kinds)
    if kind == "add":
        new = Thing(rng.choice(SHAPES), rng.choice(COLOURS), rng.choice(SIZES), rng.choice(free))
        things.append(new)
        change = f"{article(new.colour).capitalize()} {new.shape} was added {at(new.cell)}."
    else:
        place = rng.randrange(len(things))
        old = things[place]
        if kind == "remove":
            del things[place]
            change = f"The {old.colour} {old.shape} {at(old.cell)} was removed."
        else:
            new = replace(old, colour=rng.choice([c for c in COLOURS if c != old.colour]))
            things[place] = new
            change = f"The {old.colour} {old.shape} {at(old.cell)} turned {new.colour}."
    ordered = tuple(sorted(things, key=lambda thing: thing.cell))
    return Scene(seed, ordered, scene.text, scene.text_row, change)


def article(noun: str) -> str:
    """The noun with `a` or `an`."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def at(cell: int) -> str:
    """`at the top left`, `in the centre`, `on the right`: the place as a phrase."""
    if cell == 4:
        return "in the centre"
    if cell in (3, 5):
        return f"on the {PLACES[cell]}"
    return f"at the {PLACES[cell]}"
