"""Rows of ids to one width: what `padding=`, `max_length=` and `padding_side=` of tokenizers and processors mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from behold.errors import OptionError

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Padding:
    """How to pad: not at all, to the longest row, or to `width` tokens; then up to a multiple."""

    to: Literal["nothing", "longest", "width"] = "nothing"
    width: int = 0
    multiple: int = 1
    side: Side = "left"

    def rows(self, rows: Sequence[Sequence[int]], pad_id: int | None) -> tuple[list[list[int]], list[list[int]]]:
        """(ids, masks), padded; a mask is 1 at a token and 0 at padding.

        Raises:
            OptionError: padding is needed and the tokenizer has no pad token.
        """
        width = {"nothing": 0, "longest": max(map(len, rows), default=0), "width": self.width}[self.to]
        width = -(-width // self.multiple) * self.multiple
        ids, masks = [], []
        for row in rows:
            missing = max(0, width - len(row))
            if missing and pad_id is None:
                raise OptionError("padding: the tokenizer has no pad token; set processor.tokenizer.pad_token first.")
            fill, blank, ones = [cast("int", pad_id)] * missing, [0] * missing, [1] * len(row)
            ids.append([*fill, *row] if self.side == "left" else [*row, *fill])
            masks.append([*blank, *ones] if self.side == "left" else [*ones, *blank])
        return ids, masks


def read_side(value: object) -> Side:
    """Check a `padding_side`."""
    if value == "left" or value == "right":  # noqa: PLR1714 - mypy narrows only this
        return value
    raise OptionError(f"padding_side={value!r} is not one of 'left', 'right'.")


def read_padding(
    padding: bool | str | None,
    *,
    side: Side,
    max_length: int | None = None,
    pad_to_multiple_of: int | None = None,
    truncation: bool | str | None = None,
) -> Padding:
    """The arguments of a tokenizer call as one record.

    Raises:
        OptionError: an unknown value, or truncation, which would cut a prompt's pictures or its end.
    """
    if truncation not in (None, False, "do_not_truncate"):
        raise OptionError(f"truncation={truncation!r} is not supported: shorten the text instead; leave it out.")
    multiple = pad_to_multiple_of or 1
    if padding in (None, False, "do_not_pad"):
        return Padding(side=side)
    if padding in (True, "longest"):
        return Padding("longest", multiple=multiple, side=side)
    if padding == "max_length":
        if max_length is None:
            raise OptionError("padding='max_length' needs max_length=, the number of tokens to pad to.")
        return Padding("width", width=max_length, multiple=multiple, side=side)
    raise OptionError(f"padding={padding!r} is not one of True, False, 'longest', 'max_length', 'do_not_pad'.")
