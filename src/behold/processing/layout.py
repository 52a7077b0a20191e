"""The contract between a family and the processor: how pictures become tower inputs and places in the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from behold.processing.settings import ImageSettings
    from behold.types import Detail, ImageInput


class ImageLayout(Protocol):
    """One family's picture rules, bound to one checkpoint's settings. Stateless and safe to share between threads."""

    @property
    def image_token(self) -> str:
        """The token that stands for a picture in the template's text, and for one embedding after `expand`."""

    @property
    def image_token_id(self) -> int:
        """The model's id of it."""

    @property
    def special_tokens(self) -> tuple[str, ...]:
        """Every token this layout or its family's template relies on; the processor adds those that are missing."""

    @property
    def settings(self) -> ImageSettings:
        """What is done to a picture, as the checkpoint's files say."""

    def changed(self, **settings: object) -> ImageLayout:
        """The same layout with some settings changed.

        Raises:
            OptionError: there is no such setting.
        """

    def prepare(self, images: Sequence[Image], details: Sequence[Detail] = ()) -> list[list[ImageInput]]:
        """Upright RGB pictures of ONE prompt to tower inputs, one list a picture (several where it is split).

        details: a budget for each picture, or () for "auto" throughout. "low" is the least that this layout can make
        of a picture, "high" the most, "auto" what the settings say; where there is one cost only, all are that one.
        """

    def expand(self, inputs: Sequence[ImageInput]) -> str:
        """The text that replaces one picture's `image_token` in the rendered prompt: `image_token` once per
        embedding, with whatever surrounds or separates them."""

    def finish(self, text: str) -> str:
        """Last touch on the expanded prompt text (idefics2 merges doubled fake tokens); most return it unchanged."""

    def pack(self, rows: Sequence[Sequence[ImageInput]]) -> dict[str, torch.Tensor]:
        """The tensors transformers' processor returns for a batch whose row b holds `rows[b]` (all its inputs in
        order): pixel_values and, where the family has them, masks and sizes. Empty where no row has a picture."""

    def unpack(self, batch: Mapping[str, torch.Tensor], n_image_tokens: Sequence[int]) -> list[list[ImageInput]]:
        """The inverse of `pack`: `n_image_tokens[b]` is the number of image tokens found in row b, which says how
        many inputs the row owns (padding pictures are never inferred from their pixels).

        Raises:
            ChatError: the tensors hold fewer or more pictures than the ids have places for.
        """
