"""A pool of squashed pictures with their patch labels on disk, drawn once by all cores and resumable by block.

Only pixels and labels are kept: the truth of scene `seed` comes back from `make_scene(seed)`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from drawing import GRID, LABEL_CLASSES, SIDE, draw_scene, patch_labels, squash
from scenes import make_scene

BLOCK = 500
IMAGES, LABELS = "images.npy", "labels.npy"


@dataclass(frozen=True, slots=True)
class Pool:
    """`images` uint8 [N, SIDE, SIDE, 3], `labels` uint8 [N, patches, 6]; row i is scene `first_seed + i`."""

    images: np.ndarray
    labels: np.ndarray
    first_seed: int

    def __len__(self) -> int:
        return len(self.images)


def open_pool(folder: Path, count: int, *, first_seed: int = 0, workers: int | None = None) -> Pool:
    """The pool in `folder`, after drawing whatever is missing of its first `count` scenes."""
    count = -(-count // BLOCK) * BLOCK
    folder.mkdir(parents=True, exist_ok=True)
    images = _array(folder / IMAGES, (count, SIDE, SIDE, 3))
    labels = _array(folder / LABELS, (count, GRID * GRID, len(LABEL_CLASSES)))
    missing = [start for start in range(0, count, BLOCK) if not _flag(folder, start).exists()]
    if missing:
        with multiprocessing.get_context("spawn").Pool(workers or os.cpu_count()) as pool:
            for _ in pool.imap_unordered(_draw_block, [(folder, start, first_seed) for start in missing]):
                pass
    return Pool(images[:count], labels[:count], first_seed)


def _array(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A memory-mapped array at `path`, created if absent; an existing longer one is kept."""
    if not path.exists():
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    array = np.load(path, mmap_mode="r+")
    if len(array) < shape[0]:
        raise SystemExit(f"{path} holds {len(array)} scenes, {shape[0]} are asked for: remove its folder to draw anew")
    return array


def _flag(folder: Path, start: int) -> Path:
    return folder / f"block{start:07d}.done"


def _draw_block(job: tuple[Path, int, int]) -> None:
    folder, start, first_seed = job
    images, labels = (np.load(folder / name, mmap_mode="r+") for name in (IMAGES, LABELS))
    for index in range(start, start + BLOCK):
        scene = make_scene(first_seed + index)
        drawn = draw_scene(scene)
        images[index] = squash(drawn.image)
        labels[index] = patch_labels(scene, drawn)
    images.flush()
    labels.flush()
    _flag(folder, start).touch()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the pool ahead of training.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=64_000)
    parser.add_argument("--first-seed", type=int, default=0)
    arguments = parser.parse_args()
    open_pool(arguments.folder, arguments.count, first_seed=arguments.first_seed)
