"""A photograph of 12 megapixels from JPEG bytes to the pixels of the vision tower, step by step.

    python -m benchmarks.pictures [--runs 9] [--write]

The picture is made here (blocks at two scales, blended: 2.4 MB at quality 90), upright, and lying on its side as
telephones store it. *decoding alone* is libjpeg-turbo through Pillow: the floor, as long as every pixel is decoded.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from behold.chat.media import load_image
from behold.chat.policy import MediaPolicy
from behold.processing.images import digest, normalize, resize
from benchmarks.report import machine, markdown, package_version, write_results

ROOT = Path(__file__).parents[1]
SIZE, SIDE = (4000, 3000), 384
BAR_MS = 60
ON_ITS_SIDE = 6


def photograph(orientation: int = 1) -> bytes:
    """The JPEG."""
    random = np.random.default_rng(0)
    scales = [Image.fromarray(random.integers(0, 256, (h, w, 3), np.uint8)) for h, w in ((30, 40), (750, 1000))]
    coarse, fine = (each.resize(SIZE, Image.Resampling.BICUBIC) for each in scales)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = BytesIO()
    Image.blend(coarse, fine, 0.15).save(file, "JPEG", quality=90, exif=exif)
    return file.getvalue()


def took(work: Callable[[], object], runs: int) -> list[float]:
    """Milliseconds of each run, after two that do not count."""
    times = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return times[2:]


def cell(times: list[float]) -> str:
    return f"{median(times):.0f} ms ({min(times):.0f}–{max(times):.0f})"


def decoded(data: bytes) -> Image.Image:
    image = Image.open(BytesIO(data))
    image.load()
    return image


def prepared(data: bytes, policy: MediaPolicy | None = None) -> None:
    """What is done for a request, but for the text."""
    small = resize(load_image(data, policy=policy), (SIDE, SIDE), Image.Resampling.BICUBIC)
    half = (0.5,) * 3
    digest(normalize(small, rescale_factor=1 / 255, mean=half, std=half))


def section(runs: int) -> str:
    """The Markdown section."""
    lines = [["", "upright", "on its side"]]
    files = [photograph(), photograph(ON_ITS_SIDE)]
    images = [load_image(data) for data in files]
    sizes = (SIDE, SIDE)
    steps: list[tuple[str, list[Callable[[], object]]]] = [
        ("bytes to pixels of the tower", [lambda data=data: prepared(data) for data in files]),
        ("the same, `jpeg_side=768`", [lambda d=data: prepared(d, MediaPolicy(jpeg_side=768)) for data in files]),
        ("decoding alone", [lambda data=data: decoded(data) for data in files]),
        ("resizing", [lambda image=image: resize(image, sizes, 3) for image in images]),
        ("resizing by Pillow", [lambda image=image: image.resize(sizes, 3) for image in images]),
    ]
    times = {name: [took(work, runs) for work in works] for name, works in steps}
    lines += [[name, *map(cell, each)] for name, each in times.items()]
    upright = median(times[steps[0][0]][0])
    return "\n\n".join(
        (
            f"## A photograph of 12 megapixels to {SIDE} × {SIDE}",
            f"JPEG of {len(files[0]) / 1e6:.1f} MB in memory, {torch.get_num_threads()} threads, medians of {runs}. "
            f"{machine()}; Pillow {package_version('Pillow')}; `python -m benchmarks.pictures --write`.",
            markdown(lines),
            f"- to reach, upright: ≤ {BAR_MS} ms: {'reached' if upright <= BAR_MS else 'not reached'}\n"
            "- *decoding alone* is what Pillow does by itself; behold takes large pages for it, which is why all of it "
            "may take less",
        )
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--write", action="store_true", help="put a section into benchmarks/RESULTS.md")
    options = parser.parse_args()
    text = section(options.runs)
    print(text)
    if options.write:
        write_results(ROOT / "benchmarks" / "RESULTS.md", text)


if __name__ == "__main__":
    main()
