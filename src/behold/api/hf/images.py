"""`images=` in every shape that processors and pipelines take, as one list of upright RGB pictures for each text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

from behold.errors import ChatError

if TYPE_CHECKING:
    from PIL.Image import Image

Load: TypeAlias = "Callable[[object], Image]"


def is_one_image(value: object) -> bool:
    """Whether `value` stands for one picture (see chat.media) rather than for several."""
    return not isinstance(value, list | tuple) and getattr(value, "ndim", 3) < 4


def image_rows(images: object, places: Sequence[int], load: Load) -> list[list[Image]]:
    """The pictures of each text. `places[b]` is how many image tokens text b has.

    load: one picture in any form to an image. images: None, one picture, several (dealt out in order to the places),
    a list for each text (empty or None where a text has none), or an array or tensor (N, H, W, C) or (N, C, H, W).

    Raises:
        ChatError: pictures and places do not match; the text says how many of each, and where.
        MediaError: a picture cannot be read.
    """
    if images is None:
        given: list[object] = []
    elif is_one_image(images):
        given = [images]
    else:
        given = list(images)  # type: ignore[call-overload]  # a list, a tuple, or the first axis of an array
    if any(item is None or isinstance(item, list | tuple) for item in given):
        return _nested(given, places, load)
    if len(given) != sum(places):
        raise ChatError(
            f"{len(given)} pictures were given for {sum(places)} image tokens ({_where(places)}); "
            "give as many pictures as the texts have image tokens."
        )
    pictures = iter([load(item) for item in given])
    return [[next(pictures) for _ in range(count)] for count in places]


def flat_images(images: object, load: Load) -> list[list[Image]]:
    """Pictures without a text: a list of rows, one row where there is no nesting."""
    if is_one_image(images):
        return [[load(images)]]
    given = list(images)  # type: ignore[call-overload]
    if any(isinstance(item, list | tuple) for item in given):
        return [[load(picture) for picture in row or ()] for row in given]
    return [[load(picture) for picture in given]]


def _nested(given: Sequence[object], places: Sequence[int], load: Load) -> list[list[Image]]:
    rows = [[item] if item is not None and is_one_image(item) else list(item or ()) for item in given]  # type: ignore[call-overload]
    if len(rows) != len(places):
        raise ChatError(
            f"{len(rows)} lists of pictures were given for {len(places)} texts; give one list for each text."
        )
    found = [len(row) for row in rows]
    if found != list(places):
        raise ChatError(
            f"The lists have {found} pictures and the texts {list(places)} image tokens; they must agree one by one."
        )
    return [[load(picture) for picture in row] for row in rows]


def _where(places: Sequence[int]) -> str:
    return ", ".join(f"text {index} has {count}" for index, count in enumerate(places) if count) or "no text has any"
