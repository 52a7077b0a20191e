"""The ways weights can be stored smaller, by the names people give them."""

from __future__ import annotations

from dataclasses import dataclass

from behold.errors import OptionError


@dataclass(frozen=True, slots=True)
class Scheme:
    """bits: per weight; the scale of each output row is float32."""

    name: str
    bits: int


SCHEMES: dict[str, Scheme] = {"int8": Scheme("int8", 8)}


def find_scheme(name: str) -> Scheme:
    """The scheme of a name.

    Raises:
        OptionError: there is none; the message lists those that are supported.
    """
    scheme = SCHEMES.get(name)
    if scheme is None:
        raise OptionError(
            f"quantize={name!r} is not supported. Supported: {', '.join(SCHEMES)}, or None for full weights."
        )
    return scheme
