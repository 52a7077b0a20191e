"""What the model sees of a prompt: the rendered text, and each picture as the tower gets it, drawn on a sheet."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from behold.errors import ChatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from behold.processing.processor import Processor
    from behold.processing.settings import ImageSettings
    from behold.types import Message

GAP = 12  # pixels around everything on the sheet
LINE = 16  # height of a line of labels
_DRAWN = str.maketrans({"×": "x", "→": ">"})  # the font that comes with Pillow lacks these two
PAPER, INK, FRAME = (250, 250, 248), (40, 40, 40), (170, 170, 170)


@dataclass(frozen=True)
class SeenPicture:
    """One picture of the prompt. parts: what the tower sees of it, one or several crops. size: (width, height)."""

    size: tuple[int, int]
    parts: tuple[Image.Image, ...]
    part_tokens: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(self.part_tokens)


@dataclass(frozen=True)
class Sight:
    """A prompt as the model reads it. text: rendered, with every image token. prompt_tokens includes image tokens."""

    text: str
    image_token: str
    prompt_tokens: int
    pictures: tuple[SeenPicture, ...]

    @property
    def short_text(self) -> str:
        """The text with each run of image tokens written once, with their number: <image>×729."""
        run = re.compile(f"(?:{re.escape(self.image_token)}){{2,}}")
        width = len(self.image_token)
        return run.sub(lambda found: f"{self.image_token}×{len(found[0]) // width}", self.text)


def look(processor: Processor, messages: Sequence[Message]) -> Sight:
    """What a model with this processor is given for a conversation."""
    pictures = [picture for message in messages for picture in message.pictures]
    layout = processor.layout
    seen = []
    prepared = layout.prepare([each.image for each in pictures], [each.detail for each in pictures])
    for picture, inputs in zip(pictures, prepared, strict=True):
        parts = tuple(restore(part.pixels, layout.settings) for part in inputs)
        seen.append(SeenPicture(picture.image.size, parts, tuple(part.n_tokens for part in inputs)))
    prompt = processor.chat(messages)
    return Sight(processor.render(messages), layout.image_token, len(prompt.ids), tuple(seen))


def restore(pixels: NDArray[np.float32], settings: ImageSettings) -> Image.Image:
    """Normalised pixels (3, H, W) as a picture again."""
    values = pixels.astype(np.float32)
    if settings.do_normalize:
        mean, std = (
            np.asarray(values_, np.float32)[:, None, None] for values_ in (settings.image_mean, settings.image_std)
        )
        values = values * std + mean
    if settings.do_rescale:
        values = values / settings.rescale_factor
    return Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8).transpose(1, 2, 0), "RGB")


def draw(sight: Sight, names: Sequence[str]) -> Image.Image:
    """One sheet: a row for each picture, with its name, sizes and tokens above its parts.

    Raises:
        ChatError: there are no pictures to draw.
    """
    if not sight.pictures:
        raise ChatError("there is no picture to show; give at least one")
    rows = [_row(seen, name) for seen, name in zip(sight.pictures, names, strict=True)]
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def describe(seen: SeenPicture, name: str) -> str:
    """One line: cat.png · 640 × 480 → 384 × 384 · 729 tokens."""
    sizes = [f"{part.width} × {part.height}" for part in seen.parts]
    whole = sizes[0] if len(sizes) == 1 else f"{len(sizes)} parts"
    return f"{name} · {seen.size[0]} × {seen.size[1]} → {whole} · {seen.tokens} tokens"


def _row(seen: SeenPicture, name: str) -> Image.Image:
    """One picture's label, and its parts beside each other: a pixel of the sheet is a pixel that the model has."""
    title = describe(seen, name).translate(_DRAWN)
    font = ImageFont.load_default(size=LINE - 4)
    width = max(int(font.getlength(title)), sum(part.width + GAP for part in seen.parts) - GAP) + 2 * GAP
    height = GAP + LINE + GAP // 2 + max(part.height for part in seen.parts) + LINE + GAP
    row = Image.new("RGB", (width, height), PAPER)
    pen = ImageDraw.Draw(row)
    pen.text((GAP, GAP), title, INK, font=font)
    left, top = GAP, GAP + LINE + GAP // 2
    for part, tokens in zip(seen.parts, seen.part_tokens, strict=True):
        row.paste(part, (left, top))
        pen.rectangle((left - 1, top - 1, left + part.width, top + part.height), outline=FRAME)
        if len(seen.parts) > 1:
            label = f"{part.width} x {part.height} · {tokens}"
            pen.text((left, top + part.height + 2), label, INK, font=font)
        left += part.width + GAP
    return row
