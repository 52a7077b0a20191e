"""From the tensors of a transformers-style batch back to prompts: the reverse of what the processor does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from behold.errors import ChatError, OptionError
from behold.processing.layout import ImageLayout
from behold.processing.processor import find_spans
from behold.types import ImageInput, Prompt


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a batch: its prompt, and the columns of (B, T) where the prompt's tokens are; the rest is padding."""

    prompt: Prompt
    columns: tuple[int, ...]


def read_rows(
    input_ids: Tensor, attention_mask: Tensor | None, pictures: Mapping[str, Tensor], layout: ImageLayout
) -> list[Row]:
    """The rows of a batch without their padding, each image's place found again.

    input_ids, attention_mask: (B, T) integers; the mask is 0 at padding, None is no padding. pictures: the other
    tensors the processor returned (pixel_values …).

    Raises:
        OptionError: shapes that do not fit together, or a row without tokens.
        ChatError: more or fewer pictures than the ids have places for.
    """
    _check(input_ids, attention_mask)
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    rows = []
    for ids, kept in zip(input_ids.tolist(), mask.bool().tolist(), strict=True):
        columns = tuple(column for column, keep in enumerate(kept) if keep)
        rows.append((tuple(ids[column] for column in columns), columns))
    counts = [ids.count(layout.image_token_id) for ids, _ in rows]
    inputs = _unpack(pictures, counts, layout)
    return [
        Row(Prompt(ids=ids, images=tuple(images), spans=tuple(find_spans(ids, images, layout.image_token_id))), columns)
        for (ids, columns), images in zip(rows, inputs, strict=True)
    ]


def mask_of_padding(input_ids: Tensor, pad_id: int | None, end_ids: frozenset[int]) -> Tensor:
    """(B, T) mask for ids given without one: pad tokens are padding, unless they are also end-of-sequence ids."""
    if pad_id is None or pad_id in end_ids:
        return torch.ones_like(input_ids)
    return (input_ids != pad_id).long()


def _unpack(pictures: Mapping[str, Tensor], counts: Sequence[int], layout: ImageLayout) -> list[list[ImageInput]]:
    if pictures:
        # The tower casts to its own dtype; pictures that were cast to bfloat16 for it are read back losslessly here.
        plain = {name: value.detach().cpu() for name, value in pictures.items()}
        plain = {name: value.float() if value.is_floating_point() else value for name, value in plain.items()}
        return layout.unpack(plain, counts)
    if any(counts):
        raise ChatError(f"The ids have {sum(counts)} image tokens and no pixel_values were given; pass **inputs whole.")
    return [[] for _ in counts]


def _check(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    if input_ids.ndim != 2 or input_ids.is_floating_point():
        raise OptionError(f"input_ids is {tuple(input_ids.shape)} {input_ids.dtype}; give integers of shape (B, T).")
    if attention_mask is None:
        if input_ids.shape[1] == 0:
            raise OptionError("input_ids has no tokens; give at least one.")
        return
    if attention_mask.shape != input_ids.shape:
        raise OptionError(
            f"attention_mask is {tuple(attention_mask.shape)} and input_ids {tuple(input_ids.shape)}; they must agree."
        )
    empty = (~attention_mask.bool().any(dim=1)).nonzero().flatten().tolist()
    if empty or input_ids.shape[1] == 0:
        raise OptionError(f"attention_mask hides every token of rows {empty}; each row needs at least one.")
