"""oneDNN's linear layer, bias included, for float32 on a CPU: the torch operator that the compiler backend uses.

Against `F.linear` (MKL) on a 2-core AVX2 machine, with weights that come from memory as in a model, it takes 0.3 to 0.9
of the time from 1 to 256 rows. It costs some 40 µs a call, which small layers never earn back, and a whole model with
729 rows ran 5 % slower: both stay with torch (`python -m benchmarks.linear`).
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_ROWS = 256
MIN_WEIGHTS = 1 << 20
AVAILABLE: bool = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` is right and faster here: not many float32 rows, a large layer, on a CPU, and no gradients."""
    return (
        AVAILABLE
        and x.dtype is torch.float32
        and weight.dtype is torch.float32
        and x.device.type == "cpu"
        and weight.numel() >= MIN_WEIGHTS
        and 0 < x.numel() <= MAX_ROWS * x.shape[-1]
        and not torch.is_grad_enabled()
    )


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(…, K) by weight (N, K) and bias (N,) to (…, N), as F.linear up to rounding."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
