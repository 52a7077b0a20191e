"""Reading values of a `quantization_config`, and the refusal of what is not supported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from behold.checkpoint.files import Json
from behold.checkpoint.prequantized.layout import REMEDY
from behold.errors import UnsupportedModelError

_T = TypeVar("_T")


def refused(found: str, allowed: str) -> UnsupportedModelError:
    """An error to be raised: what config.json has, and what it may have."""
    return UnsupportedModelError(
        f"The checkpoint is stored quantized in a way that is not supported: {found}; supported: {allowed}. {REMEDY}"
    )


def choice(config: Json, key: str, allowed: Sequence[_T]) -> _T:
    """The value of a key, which must be one of `allowed`.

    Raises:
        UnsupportedModelError: it is not.
    """
    value = config.get(key)
    for option in allowed:
        if value == option and type(value) is type(option):
            return option
    raise refused(f"{key}={value!r}", ", ".join(f"{key}={option!r}" for option in allowed))


def group_size(config: Json) -> int | None:
    """`group_size`: a positive number of inputs, or None where -1 stands for all of them.

    Raises:
        UnsupportedModelError: it is neither.
    """
    value = config.get("group_size", 128)
    if value == -1:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise refused(f"group_size={value!r}", "a positive number, or -1 for whole rows")
    return value
