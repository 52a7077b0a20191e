"""How to run a decode step's attention over a ragged batch: the measurement behind two decisions in the architecture.

    python -m benchmarks.attention [--threads N]

For each mix of lengths, milliseconds of one layer:

    padded   one masked call over all rows up to the longest
    loop     one call a row over its own length
    pages    keys and values gathered from 16-token pages, then as the loop: what pages cost without a kernel for them
    copied   rows that are joined anew with each token (`torch.cat`), then as the loop
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

PAGE_TOKENS = 16
SHAPES = {"0.5B (16 heads of 64)": (16, 16, 64), "7B (32 heads of 128, 8 for keys)": (32, 8, 128)}
MIXES = {
    "1 × 760": [760],
    "4 × 760": [760] * 4,
    "16 × 760": [760] * 16,
    "8, from 730 to 790": list(range(730, 791, 8)),
    "1 × 760, 7 × 40": [760] + [40] * 7,
    "8, from 40 to 760": list(range(40, 761, 102)),
}


def seconds(run: Callable[[], object], repeats: int = 30) -> float:
    """Median of a few timings, after a warm-up."""
    for _ in range(3):
        run()
    timings = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        timings.append(time.perf_counter() - start)
    return median(timings)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """q: (B, Hq, d); k, v: (B, Hkv, S, d). Query heads of a group are query rows. Returns (B, Hkv, Hq / Hkv, d)."""
    grouped = q.view(q.shape[0], k.shape[1], -1, q.shape[-1])
    return F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask)


def measure(lengths: list[int], heads: int, kv_heads: int, dim: int) -> dict[str, float]:
    """Seconds of each way."""
    rows, longest = len(lengths), max(lengths)
    q = torch.randn(rows, heads, dim)
    keys, values = torch.randn(2, rows, kv_heads, longest, dim)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None])[:, None, None]
    pages = -(-longest // PAGE_TOKENS)
    page_keys, page_values = torch.randn(2, rows * pages, kv_heads, PAGE_TOKENS, dim)
    shuffled = torch.randperm(rows * pages).view(rows, pages)
    new = torch.randn(1, kv_heads, 1, dim)

    def loop() -> None:
        for row, length in enumerate(lengths):
            attend(q[row : row + 1], keys[row : row + 1, :, :length], values[row : row + 1, :, :length])

    def paged() -> None:
        for row, length in enumerate(lengths):
            table = shuffled[row, : -(-length // PAGE_TOKENS)]
            k, v = (store[table].transpose(0, 1).flatten(1, 2)[None, :, :length] for store in (page_keys, page_values))
            attend(q[row : row + 1], k, v)

    def copied() -> None:
        for row, length in enumerate(lengths):
            k = torch.cat((keys[row : row + 1, :, : length - 1], new), dim=2)
            v = torch.cat((values[row : row + 1, :, : length - 1], new), dim=2)
            attend(q[row : row + 1], k, v)

    return {
        "padded": seconds(lambda: attend(q, keys, values, mask)),
        "loop": seconds(loop),
        "pages": seconds(paged),
        "copied": seconds(copied),
    }


def main() -> None:
    """Measure every mix for every shape and print one table each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attention")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    torch.manual_seed(0)
    for shape, (heads, kv_heads, dim) in SHAPES.items():
        table = Table("cached tokens", "padded", "loop", "pages", "copied", title=f"ms a layer, {shape}")
        for mix, lengths in MIXES.items():
            with torch.inference_mode():
                found = measure(lengths, heads, kv_heads, dim)
            table.add_row(mix, *(f"{1000 * value:.2f}" for value in found.values()))
        Console().print(table)


if __name__ == "__main__":
    main()
