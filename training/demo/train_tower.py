"""Stage 1: teach the tower alone to name what each patch shows. Run again with the same arguments to resume."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from model import DenseHeads, TokenIds, build_model, dense_loss, tower_features
from optim import learning_rate, make_optimizers
from pool import Pool, open_pool
from scenes import HELD_OUT_SEED

COLUMNS = ("shape", "colour", "size", "centre", "left character", "right character")


class DenseBatches(Dataset[tuple[Tensor, Tensor]]):
    """Item `step` is that step's batch, drawn from (seed, step) alone, so that resuming needs no other state."""

    def __init__(self, pool: Pool, batch: int, seed: int) -> None:
        self.pool, self.batch, self.seed = pool, batch, seed

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        rows = np.sort(np.random.default_rng((self.seed, 1, step)).integers(len(self.pool), size=self.batch))
        return torch.from_numpy(self.pool.images[rows]), torch.from_numpy(self.pool.labels[rows])


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def save_atomically(state: object, path: Path) -> None:
    """An interruption while saving leaves the previous state."""
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    os.replace(unfinished, path)


def train_tower(arguments: argparse.Namespace) -> None:
    device = pick_device(arguments.device)
    pool = open_pool(arguments.work / "pool", arguments.scenes)
    held = open_pool(arguments.work / "held", 500, first_seed=HELD_OUT_SEED)
    torch.manual_seed(arguments.seed)
    model = build_model(TokenIds(size=8, pad=0, end=1, image=2)).to(device)
    heads = DenseHeads().to(device)
    tower = model.model.vision_tower
    optimizers = make_optimizers([tower, heads], arguments.lr)
    first, path = 0, arguments.work / "tower.pt"
    if path.exists():
        state = torch.load(path, map_location=device, weights_only=True)
        tower.load_state_dict(state["tower"])
        heads.load_state_dict(state["heads"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first = state["step"]

    def save(step: int) -> None:
        state = {"step": step, "tower": tower.state_dict(), "heads": heads.state_dict()}
        save_atomically(state | {"optimizers": [optimizer.state_dict() for optimizer in optimizers]}, path)

    batches = DenseBatches(pool, arguments.batch, arguments.seed)
    loader = DataLoader(batches, batch_size=None, sampler=range(first, arguments.steps), num_workers=1)
    started = time.monotonic()
    for step, (images, labels) in enumerate(loader, start=first):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, arguments.steps, arguments.lr)
        loss, hits = dense_loss(heads(tower_features(model, images.to(device))), labels.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*tower.parameters(), *heads.parameters()], 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % 10 == 0:
            print(f"{step} {time.monotonic() - started:.0f}s loss {loss.item():.4f}", flush=True)
        if step % 100 == 99 or step + 1 == arguments.steps:
            save(step + 1)
            with torch.no_grad():
                logits = heads(tower_features(model, torch.from_numpy(held.images[:256]).to(device)))
                _, hits = dense_loss(logits, torch.from_numpy(held.labels[:256]).to(device))
            print(
                "held out:", " ".join(f"{n} {h:.3f}" for n, h in zip(COLUMNS, hits.tolist(), strict=True)), flush=True
            )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for pictures and states")
    parser.add_argument("--scenes", type=int, default=64_000, help="size of the pool of pictures")
    parser.add_argument("--steps", type=int, default=1_250)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    return parser.parse_args()


if __name__ == "__main__":
    train_tower(parse_arguments())
