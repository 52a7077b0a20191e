"""The ways weights can be stored smaller, by the names people give them, and what became of each layer. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from behold.errors import OptionError

FULL = "full"  # what a layer is called that stays as it is; of a whole model, that all of them do
PACKED = "int8 where packed"  # a checkpoint that arrived quantized: the layers that did, and no others


@dataclass(frozen=True, slots=True)
class Scheme:
    """decoder, elsewhere: how the decoder's layers, and those of vision tower and connector, are stored.

    head, table: how the head and the embedding table are, which, where they are tied, is one table. With integers they
    have 8 bits always: they decide between close candidates, and are read once a token. for_gpus: on a CPU it works,
    and is slower than full weights.
    """

    name: str
    decoder: str
    elsewhere: str
    head: str = "int8"
    table: str = "int8"
    for_gpus: bool = False


SCHEMES: dict[str, Scheme] = {
    "int8": Scheme("int8", decoder="int8", elsewhere="int8"),
    "int4": Scheme("int4", decoder="int4", elsewhere="int8"),
    "float8": Scheme("float8", decoder="float8", elsewhere="float8", head="float8", table=FULL, for_gpus=True),
}

# The largest relative error of a layer's output, from the rounding of its weights alone, that is let pass, and what is
# tried beyond it. Gaussian weights come to 0.8 %, 8 % and 2.6 %: a layer beyond its gate has a few weights so large
# that the rest are lost.
GATES: dict[str, float] = {"int8": 0.02, "int4": 0.12, "float8": 0.04}
SAFER: dict[str, str] = {"int4": "int8", "int8": FULL, "float8": FULL}


@dataclass(frozen=True, slots=True)
class Layer:
    """What became of one layer.

    asked: how the scheme stores it; scheme: how it is stored, which is safer where `asked` was over its gate, or
    "full". bytes_before: in the checkpoint's type. error: relative, of its output on random inputs (even ones, and such
    as the norm before makes of them; the larger), as stored; refused: the same for each way that was over its gate.
    """

    name: str
    asked: str
    scheme: str
    bytes_before: int
    bytes_after: int
    error: float
    refused: dict[str, float]

    @classmethod
    def read(cls, record: dict[str, Any]) -> Layer:
        """From what `dataclasses.asdict` gave."""
        return cls(**record)


def find_scheme(name: str) -> Scheme:
    """The scheme of a name.

    Raises:
        OptionError: there is none; the message lists those that are supported.
    """
    scheme = SCHEMES.get(name) if isinstance(name, str) else None  # a list, say, is no key
    if scheme is None:
        raise OptionError(f"quantize={name!r} is not supported. Supported: {', '.join(SCHEMES)}, or {FULL}.")
    return scheme
