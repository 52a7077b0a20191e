"""The work: seeded pictures and questions, as bodies of the OpenAI API; the same seed is the same work for all."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
SHAPES = ("circle", "square", "triangle")
PICTURE_QUESTIONS = (
    "What do we see in this image?",
    "How many shapes are there?",
    "Is there a circle?",
    "What is in the middle?",
    "What colour is the square?",
    "Describe the picture.",
)
TEXT_QUESTIONS = ("Hello!", "Who are you?", "What can you do?", "Tell me about the sea.", "What is a picture?")


@dataclass(frozen=True)
class Mix:
    """images: the share of requests with a picture. repeats: of those, the share about a picture that was shown before.

    side: of the pictures, in pixels. streams: the share that is streamed.
    """

    images: float = 0.6
    repeats: float = 0.3
    side: int = 384
    streams: float = 1.0


def picture(seed: int, side: int) -> Image.Image:
    """One to four plain shapes in a 3 x 3 grid, with a mark of the seed in a corner so that no two are equal."""
    rng = random.Random(f"picture {seed}")
    canvas = Image.new("RGB", (side, side), rng.choice(("white", "lightgray", "beige")))
    draw = ImageDraw.Draw(canvas)
    for cell in rng.sample(range(9), rng.randint(1, 4)):
        x, y, width = cell % 3 * side // 3, cell // 3 * side // 3, side // 3
        pad = width // 6
        box = (x + pad, y + pad, x + width - pad, y + width - pad)
        colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
        if shape == "circle":
            draw.ellipse(box, fill=colour)
        elif shape == "square":
            draw.rectangle(box, fill=colour)
        else:
            draw.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) / 2, box[1])], fill=colour)
    canvas.putpixel((0, 0), (seed % 256, seed // 256 % 256, seed // 65536 % 256))
    return canvas


def data_uri(image: Image.Image) -> str:
    """A picture as PNG in a data: URI."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def requests(count: int, mix: Mix, *, seed: int, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """`count` bodies for /v1/chat/completions, with `fields` in each; texts and pictures depend on the seed alone."""
    rng = random.Random(f"requests {seed}")
    shown: list[str] = []
    bodies = []
    for number in range(count):
        if rng.random() >= mix.images:
            content: Any = rng.choice(TEXT_QUESTIONS)
        else:
            if not shown or rng.random() >= mix.repeats:
                shown.append(data_uri(picture(1000 * seed + number, mix.side)))
                uri = shown[-1]
            else:
                uri = rng.choice(shown)
            text = {"type": "text", "text": rng.choice(PICTURE_QUESTIONS)}
            content = [{"type": "image_url", "image_url": {"url": uri}}, text]
        body = {"messages": [{"role": "user", "content": content}], "stream": rng.random() < mix.streams, **fields}
        bodies.append(body)
    return bodies
