"""Our own linear layer for few float32 rows: weights are read once, at the speed of memory.

Against oneDNN (kernels/onednn.py) on a 2-core AVX2 machine, with weights that come from memory as in a model, it takes
0.8 of the time for one row, 0.5 for two and four, 0.65 for eight and 0.8 for sixteen (`python -m benchmarks.linear`).
Rows do not change each other's results.
"""

from __future__ import annotations

import torch
from torch import Tensor

from behold.kernels import native

MAX_ROWS = 16
MIN_WEIGHTS = 1 << 14
FORK_WEIGHTS = 1 << 17  # a smaller layer is done before a second thread has begun


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` is right and faster here."""
    return (
        native.LIBRARY is not None
        and 0 < x.numel() <= MAX_ROWS * x.shape[-1]
        and weight.numel() >= MIN_WEIGHTS
        and native.ready(x, weight)
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None = None) -> Tensor:
    """(…, K) by weight (N, K) and bias (N,) to (…, N), as F.linear up to rounding; plus: (…, N), is added."""
    n, k = weight.shape
    out = x.new_empty(*x.shape[:-1], n)
    native.call(
        "bh_linear_f32",
        x.data_ptr(),
        weight.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if plus is None else plus.data_ptr(),
        out.data_ptr(),
        x.numel() // k,
        k,
        n,
        torch.get_num_threads() if n * k >= FORK_WEIGHTS else 1,
        kept=(x, weight, bias, plus, out),
    )
    return out
