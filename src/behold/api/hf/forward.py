"""`model(**inputs)`: one pass over whole rows without a cache, logits for every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from behold.api.hf.inputs import Row
from behold.errors import OptionError
from behold.models.base import VisionLanguageModel
from behold.nn.attention import AttentionPlan, PlainCache

IGNORED_LABEL = -100


@dataclass(frozen=True)
class ModelOutput:
    """logits: (B, T, V), rows of zeros at padding; loss: a scalar where labels were given.

    Works as an object, a mapping and a tuple of what is there, as in transformers.
    """

    logits: Tensor
    loss: Tensor | None = None

    def to_tuple(self) -> tuple[Tensor, ...]:
        """(loss, logits), or (logits,) where there is no loss."""
        return (self.logits,) if self.loss is None else (self.loss, self.logits)

    def keys(self) -> list[str]:
        """The names of what is there."""
        return ["logits"] if self.loss is None else ["loss", "logits"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __getitem__(self, key: str | int | slice) -> Tensor | tuple[Tensor, ...]:
        if isinstance(key, str):
            if key not in self.keys():
                raise KeyError(key)
            value: Tensor = getattr(self, key)
            return value
        return self.to_tuple()[key]


def forward_rows(model: VisionLanguageModel, rows: Sequence[Row], columns: range) -> Tensor:
    """Logits (B, len(columns), V) of these columns of the padded batch; zeros at padding."""
    images = [image for row in rows for image in row.prompt.images]
    ids = torch.tensor([token for row in rows for token in row.prompt.ids], device=model.device)
    if images:
        at = torch.tensor(_image_places(rows), device=model.device)
        embeddings = model.embed(ids, torch.cat(model.encode_images(images)), at)
    else:
        embeddings = model.embed(ids)
    positions = torch.cat([model.positions(len(row.prompt.ids)) for row in rows]).to(model.device)
    hidden = model.hidden(embeddings, positions, PlainCache(_plan(rows)))
    places = torch.tensor([(b, column) for b, row in enumerate(rows) for column in row.columns], device=model.device)
    wanted = (places[:, 1] >= columns.start) & (places[:, 1] < columns.stop)
    real = model.logits(hidden[wanted])
    logits = real.new_zeros(len(rows), len(columns), real.shape[-1])
    logits[places[wanted, 0], places[wanted, 1] - columns.start] = real
    return logits


def _image_places(rows: Sequence[Row]) -> list[int]:
    """Which of the N packed tokens are replaced by image embeddings, in order."""
    places: list[int] = []
    start = 0
    for row in rows:
        for span in row.prompt.spans:
            places += range(start + span.start, start + span.stop)
        start += len(row.prompt.ids)
    return places


def loss_of(logits: Tensor, labels: Tensor, rows: Sequence[Row]) -> Tensor:
    """Mean cross entropy of each next token, in float32; labels (B, T) of -100 are not counted.

    Raises:
        OptionError: a wrong shape, or a counted label behind padding, where there is nothing to predict it from.
    """
    if labels.shape != logits.shape[:2]:
        raise OptionError(f"labels is {tuple(labels.shape)} and input_ids {tuple(logits.shape[:2])}; they must agree.")
    real = torch.zeros_like(labels, dtype=torch.bool)
    for index, row in enumerate(rows):
        real[index, list(row.columns)] = True
    targets = labels[:, 1:]
    if bool(((targets != IGNORED_LABEL) & ~real[:, :-1]).any()):
        raise OptionError(
            f"labels count tokens behind padding; set labels[attention_mask == 0] = {IGNORED_LABEL}, and with padding "
            "on the left that of each row's first token too."
        )
    flat = targets.to(logits.device).flatten()
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), flat, ignore_index=IGNORED_LABEL)


def kept(logits: Tensor, logits_to_keep: int | Tensor) -> Tensor:
    """The last `logits_to_keep` columns of (B, T, V), all for 0, or those of an index tensor."""
    if isinstance(logits_to_keep, Tensor):
        return logits[:, logits_to_keep.to(logits.device)]
    return logits[:, -logits_to_keep:] if logits_to_keep else logits


def _plan(rows: Sequence[Row]) -> AttentionPlan:
    return AttentionPlan(
        lengths=tuple(len(row.prompt.ids) for row in rows),
        contexts=(0,) * len(rows),
        slots=tuple(range(len(rows))),
        bidirectional=tuple(
            tuple((span.start, span.stop) for span in row.prompt.spans if span.bidirectional) for row in rows
        ),
    )
