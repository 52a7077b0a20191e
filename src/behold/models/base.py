"""What every vision-language model offers to the engine, and what a family declares about itself.

The engine sees only `VisionLanguageModel`; it never names a family. A family differs by data (its `Family` record,
spans with a bidirectional flag) and by the two methods it may override.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from behold.checkpoint.files import CheckpointFiles
    from behold.checkpoint.rename import RenameRules
    from behold.models.config import ModelConfig
    from behold.models.decoder import Decoder
    from behold.nn.attention import CacheView
    from behold.processing.layout import ImageLayout
    from behold.quant.schemes import Layer
    from behold.types import ImageInput


T = TypeVar("T")

UNKNOWN = -1  # in place of an id


class VisionLanguageModel(nn.Module, ABC):
    """Vision tower + connector + one text decoder. No state between calls: positions and caches are arguments."""

    config: ModelConfig
    quantized_layers: tuple[Layer, ...] = ()
    """What became of each layer that was quantized while it was loaded."""

    @property
    @abstractmethod
    def decoder(self) -> Decoder:
        """The text decoder (embeddings, layers, final norm, head)."""

    @abstractmethod
    def encoding(self, images: Sequence[ImageInput]) -> Generator[None, None, list[Tensor]]:
        """`encode_images` in pieces: pauses where other work may go first, some times a layer of the tower."""

    def encode_images(self, images: Sequence[ImageInput]) -> list[Tensor]:
        """Embeddings of each image, (n_tokens, D) each, in the model's dtype on its device. Batched = alone."""
        return drained(self.encoding(images))

    def positions(self, length: int) -> Tensor:
        """(T,) int64 positions of a prompt's tokens; families with other schemes override this."""
        return torch.arange(length)

    @property
    def device(self) -> torch.device:
        return self.decoder.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.norm.weight.dtype

    @property
    def quantized(self) -> bool:
        """Whether the decoder's weights are kept as small integers."""
        return any(tensor.dtype in (torch.int8, torch.uint8) for tensor in self.decoder.buffers())

    def embed(self, ids: Tensor, image_rows: Tensor | None = None, at: Tensor | None = None) -> Tensor:
        """Token embeddings of ids (N,) with image_rows (M, D) written over the rows `at` (M,). Returns (N, D)."""
        embeddings: Tensor = self.decoder.embed_tokens(ids)
        if image_rows is not None and at is not None:
            return embeddings.index_copy(0, at, image_rows.to(embeddings.dtype))
        return embeddings

    def hidden(self, embeddings: Tensor, positions: Tensor, cache: CacheView, wanted: Tensor | None = None) -> Tensor:
        """(N, D) embeddings at (N,) positions through the decoder, normalised.

        Returns (N, D), or only the rows `wanted` (R,) as (R, D).
        """
        out: Tensor = self.decoder(embeddings, positions, cache, wanted)
        return out

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, D) hidden rows to (R, V) logits: call it with the rows that are sampled, not with all."""
        return self.decoder.logits(hidden)

    def best(self, hidden: Tensor) -> Tensor | None:
        """(R, D) hidden rows to the ids, (R,) int64, of their largest logits: the first of those that are equal.

        UNKNOWN where it was not found. None where no way is shorter than to compute all logits.
        """
        plain = type(self).logits is VisionLanguageModel.logits  # a family may do more to them
        return self.decoder.best(hidden) if plain else None


def drained(pieces: Generator[None, None, T]) -> T:
    """What work that comes in pieces arrives at, without a pause."""
    while True:
        try:
            next(pieces)
        except StopIteration as done:
            result: T = done.value
            return result


@dataclass(frozen=True, slots=True)
class Family:
    """Everything behold knows about one model family; the registry finds it by model_type."""

    name: str
    model_types: tuple[str, ...]
    read_config: Callable[[Mapping[str, Any]], ModelConfig]
    rename: RenameRules
    build: Callable[[ModelConfig], VisionLanguageModel]
    layout: Callable[[ModelConfig, CheckpointFiles], ImageLayout]
