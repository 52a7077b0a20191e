"""Conversations over one or two pictures: many turns that share the pictures, as training rows and tests use them."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from questions import SINGLE, STRANGERS, Turn, ask_describe, ask_follow_up
from scenes import COLOURS, SHAPES, Scene, article, is_variation

NO_PICTURE = "I need a picture to answer."
WHERE = (" in the first picture", " in the second picture")
SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer questions about pictures.", "You are a helpful assistant")


@dataclass(frozen=True, slots=True)
class Exchange:
    """A turn and how many new pictures its question brings."""

    turn: Turn
    pictures: int = 0


@dataclass(frozen=True, slots=True)
class Conversation:
    exchanges: tuple[Exchange, ...]
    system: str | None = None


def ask_one(scene: Scene, rng: random.Random, where: str = "", *, makers: dict | None = None) -> Turn:
    """Any question but a description, by weight; kinds that this scene does not allow are passed over."""
    makers = makers or SINGLE
    while True:
        maker = rng.choices(list(makers), list(makers.values()))[0]
        turn = maker(scene, rng, where)
        if turn is not None:
            return turn


def ask_more(first: Scene, second: Scene, rng: random.Random) -> Turn:
    """Which of the pictures has more, or fewer, shapes."""
    difference = len(first.things) - len(second.things)
    word = rng.choice(("more", "fewer"))
    if difference == 0:
        answer = "Both have the same number"
    else:
        answer = "The first" if (difference > 0) == (word == "more") else "The second"
    forms = (f"Which picture has {word} shapes?", f"In which picture are there {word} shapes?")
    return Turn("compare", rng.choice(forms), answer)


def ask_which(first: Scene, second: Scene, rng: random.Random) -> Turn:
    """Which of the pictures has a certain shape, colour or a text."""
    things = first.things + second.things
    if rng.random() < 0.15 or not things:
        noun, held = "text", [bool(first.text), bool(second.text)]
    else:
        thing = rng.choice(things)
        colour, shape = thing.colour, thing.shape
        if rng.random() < 0.25:
            colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        part = rng.random()
        if part < 0.4:
            noun = article(f"{colour} {shape}")
            held = [any(t.colour == colour and t.shape == shape for t in s.things) for s in (first, second)]
        elif part < 0.75:
            noun, held = article(shape), [any(t.shape == shape for t in s.things) for s in (first, second)]
        else:
            noun = article(f"{colour} shape")
            held = [any(t.colour == colour for t in s.things) for s in (first, second)]
    if rng.random() < 0.25:
        return Turn("compare", f"Do both pictures have {noun}?", "Yes" if all(held) else "No")
    answer = {(True, True): "Both", (True, False): "The first", (False, True): "The second"}.get(tuple(held), "Neither")
    forms = (f"Which picture has {noun}?", f"In which picture is there {noun}?")
    return Turn("compare", rng.choice(forms), answer)


def ask_change(second: Scene, rng: random.Random) -> Turn:
    forms = ("What changed?", "What has changed in the second picture?", "What is different in the second picture?")
    return Turn("what changed", rng.choice(forms), second.change or "")


def ask_pair(first: Scene, second: Scene, rng: random.Random) -> Turn:
    """One question about two pictures, or about one of them by its number."""
    chance = rng.random()
    if is_variation(second.seed) and second.seed == first.seed + 1 and chance < 0.3:
        return ask_change(second, rng)
    if chance < 0.4:
        return ask_more(first, second, rng)
    if chance < 0.6:
        return ask_which(first, second, rng)
    which = rng.randrange(2)
    scene = (first, second)[which]
    turn = (ask_describe if chance > 0.92 else ask_one)(scene, rng, WHERE[which])
    return replace(turn, kind="one of two")


def ask_blindly(scene: Scene, rng: random.Random) -> Turn:
    """A question where no picture has been given yet."""
    if rng.random() < 0.3:
        turn = ask_describe(scene, rng, "")
    elif rng.random() < 0.2:
        forms = (f"Tell me about the {rng.choice(STRANGERS)}.", "Hello!", "Who are you?", "What can you do?")
        turn = Turn("", rng.choice(forms), "")
    else:
        turn = ask_one(scene, rng)
    return Turn("no picture", turn.question, NO_PICTURE)


def converse(scenes: list[Scene], rng: random.Random, turns: int) -> Conversation:
    """About `turns` exchanges over one or two pictures; the second may come later than the first."""
    exchanges: list[Exchange] = []
    if rng.random() < 0.06:
        exchanges.append(Exchange(ask_blindly(scenes[0], rng)))
    together = len(scenes) == 2 and rng.random() < 0.6
    alone = 0 if together else turns if len(scenes) == 1 else rng.randint(1, max(1, turns // 3))
    if alone:
        exchanges += [Exchange(turn, int(place == 0)) for place, turn in enumerate(_about_one(scenes[0], rng, alone))]
    if len(scenes) == 2:
        pairs = [ask_pair(*scenes, rng) for _ in range(max(2, turns - alone))]
        exchanges += [
            Exchange(turn, (2 if together else 1) if place == 0 else 0) for place, turn in enumerate(_unlike(pairs))
        ]
    exchanges = [replace(e, turn=replace(e.turn, question=_loosely(e.turn.question, rng))) for e in exchanges]
    return Conversation(tuple(exchanges), rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.1 else None)


def _about_one(scene: Scene, rng: random.Random, turns: int) -> list[Turn]:
    """A description comes first or last: in between it would give the later answers away too often."""
    made: list[Turn] = []
    while len(made) < turns:
        made.append(ask_one(scene, rng))
        if rng.random() < 0.3:
            made += [turn for turn in [ask_follow_up(made[-1], rng)] if turn]
    made = _unlike(made)
    chance = rng.random()
    if chance < 0.35:
        return [ask_describe(scene, rng, ""), *made]
    return [*made, ask_describe(scene, rng, "")] if chance < 0.9 else made


def _unlike(turns: list[Turn]) -> list[Turn]:
    """Without questions asked before; a follow-up goes with the question it follows."""
    kept: list[Turn] = []
    seen: set[str] = set()
    dropped = False
    for turn in turns:
        dropped = dropped if turn.kind == "follow-up" else turn.question in seen
        if not dropped:
            kept.append(turn)
            seen.add(turn.question)
    return kept


def _loosely(question: str, rng: random.Random) -> str:
    """Now and then as people type: without the mark, without the capital."""
    if rng.random() < 0.08:
        question = question.rstrip("?.")
    if rng.random() < 0.08:
        question = question[0].lower() + question[1:]
    return question
