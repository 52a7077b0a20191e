"""One quantized layer beside torch's: how fast it reads its weights (few rows) and multiplies (many).

    python -m benchmarks.quantized [--threads 2] [--runs 9]

All take turns, with weights that no cache holds. For up to 16 rows GB/s of weight bytes are printed, and their share of
what memory gives to a plain sum over the same bytes; for more, GOPS (two for each product). Medians.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from behold.quant.linear import Int4Linear, Int8Linear

SHAPES = ((1024, 2816), (2816, 1024), (1024, 152000), (1152, 4304), (4096, 14336))
ROWS = (1, 2, 4, 8, 16, 94, 760)
COLD_BYTES = 96 << 20
FEW = 16

Product = Callable[[Tensor], Tensor]


def medians(products: dict[str, list[Product]], x: Tensor, runs: int) -> dict[str, float]:
    """Seconds of one call, by name; the copies of a product are gone through one after another."""
    times: dict[str, list[float]] = {name: [] for name in products}
    for number in range(runs + 1):
        for name, copies in products.items():
            start = time.perf_counter()
            for product in copies:
                product(x)
            if number:  # the first is a warm-up
                times[name].append((time.perf_counter() - start) / len(copies))
    return {name: median(each) for name, each in times.items()}


def copies(inner: int, outer: int) -> dict[str, list[Product]]:
    """Each kind of layer, as often as it takes to outgrow the caches."""
    linear = nn.Linear(inner, outer).requires_grad_(False)
    int8, int4 = Int8Linear.of(linear), Int4Linear.of(linear)
    found: dict[str, list[Product]] = {}
    for layer in (int8, int4):
        often = max(1, COLD_BYTES // layer.n_bytes)
        found[layer.scheme] = [type(layer).from_state(_cloned(layer.state()), **_sides(linear)) for _ in range(often)]
    often = max(1, COLD_BYTES // (inner * outer))
    packed = [torch.ops.quantized.linear_prepack(_quantized(linear.weight), linear.bias) for _ in range(often)]
    found["linear_dynamic"] = [_dynamic(each) for each in packed]
    weights = [linear.weight.clone() for _ in range(max(1, COLD_BYTES // (4 * inner * outer)))]
    found["F.linear"] = [_plain(weight, linear.bias) for weight in weights]
    return found


def _cloned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def _sides(linear: nn.Linear) -> dict[str, int]:
    return {"in_features": linear.in_features, "out_features": linear.out_features}


def _quantized(weight: Tensor) -> Tensor:
    return torch.quantize_per_tensor(weight, float(weight.abs().max()) / 127, 0, torch.qint8)


def _dynamic(packed: Any) -> Product:
    return lambda x: torch.ops.quantized.linear_dynamic(x, packed, True)


def _plain(weight: Tensor, bias: Tensor) -> Product:
    return lambda x: F.linear(x, weight, bias)


def memory_speed() -> float:
    """GB/s of a sum over bytes that no cache holds."""
    data = torch.ones(COLD_BYTES // 4)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - start)
    return COLD_BYTES / median(times) / 1e9


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantized", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--shapes", type=int, nargs="*", default=range(len(SHAPES)), help="which of them, by number")
    parser.add_argument("--rows", type=int, nargs="*", default=ROWS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    floor = memory_speed()
    print(f"memory: {floor:.1f} GB/s\n")
    with torch.inference_mode():
        for inner, outer in (SHAPES[number] for number in options.shapes):
            products = copies(inner, outer)
            sizes = {"int8": inner * outer, "int4": inner * outer * 17 // 32, "linear_dynamic": inner * outer}
            print(f"{inner} to {outer}\n\n| rows | " + " | ".join(products) + " |\n|---|" + "---|" * len(products))
            for rows in options.rows:
                found = medians(products, torch.randn(rows, inner), options.runs)
                cells = []
                for name, seconds in found.items():
                    speed = sizes.get(name, 4 * inner * outer) / seconds / 1e9
                    few = f"{speed:.1f} GB/s ({speed / floor:.0%}), {seconds * 1e6:.0f} us"
                    cells.append(few if rows <= FEW else f"{2 * rows * inner * outer / seconds / 1e9:.0f} GOPS")
                print(f"| {rows} | " + " | ".join(cells) + " |", flush=True)
            print()


if __name__ == "__main__":
    main()
