"""One linear layer: torch's own product, oneDNN's and ours, from one row to many. Where should the thresholds be?

    python -m benchmarks.linear [--threads 2] [--runs 9]

They take turns; oneDNN's and our median time over torch's is printed, below 1 where they are faster.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median

import torch
from torch.nn import functional as F

from behold.kernels import linear_f32, native, onednn

LAYERS = {"decoder, 0.5B": (1024, 2816), "tower": (1152, 4304), "decoder, 8B": (4096, 14336)}
COLD_BYTES = 200 << 20
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 729)


def ratios(inner: int, outer: int, rows: int, runs: int) -> str:
    """Times over torch's for (rows, inner) by (outer, inner), with weights that no cache holds."""
    x, bias = torch.randn(rows, inner), torch.randn(outer)
    weights = [torch.randn(outer, inner) for _ in range(max(1, COLD_BYTES // (4 * inner * outer)))]
    products = {"torch": F.linear, "onednn": onednn.linear}
    if native.LIBRARY is not None:
        products["ours"] = linear_f32.linear
    times: dict[str, list[float]] = {name: [] for name in products}
    for number in range(runs + 1):
        for name, product in products.items():
            start = time.perf_counter()
            for weight in weights:
                product(x, weight, bias)
            if number:  # the first is a warm-up
                times[name].append(time.perf_counter() - start)
    plain = median(times.pop("torch"))
    return " · ".join(f"{median(each) / plain:.2f}" for each in times.values())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.linear", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("oneDNN · ours\n\n| rows | " + " | ".join(LAYERS) + " |\n|---|" + "---|" * len(LAYERS))
    with torch.inference_mode():
        for rows in ROWS:
            figures = [ratios(*sides, rows, options.runs) for sides in LAYERS.values()]
            print(f"| {rows} | " + " | ".join(figures) + " |", flush=True)


if __name__ == "__main__":
    main()
