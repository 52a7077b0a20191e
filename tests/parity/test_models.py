"""Our models against transformers on tiny random twins: logits of every real token of ragged, left-padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from behold.checkpoint.files import CheckpointFiles
from behold.models.base import VisionLanguageModel
from behold.models.load import load_model
from behold.models.registry import find_family
from behold.nn.attention import AttentionPlan, PlainCache
from behold.processing.layout import ImageLayout
from tests import toys

WIDE, TALL, TINY = toys.picture(57, 24, 1), toys.picture(31, 50, 2), toys.picture(23, 23, 3)
BATCHES: dict[str, tuple[list[str], list[list[Image.Image]]]] = {
    "one picture": (["<image>What do we see in this image?"], [[WIDE]]),
    "ragged, several sizes": (
        ["<image> and <image>: what changed?", "A longer text before <image> and a few more words after it", "<image>"],
        [[TALL, TINY], [WIDE], [TINY]],
    ),
    "text row among image rows": (["How many shapes are there?", "<image>Describe the scene."], [[], [TALL]]),
}


class Twins(NamedTuple):
    """The same folder in both libraries."""

    theirs: Any
    processor: Any
    ours: VisionLanguageModel
    layout: ImageLayout


@cache
def twins(name: str, style: toys.Style, shards: int, device: torch.device, dtype: torch.dtype) -> Twins:
    theirs, processor = toys.reference(toys.checkpoint(name), device=device, dtype=dtype)
    processor.tokenizer.padding_side = "left"
    files = CheckpointFiles.read(toys.checkpoint(name, style=style, shards=shards))
    family = find_family(files.config)
    ours = load_model(files, device=device, dtype=dtype, progress=False)
    return Twins(theirs, processor, ours, family.layout(ours.config, files))


def encode(processor: Any, texts: list[str], images: list[list[Image.Image]], *, nested: bool) -> Any:
    """What transformers' processor makes of a batch; llava takes its pictures flat."""
    flat = [image for row in images for image in row]
    return processor(text=texts, images=images if nested else flat, return_tensors="pt", padding=True)


@torch.inference_mode()
def our_logits(model: VisionLanguageModel, layout: ImageLayout, batch: Any) -> torch.Tensor:
    """(real tokens, V) logits of the batch's rows, packed without padding, in one pass."""
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    rows = [row[mask] for row, mask in zip(ids, real, strict=True)]
    counts = [int((row == layout.image_token_id).sum()) for row in rows]
    images = [image for row in layout.unpack(batch, counts) for image in row]
    flat = torch.cat(rows).to(model.device)
    at = (flat == layout.image_token_id).nonzero()[:, 0]
    embeddings = model.embed(flat, torch.cat(model.encode_images(images)), at) if images else model.embed(flat)
    positions = torch.cat([model.positions(len(row)) for row in rows]).to(model.device)
    lengths = tuple(len(row) for row in rows)
    cache_view = PlainCache(AttentionPlan(lengths, (0,) * len(rows), tuple(range(len(rows)))))
    return model.logits(model.hidden(embeddings, positions, cache_view)).float().cpu()


@torch.inference_mode()
def their_logits(model: Any, batch: Any, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """(real tokens, V) logits of transformers' model."""
    inputs = {
        key: value.to(device, dtype if value.is_floating_point() else None) if torch.is_tensor(value) else value
        for key, value in batch.items()
    }
    return model(**inputs).logits.float().cpu()[batch["attention_mask"].bool()]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, device: torch.device, dtype: torch.dtype) -> None:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.5, "logits this flat would prove nothing"
    if dtype is torch.float32:
        # GPUs sum in other orders, and by other kernels, than each other's libraries choose
        torch.testing.assert_close(ours, theirs, atol=1e-4 if device.type == "cpu" else 2e-3, rtol=0)
    else:
        assert torch.cosine_similarity(ours, theirs, dim=-1).min() > 0.995


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", toys.TOYS)
def test_logits_equal_transformers(name: str, batch: str, device: torch.device, dtype: torch.dtype) -> None:
    theirs, processor, ours, layout = twins(name, "saved", 1, device, dtype)
    texts, images = BATCHES[batch]
    inputs = encode(processor, texts, images, nested=name in toys.IDEFICS2_NAMES)
    assert_close(our_logits(ours, layout, inputs), their_logits(theirs, inputs, device, dtype), device, dtype)


@pytest.mark.parametrize("name", toys.TOYS)
def test_published_names_and_shards_are_the_same_model(name: str, device: torch.device, dtype: torch.dtype) -> None:
    theirs, processor, ours, layout = twins(name, "published", 3, device, dtype)
    texts, images = BATCHES["ragged, several sizes"]
    inputs = encode(processor, texts, images, nested=name in toys.IDEFICS2_NAMES)
    assert_close(our_logits(ours, layout, inputs), their_logits(theirs, inputs, device, dtype), device, dtype)


@pytest.mark.parametrize("size", [(56, 56), (55, 29), (23, 56), (30, 24), (49, 35), (7, 40)])
def test_idefics2_sizes_alone_and_on_a_larger_canvas(
    size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> None:
    """Sides that are and are not whole patches; the canvas of a larger neighbour must not change the picture's part."""
    theirs, processor, ours, layout = twins("idefics2", "saved", 1, device, dtype)
    picture = toys.picture(*size, seed=size[0])
    for images in ([picture], [picture, toys.picture(56, 56, 9)]):
        inputs = encode(processor, ["<image>" * len(images) + "What is it?"], [images], nested=True)
        assert_close(our_logits(ours, layout, inputs), their_logits(theirs, inputs, device, dtype), device, dtype)


@pytest.mark.parametrize("name", toys.TOYS)
def test_pictures_encoded_together_equal_pictures_encoded_alone(
    name: str, device: torch.device, dtype: torch.dtype
) -> None:
    _, _, ours, layout = twins(name, "saved", 1, device, dtype)
    images = [image for row in layout.prepare([WIDE, TALL, TINY, WIDE]) for image in row]
    with torch.inference_mode():
        together = ours.encode_images(images)
        alone = [ours.encode_images([image])[0] for image in images]
    assert_rows_close(together, alone, dtype)
    assert [len(rows) for rows in together] == [image.n_tokens for image in images]


def assert_rows_close(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
    for one, other in zip(ours, theirs, strict=True):
        atol = 1e-4 if dtype is torch.float32 else 0.1
        torch.testing.assert_close(one.float(), other.float(), atol=atol, rtol=atol)
