"""Attention on a CPU: our kernels against torch's, and how to run a decode step over a ragged batch.

    python -m benchmarks.attention [--threads N] [--only kernels|batches]

kernels: milliseconds of one layer, our kernels and `scaled_dot_product_attention` by turns, on data that a model's
other layers have pushed out of the caches. torch: the product alone, with keys and values where it wants them.

batches, the measurement behind two decisions in the architecture, for each mix of lengths:

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

from behold.kernels.attention import RowTokens, Way, attend_all
from behold.kernels.attention_q8 import Rounded
from behold.kernels.rows import KeptRow
from behold.nn.attention import attend_one

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


TOWERS = {
    "SigLIP, 384 pixels": (729, 16, 72),
    "CLIP, 336 pixels": (577, 16, 64),
    "idefics2, 980 pixels": (4900, 16, 72),
}
TOKENS = (  # sequences, context, new tokens, heads, heads for keys, places of a head
    (1, 0, 760, 16, 16, 64),
    (1, 1024, 1024, 16, 16, 64),
    (1, 760, 64, 16, 16, 64),
    (1, 760, 32, 16, 16, 64),
    (1, 760, 16, 16, 16, 64),
    (1, 760, 8, 16, 16, 64),
    (1, 760, 4, 16, 16, 64),
    (1, 800, 1, 16, 16, 64),
    (8, 800, 1, 16, 16, 64),
    (1, 4096, 1, 16, 16, 64),
    (1, 0, 760, 32, 8, 128),
    (1, 760, 16, 32, 8, 128),
    (1, 760, 8, 32, 8, 128),
    (1, 760, 4, 32, 8, 128),
    (8, 800, 1, 32, 8, 128),
)
LAYERS = 12
KINDS = (torch.float32, torch.float16, torch.int8)


def by_turns(ways: dict[str, Callable[[int], object]], repeats: int) -> list[str]:
    """Median milliseconds of each; a way is called with the number of the layer, another each time."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats):
        for name, run in ways.items():
            start = time.perf_counter()
            run(turn % LAYERS)
            found[name].append(time.perf_counter() - start)
    return [f"{1000 * median(timings[1:]):.3f}" for timings in found.values()]


def towers() -> Table:
    """Vision towers: every patch sees every other."""
    table = Table("patches", "torch", "ours", "ours, rounded", title="ms a layer, one picture")
    for name, (length, heads, dim) in TOWERS.items():
        q, k, v = torch.randn(3, 1, length, heads * dim)
        joined = torch.cat((q, k, v), dim=2)
        split = [x.view(1, length, heads, dim).transpose(1, 2) for x in (q, k, v)]
        ways: dict[str, Callable[[int], object]] = {
            "torch": lambda _, s=split: F.scaled_dot_product_attention(*s),
            "ours": lambda _, x=(q, k, v), n=length, h=heads: attend_all(*x, h, start=0, stop=n),
            "rounded": lambda _, x=joined, n=length, h=heads: Rounded(x, h).attend(0, n),
        }
        table.add_row(f"{name}: {length}", *by_turns(ways, 5 if length > 1000 else 21))
    return table


def tokens() -> Table:
    """Rows of the cache: prompts read and tokens written, rows of 32, 16 and 8 bits."""
    kernels = [f"{way.name.lower()}, {dtype.itemsize * 8} bits" for dtype in KINDS for way in Way]
    table = Table("sequences × (context + new)", "heads", "torch", *kernels, title="ms a layer")
    for case in TOKENS:
        count, context, new, heads, kv_heads, dim = case
        found = by_turns(ways_of_tokens(case), 13 if new > 100 else 61)
        table.add_row(f"{count} × ({context} + {new})", f"{heads}/{kv_heads} × {dim}", *found)
    return table


def ways_of_tokens(case: tuple[int, int, int, int, int, int]) -> dict[str, Callable[[int], object]]:
    """In the order of the columns; case: see TOKENS."""
    count, context, new, heads, kv_heads, dim = case
    q, k, v = (torch.randn(count * new, n, dim) for n in (heads, kv_heads, kv_heads))
    out = torch.empty_like(q)
    rows = {dtype: [filled(kv_heads, context + new, dim, dtype) for _ in range(count)] for dtype in KINDS}

    def by_torch(layer: int) -> None:
        for i, row in enumerate(rows[torch.float32]):
            attend_one(q[i * new : (i + 1) * new], *row.numbers[layer])

    def ours(way: Way, rows: list[KeptRow]) -> Callable[[int], object]:
        ready = RowTokens(way, [(row, context, new, i * new) for i, row in enumerate(rows)])
        return lambda layer: ready.attend(layer, q, k, v, out, window=None)

    kernels = {f"{way.name} {dtype}": ours(way, rows[dtype]) for dtype in KINDS for way in Way}
    return {"torch": by_torch, **kernels}


def filled(kv_heads: int, places: int, dim: int, dtype: torch.dtype) -> KeptRow:
    """A row of random keys and values."""
    row = KeptRow.empty((LAYERS, 2, kv_heads, places, dim), dtype, torch.device("cpu"))
    for layer in range(LAYERS):
        row.put(layer, 0, *torch.randn(2, places, kv_heads, dim))
    return row


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
    parser.add_argument("--only", choices=["kernels", "batches"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        if arguments.only != "batches":
            Console().print(towers(), tokens())
        if arguments.only != "kernels":
            batches()


def batches() -> None:
    """Ways to run a decode step over sequences of many lengths."""
    for shape, (heads, kv_heads, dim) in SHAPES.items():
        table = Table("cached tokens", "padded", "loop", "pages", "copied", title=f"ms a layer, {shape}")
        for mix, lengths in MIXES.items():
            found = measure(lengths, heads, kv_heads, dim)
            table.add_row(mix, *(f"{1000 * value:.2f}" for value in found.values()))
        Console().print(table)


if __name__ == "__main__":
    main()
