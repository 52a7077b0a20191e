"""oneDNN's linear layer, bias included, for float32 on a CPU: the torch operator that the compiler backend uses.

Against `F.linear` (MKL) on a 2-core AVX2 machine it takes 0.4–0.7 of the time from 16 to 160 rows; with one row it is
many times slower, and a whole model with 729 rows ran 5 % slower. Both ends stay with torch
(`python -m benchmarks.linear`).
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = range(2, 257)
AVAILABLE: bool = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` is right and faster here: a middling number of float32 rows on a CPU, and no gradients."""
    return (
        AVAILABLE
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.device.type == "cpu"
        and x.numel() // x.shape[-1] in ROWS
        and not torch.is_grad_enabled()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(…, K) by weight (N, K) and bias (N,) to (…, N), as F.linear up to rounding."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
