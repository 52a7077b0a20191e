"""Questions about one scene, each with its one canonical answer.

A question may carry a `where` such as " in the first picture"; it then speaks of that picture of a conversation.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from scenes import COLOURS, PLACES, SHAPES, Scene, Thing, article, at

NUMBERS = ("Zero", "One", "Two", "Three", "Four", "Five")
# Things no picture holds, so that questions about anything else are met with "I cannot tell".
_STRANGERS = """
    dog cat car tree house person bird boat flower apple bottle chair table book cup phone horse bus hat face hand
    ball clock door cloud sun moon mountain river road animal man woman child fish heart arrow diamond hexagon
"""
STRANGERS = _STRANGERS.split()


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and answer; `subject` is the shape that a follow-up may call "it"."""

    kind: str
    question: str
    answer: str
    subject: Thing | None = None
    said: str = ""  # what the question or the answer already told of the subject: shape, colour, place or size


Maker = Callable[[Scene, random.Random, str], "Turn | None"]


def describe_text(scene: Scene) -> str:
    return f"the {scene.text_noun} {scene.text}"


def describe(scene: Scene) -> str:
    """Everything in the picture in reading order; a text stands in its row."""
    parts = [(thing.cell, f"{article(thing.colour)} {thing.shape} {at(thing.cell)}") for thing in scene.things]
    if scene.text:
        parts.append((scene.text_cell, f"{describe_text(scene)} {at(scene.text_cell)}"))
    phrases = [phrase for _, phrase in sorted(parts)]
    if not phrases:
        return "Nothing."
    whole = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    return whole[0].upper() + whole[1:] + "."


def refer(thing: Thing, scene: Scene, rng: random.Random, avoid: str = "") -> str | None:
    """A phrase that fits only `thing`, telling nothing of what `avoid` names; None if there is no such phrase."""

    def alone(**wanted: str) -> bool:
        return sum(all(getattr(other, key) == value for key, value in wanted.items()) for other in scene.things) == 1

    phrases = []
    if avoid != "shape" and alone(shape=thing.shape):
        phrases += [f"the {thing.shape}"] * 2
    if avoid != "colour" and alone(colour=thing.colour):
        phrases.append(f"the {thing.colour} shape")
    if avoid not in ("shape", "colour") and alone(shape=thing.shape, colour=thing.colour):
        phrases.append(f"the {thing.colour} {thing.shape}")
    if avoid not in ("shape", "size") and not phrases and alone(shape=thing.shape, size=thing.size):
        phrases.append(f"the {thing.size} {thing.shape}")
    return rng.choice(phrases) if phrases else None


def _subject(scene: Scene, rng: random.Random, avoid: str) -> tuple[Thing, str] | None:
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    phrase = refer(thing, scene, rng, avoid)
    return (thing, phrase) if phrase else None


def ask_describe(scene: Scene, rng: random.Random, where: str) -> Turn:
    if where:
        forms = (f"What do we see{where}?", f"What is{where}?", f"Describe{where.replace(' in', '', 1)}.")
    else:
        forms = (
            "What do we see in this image?",
            "What do we see in this picture?",
            "What is in this image?",
            "What is in the picture?",
            "Describe the image.",
            "Describe this picture.",
            "What can you see?",
            "What does the picture show?",
            "Tell me what you see.",
        )
    return Turn("describe", rng.choice(forms), describe(scene))


def ask_count(scene: Scene, rng: random.Random, where: str) -> Turn:
    forms = (
        "How many shapes are there{}?",
        "How many shapes do you see{}?",
        "Count the shapes{}.",
        "What is the number of shapes{}?",
    )
    return Turn("count all", rng.choice(forms).format(where), NUMBERS[len(scene.things)])


def ask_count_some(scene: Scene, rng: random.Random, where: str) -> Turn:
    colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
    if scene.things and rng.random() < 0.75:
        thing = rng.choice(scene.things)
        colour, shape = thing.colour, thing.shape
    if rng.random() < 0.5:
        noun, count = f"{colour} shapes", sum(thing.colour == colour for thing in scene.things)
    else:
        noun = f"{shape}es" if shape == "cross" else f"{shape}s"
        count = sum(thing.shape == shape for thing in scene.things)
    form = rng.choice(("How many {} are there{}?", "How many {} do you see{}?", "Count the {}{}."))
    return Turn("count some", form.format(noun, where), NUMBERS[count])


def ask_colour(scene: Scene, rng: random.Random, where: str) -> Turn | None:
    found = _subject(scene, rng, "colour")
    if found is None:
        return None
    thing, phrase = found
    colour = rng.choice(("colour", "color"))
    forms = (f"What {colour} is {phrase}{where}?", f"Which {colour} does {phrase}{where} have?")
    forms += (f"What is the {colour} of {phrase}{where}?",)
    return Turn("colour", rng.choice(forms), thing.colour.capitalize(), thing, "colour shape")


def ask_shape(scene: Scene, rng: random.Random, where: str) -> Turn | None:
    found = _subject(scene, rng, "shape")
    if found is None:
        return None
    thing, phrase = found
    forms = (f"What is {phrase}{where}?", f"Which shape is {thing.colour}{where}?")
    return Turn("shape", rng.choice(forms), article(thing.shape).capitalize(), thing, "shape colour")


def ask_place(scene: Scene, rng: random.Random, where: str) -> Turn | None:
    if scene.text and rng.random() < 0.25:
        noun = rng.choice(("text", scene.text_noun))
        phrase, cell, thing = f"the {noun}", scene.text_cell, None
    else:
        found = _subject(scene, rng, "place")
        if found is None:
            return None
        thing, phrase = found
        cell = thing.cell
    forms = (f"Where is {phrase}{where}?", f"In which place is {phrase}{where}?", f"Where do you see {phrase}{where}?")
    return Turn("place", rng.choice(forms), at(cell).capitalize(), thing, "place")


def ask_what_at(scene: Scene, rng: random.Random, where: str) -> Turn:
    cells = [thing.cell for thing in scene.things]
    cell = rng.choice(cells) if cells and rng.random() < 0.7 else rng.randrange(9)
    thing = next((thing for thing in scene.things if thing.cell == cell), None)
    if scene.text and cell // 3 == scene.text_row:
        cell = scene.text_cell
    if thing is not None:
        answer = f"{article(thing.colour)} {thing.shape}".capitalize()
    elif scene.text and cell == scene.text_cell:
        answer = "The" + describe_text(scene)[3:]
    else:
        answer = "Nothing"
    forms = ("What is {}{}?", "What do you see {}{}?", "What is there {}{}?")
    return Turn("what is at", rng.choice(forms).format(at(cell), where), answer, thing, "shape colour place")


def ask_exists(scene: Scene, rng: random.Random, where: str) -> Turn:
    """Half of the answers are yes; many others are near misses: the colour of one thing, the shape of another."""
    style = rng.random()
    form = rng.choice(("Is there {}{}?", "Do you see {}{}?", "Can you see {}{}?"))
    if style < 0.12:
        noun = rng.choice(("text", "word", "number"))
        true = bool(scene.text) and noun in ("text", scene.text_noun)
        return Turn("yes or no", form.format("any text" if noun == "text" else f"a {noun}", where), _yes(true))
    if style < 0.2:
        return Turn("yes or no", form.format(article(rng.choice(STRANGERS)), where), "No")
    colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
    if scene.things:
        thing, other = rng.choice(scene.things), rng.choice(scene.things)
        chance = rng.random()
        if chance < 0.55:
            colour, shape = thing.colour, thing.shape
        elif chance < 0.8:
            colour, shape = (thing.colour, other.shape) if chance < 0.65 else (thing.colour, shape)
        elif chance < 0.9:
            shape = thing.shape
    part = rng.random()
    if part < 0.5:
        noun, true = f"{colour} {shape}", any(t.colour == colour and t.shape == shape for t in scene.things)
    elif part < 0.75:
        noun, true = shape, any(t.shape == shape for t in scene.things)
    else:
        noun, true = f"{colour} shape", any(t.colour == colour for t in scene.things)
    return Turn("yes or no", form.format(article(noun), where), _yes(true))


def ask_is(scene: Scene, rng: random.Random, where: str) -> Turn | None:
    """Is a certain shape of this colour, size or place?"""
    topic = rng.choice(("colour", "size", "place"))
    found = _subject(scene, rng, topic)
    if found is None:
        return None
    thing, phrase = found
    true = rng.random() < 0.5
    if topic == "colour":
        value = thing.colour if true else rng.choice([c for c in COLOURS if c != thing.colour])
    elif topic == "size":
        value = thing.size if true else ("small" if thing.size == "large" else "large")
    else:
        value = at(thing.cell if true else rng.choice([c for c in range(len(PLACES)) if c != thing.cell]))
    return Turn("yes or no", f"Is {phrase}{where} {value}?", _yes(true), thing)


def ask_size(scene: Scene, rng: random.Random, where: str) -> Turn | None:
    found = _subject(scene, rng, "size")
    if found is None:
        return None
    thing, phrase = found
    forms = (f"Is {phrase}{where} large or small?", f"How big is {phrase}{where}?", f"What size is {phrase}{where}?")
    return Turn("size", rng.choice(forms), thing.size.capitalize(), thing, "size")


def ask_relation(scene: Scene, rng: random.Random, where: str) -> Turn | None:
    """Asked only of shapes in different columns (left, right) or rows (above, below)."""
    if len(scene.things) < 2:
        return None
    one, two = rng.sample(scene.things, 2)
    first, second = refer(one, scene, rng), refer(two, scene, rng)
    sides = [("left of", one.column < two.column), ("right of", one.column > two.column)]
    heights = [("above", one.row < two.row), ("below", one.row > two.row)]
    choices = (sides if one.column != two.column else []) + (heights if one.row != two.row else [])
    if first is None or second is None or not choices:
        return None
    relation, true = rng.choice(choices)
    return Turn("relation", f"Is {first} {relation} {second}{where}?", _yes(true), one)


def ask_read(scene: Scene, rng: random.Random, where: str) -> Turn | None:
    if not scene.text:
        return None
    noun = rng.choice(("text", scene.text_noun))
    forms = (f"What does the {noun}{where} say?", f"Read the {noun}{where}.", f"What is the {noun}{where}?")
    forms += (f"Which {scene.text_noun} is written{where}?",)
    return Turn("read", rng.choice(forms), scene.text)


def ask_absent(scene: Scene, rng: random.Random, where: str) -> Turn | None:
    """A question that takes for granted what is not in the picture."""
    style = rng.random()
    if style < 0.25 and not scene.text:
        noun = rng.choice(("text", "word", "number"))
        forms = [f"What does the {noun}{where} say?", f"Read the {noun}{where}.", f"Where is the {noun}{where}?"]
        return Turn("not there", rng.choice(forms), f"I cannot tell: there is no {noun}.")
    shapes = [shape for shape in SHAPES if all(thing.shape != shape for thing in scene.things)]
    colours = [colour for colour in COLOURS if all(thing.colour != colour for thing in scene.things)]
    if style < 0.6 and shapes:
        noun, topics = rng.choice(shapes), ("colour", "place", "size")
    elif style < 0.75 and scene.things:
        colour, shape = rng.choice(scene.things).colour, rng.choice(SHAPES)
        if any(thing.colour == colour and thing.shape == shape for thing in scene.things):
            return None
        noun, topics = f"{colour} {shape}", ("place", "size")
    elif style < 0.87:
        noun, topics = f"{rng.choice(colours)} shape", ("place", "size", "shape")
    else:
        noun, topics = rng.choice(STRANGERS), ("colour", "place", "size")
    topic = rng.choice(topics)
    colour_word = rng.choice(("colour", "color"))
    forms = {
        "colour": [f"What {colour_word} is the {noun}{where}?", f"What is the {colour_word} of the {noun}{where}?"],
        "place": [f"Where is the {noun}{where}?", f"Where do you see the {noun}{where}?"],
        "size": [f"Is the {noun}{where} large or small?", f"How big is the {noun}{where}?"],
        "shape": [f"What is the {noun}{where}?"],
    }[topic]
    return Turn("not there", rng.choice(forms), f"I cannot tell: there is no {noun}.")


def ask_follow_up(before: Turn, rng: random.Random) -> Turn | None:
    """A question about "it", the subject of the turn before."""
    thing = before.subject
    if thing is None:
        return None
    topics = {
        "colour": (("What colour is it?", "What color is it?", "And its colour?"), thing.colour.capitalize()),
        "place": (("Where is it?", "And where is it?", "Where is that?"), at(thing.cell).capitalize()),
        "size": (("Is it large or small?", "How big is it?", "And its size?"), thing.size.capitalize()),
        "shape": (("What shape is it?", "Which shape is it?"), article(thing.shape).capitalize()),
    }
    known = f"{before.said} {before.question} {before.answer}".lower()
    open_topics = [
        topic for topic in topics if topic not in before.said and getattr(thing, topic, at(thing.cell)) not in known
    ]
    if not open_topics:
        return None
    forms, answer = topics[rng.choice(open_topics)]
    return Turn("follow-up", rng.choice(forms), answer, thing, before.said)


def _yes(true: bool) -> str:
    return "Yes" if true else "No"


# Weights say how often each is asked: what is hard to learn more often.
SINGLE: dict[Maker, float] = {
    ask_count: 1.0,
    ask_count_some: 2.2,
    ask_colour: 0.5,
    ask_shape: 0.4,
    ask_place: 1.8,
    ask_what_at: 1.6,
    ask_exists: 1.5,
    ask_is: 1.0,
    ask_size: 0.4,
    ask_relation: 2.6,
    ask_read: 4.0,
    ask_absent: 1.3,
}
