"""Paint a scene with Pillow, and say what each patch of the squashed picture shows.

The model sees every picture squashed to SIDE x SIDE pixels in GRID x GRID patches, so places and labels are worked out
in units of the picture's width and height. The grid of places is 3 x 3 with 3 x 3 patches each.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from scenes import COLOURS, SHAPES, SIZES, Scene, Thing, is_variation, make_scene

SIDE = 144
PATCH = 16
GRID = SIDE // PATCH
CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
# Labels per patch, 0 meaning "nothing": shape, colour, size, cell of a shape whose centre is here, character in the
# left and in the right half of the patch.
LABEL_CLASSES = (1 + len(SHAPES), 1 + len(COLOURS), 1 + len(SIZES), 10, 1 + len(CHARACTERS), 1 + len(CHARACTERS))

_RGB = {
    "red": (215, 35, 35),
    "orange": (245, 140, 20),
    "yellow": (245, 220, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 215),
    "purple": (140, 50, 170),
    "black": (18, 18, 18),
    "white": (246, 246, 246),
}
# Looked up by name in the system's font folders; Pillow's own font is always there.
_FONT_NAMES = ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono-Bold.ttf")

Box = tuple[float, float, float, float]  # left, top, right, bottom as fractions of the picture


@dataclass(frozen=True, slots=True)
class Drawn:
    """A painted scene: `boxes` of the things in their order, and of the characters of the text."""

    image: Image.Image
    boxes: list[Box]
    characters: list[tuple[str, Box]]


def draw_scene(scene: Scene, size: tuple[int, int] | None = None) -> Drawn:
    """Paint `scene`, deterministically from its seed; `size` (width, height) overrides the random one."""
    # A variation keeps the canvas and the background of its original, so that the change is what differs.
    canvas_seed = scene.seed - 1 if is_variation(scene.seed) else scene.seed
    canvas = random.Random(f"canvas {canvas_seed}")
    rng = random.Random(f"things {scene.seed}")
    family = [scene]
    if is_variation(canvas_seed + 1):
        family = [make_scene(canvas_seed), make_scene(canvas_seed + 1)]
    colours = {thing.colour for member in family for thing in member.things}
    size = size or _canvas_size(canvas)
    pixels, tone = _background(size, canvas, dark="black" not in colours, pale="white" not in colours)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    boxes = [_draw_thing(draw, thing, size, random.Random(f"{canvas_seed} {thing.cell}")) for thing in scene.things]
    characters = _draw_text(draw, scene, size, tone, canvas) if scene.text else []
    if rng.random() < 0.5:
        image = _add_noise(image, rng)
    return Drawn(image, boxes, characters)


def squash(image: Image.Image) -> np.ndarray:
    """The picture as the exported processor resizes it: uint8 [SIDE, SIDE, 3]."""
    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def patch_labels(scene: Scene, drawn: Drawn) -> np.ndarray:
    """Dense truth for the tower: uint8 [GRID * GRID, 6], columns as in LABEL_CLASSES."""
    labels = np.zeros((GRID, GRID, len(LABEL_CLASSES)), np.uint8)
    for thing, box in zip(scene.things, drawn.boxes, strict=True):
        left, top, right, bottom = (edge * GRID for edge in box)
        said = (1 + SHAPES.index(thing.shape), 1 + COLOURS.index(thing.colour), 1 + SIZES.index(thing.size))
        for row in range(int(top), min(math.ceil(bottom), GRID)):
            for column in range(int(left), min(math.ceil(right), GRID)):
                high = min(row + 1, bottom) - max(row, top)
                wide = min(column + 1, right) - max(column, left)
                if high * wide >= 0.3 * min(1.0, (bottom - top) * (right - left)):
                    labels[row, column, :3] = said
        middle = int((top + bottom) / 2), int((left + right) / 2)
        labels[middle][:3] = said
        labels[middle][3] = 1 + thing.cell
    for character, (left, top, right, bottom) in drawn.characters:
        for row in range(GRID):
            if not top - 0.25 / GRID <= (row + 0.5) / GRID <= bottom + 0.25 / GRID:
                continue
            for half in range(2 * GRID):
                if left <= (half + 0.5) / (2 * GRID) < right:
                    labels[row, half // 2, 4 + half % 2] = 1 + CHARACTERS.index(character)
    return labels.reshape(GRID * GRID, -1)


def _canvas_size(rng: random.Random) -> tuple[int, int]:
    """Mostly between 3:4 and 4:3, sometimes up to 1:2 or 2:1."""
    limit = math.log(4 / 3) if rng.random() < 0.75 else math.log(2)
    aspect = math.exp(rng.uniform(-limit, limit))
    area = rng.uniform(150, 380) ** 2
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def _background(size: tuple[int, int], rng: random.Random, *, dark: bool, pale: bool) -> tuple[np.ndarray, float]:
    """uint8 [height, width, 3] in muted tones that no shape's colour comes near, and its mean brightness."""
    width, height = size
    level = rng.uniform(45 if dark else 100, 250 if pale else 180)
    first = np.array([level + rng.uniform(-10, 10) for _ in range(3)])
    second = np.array([value + rng.uniform(-16, 16) for value in first])
    style = rng.choice(("plain", "gradient", "stripes", "clouds"))
    across, down = np.arange(width) / width, np.arange(height) / height
    angle = rng.uniform(0, 2 * math.pi)
    slope = math.cos(angle) * across[None, :] + math.sin(angle) * down[:, None]
    if style == "plain":
        mix = np.zeros((height, width))
    elif style == "gradient":
        mix = slope
    elif style == "stripes":
        mix = (slope * rng.uniform(4, 14) % 1 > 0.5).astype(float)
    else:
        coarse = np.array([rng.randrange(256) for _ in range(48)], np.uint8).reshape(6, 8)
        mix = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)) / 255
    pixels = first + mix[..., None] * (second - first)
    return np.clip(pixels, 0, 255).astype(np.uint8), level


def _draw_thing(draw: ImageDraw.ImageDraw, thing: Thing, size: tuple[int, int], rng: random.Random) -> Box:
    """Paint one shape somewhere inside its cell; returns its box in fractions of the picture."""
    width, height = size
    low, high = (0.13, 0.165) if thing.size == "small" else (0.24, 0.3)
    radius = rng.uniform(low, high) * min(size) / 2
    cell_width, cell_height = width / 3, height / 3
    spare_x, spare_y = cell_width / 2 - radius * 1.06, cell_height / 2 - radius * 1.06
    x = (thing.column + 0.5) * cell_width + rng.uniform(-spare_x, spare_x)
    y = (thing.row + 0.5) * cell_height + rng.uniform(-spare_y, spare_y)
    red, green, blue = (min(255, max(0, value + rng.randint(-12, 12))) for value in _RGB[thing.colour])
    fill = (red, green, blue)
    square = (x - radius, y - radius, x + radius, y + radius)
    turn = rng.uniform(-0.14, 0.14)
    if thing.shape == "circle":
        draw.ellipse(square, fill=fill)
    elif thing.shape == "ring":
        draw.ellipse(square, outline=fill, width=max(2, round(radius * 0.42)))
    else:
        draw.polygon([(x + radius * px, y + radius * py) for px, py in _outline(thing.shape, turn)], fill=fill)
    return square[0] / width, square[1] / height, square[2] / width, square[3] / height


def _outline(shape: str, turn: float) -> list[tuple[float, float]]:
    """Corners in the unit circle, turned by `turn` radians."""
    if shape == "square":
        corners = [(1.0, math.pi / 4 + i * math.pi / 2) for i in range(4)]
    elif shape == "triangle":
        corners = [(1.1, -math.pi / 2 + i * 2 * math.pi / 3) for i in range(3)]
    elif shape == "star":
        corners = [(1.05 if i % 2 == 0 else 0.45, -math.pi / 2 + i * math.pi / 5) for i in range(10)]
    else:
        arm, end = 0.3, 0.95
        points = [(-arm, -end), (arm, -end), (arm, -arm), (end, -arm), (end, arm), (arm, arm)]
        points += [(-px, -py) for px, py in points]
        corners = [(math.hypot(px, py), math.atan2(py, px)) for px, py in points]
    return [(r * math.cos(a + turn), r * math.sin(a + turn)) for r, a in corners]


def _draw_text(
    draw: ImageDraw.ImageDraw, scene: Scene, size: tuple[int, int], tone: float, rng: random.Random
) -> list[tuple[str, Box]]:
    """Paint the text into its row, one character at a time; returns each with its box in fractions."""
    text = scene.text or ""
    width, height = size
    face = rng.randrange(1 + len(_FONT_NAMES))
    # The advance is fixed in units of the squashed picture, which is what legibility depends on.
    advance = rng.uniform(14.5, min(24.0, 0.94 * SIDE / len(text))) * width / SIDE
    points = max(8, min(round(advance * rng.uniform(1.15, 1.4)), round(height * 0.3)))
    font = _font(face, points)
    total = advance * len(text)
    start = rng.uniform(0.02 * width, width - total - 0.02 * width)
    cap = points * 0.72
    spare = max(0.0, height / 3 - cap * 1.15) / 2
    baseline = (scene.text_row + 0.5) * height / 3 + cap / 2 + rng.uniform(-spare, spare)
    pale = (tone < 120) if not 100 < tone < 150 else rng.random() < 0.5
    inks = ((250, 250, 250), (255, 240, 200)) if pale else ((10, 10, 10), (20, 20, 90), (90, 10, 20))
    ink = rng.choice(inks)
    characters = []
    for index, character in enumerate(text):
        middle = start + (index + 0.5) * advance
        draw.text((middle, baseline), character, font=font, fill=ink, anchor="ms")
        left, right = (start + index * advance) / width, (start + (index + 1) * advance) / width
        characters.append((character, (left, (baseline - cap) / height, right, baseline / height)))
    return characters


@cache
def _font(face: int, points: int) -> FreeTypeFont | ImageFont.ImageFont:
    """Face 0 is Pillow's own font, which also stands in for those this system lacks."""
    if face:
        try:
            return ImageFont.truetype(_FONT_NAMES[face - 1], points)
        except OSError:
            pass
    return ImageFont.load_default(points)


def _add_noise(image: Image.Image, rng: random.Random) -> Image.Image:
    """Uniform noise of a random strength on every channel."""
    strength = rng.randint(4, 24)
    pixels = np.asarray(image).astype(np.int16)
    noise = np.random.default_rng(rng.randrange(2**32)).integers(-strength, strength + 1, pixels.shape, dtype=np.int8)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))
