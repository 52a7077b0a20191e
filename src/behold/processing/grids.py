"""Where pictures go: target sizes, crops and splits as pure arithmetic on (height, width). No pixels here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from behold.errors import UnsupportedModelError

Size = tuple[int, int]
SizeRule = Mapping[str, int]

_KNOWN_RULES = (
    frozenset({"height", "width"}),
    frozenset({"shortest_edge"}),
    frozenset({"shortest_edge", "longest_edge"}),
    frozenset({"max_height", "max_width"}),
)


def size_rule(value: Any, name: str, *, square: bool) -> SizeRule:  # noqa: ANN401 - whatever a JSON file holds
    """Any spelling of a size to a mapping: a number is a square or a shortest edge, a pair is (height, width).

    Raises:
        UnsupportedModelError: the value is none of these.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if isinstance(value, Mapping):
        rule = {str(key): length for key, length in value.items() if length is not None}
        if frozenset(rule) in _KNOWN_RULES and all(isinstance(side, int) and side > 0 for side in rule.values()):
            return rule
    known = ", ".join(" + ".join(sorted(keys)) for keys in _KNOWN_RULES)
    raise UnsupportedModelError(f"{name} is {value!r} in the image processor's settings; supported are {known}.")


def target_size(rule: SizeRule, size: Size) -> Size:
    """The size that a picture of `size` is resized to by an image processor with this rule (CLIP, SigLIP)."""
    height, width = size
    if "height" in rule:
        return rule["height"], rule["width"]
    if "max_height" in rule:
        scale = min(rule["max_height"] / height, rule["max_width"] / width)
        return int(height * scale), int(width * scale)
    if "longest_edge" in rule:
        return _within(rule["shortest_edge"], rule["longest_edge"], size)
    return _shortest(rule["shortest_edge"], size)


def _shortest(edge: int, size: Size) -> Size:
    height, width = size
    if width <= height:
        return int(edge * height / width), edge
    return edge, int(edge * width / height)


def _within(edge: int, limit: int, size: Size) -> Size:
    """Shortest side to `edge`, unless the longest would pass `limit`: then that one to `limit`."""
    height, width = size
    short, long = min(size), max(size)
    exact: float = edge
    if float(long) / float(short) * edge > limit:
        exact = limit * float(short) / float(long)
        edge = round(exact)
    if short == edge:
        return size
    if width < height:
        return int(exact * height / width), edge
    return edge, int(exact * width / height)


def clamped_size(rule: SizeRule, size: Size) -> Size:
    """Idefics2's rule: the longest side down to `longest_edge`, then each side up to at least `shortest_edge`.

    Neither rounds to whole patches, and the second may change the aspect ratio.
    """
    if "height" in rule:
        return rule["height"], rule["width"]
    height, width = size
    least, most = rule["shortest_edge"], rule["longest_edge"]
    ratio = width / height
    if width >= height and width > most:
        height, width = int(most / ratio), most
    elif height > width and height > most:
        height, width = most, int(most * ratio)
    return max(height, least), max(width, least)


def halved(rule: SizeRule) -> SizeRule:
    """Idefics2's rule for a picture that shall cost little: half of the longest side, yet no shorter than allowed."""
    if "longest_edge" not in rule:
        return rule
    return {**rule, "longest_edge": max(rule["longest_edge"] // 2, rule["shortest_edge"])}


def quarters(size: Size) -> list[tuple[int, int, int, int]]:
    """Idefics2's split: four quarters, row by row, then the whole, as (left, top, right, bottom)."""
    height, width = size
    y, x = height // 2, width // 2
    return [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height), (0, 0, width, height)]
