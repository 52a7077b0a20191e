"""Our own linear layers with weights of 8 and 4 bits: rows are rounded and multiplied in one call.

What the tensors are is said in behold.quant.linear, what the numbers are in behold.quant.rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from behold.kernels import native

FORK_PRODUCTS = 1 << 18  # a smaller layer is done before a second thread has begun
# 32 bits hold the sums of so many products.
MAX_INPUTS_8 = 1 << 16
MAX_INPUTS_4 = 1 << 14


def suits(x: Tensor, most_inputs: int) -> bool:
    """Whether the kernels can be used for (M, K) inputs; where they can they are faster than torch."""
    return native.LIBRARY is not None and x.shape[-1] <= most_inputs


def linear_8(x: Tensor, *, weight: Tensor, scale: Tensor, sums: Tensor, bias: Tensor | None) -> Tensor:
    """(M, K) float32, contiguous as all tensors are, to (M, N) float32."""
    assert native.LIBRARY is not None
    (rows, k), n = x.shape, scale.shape[0]
    out = x.new_empty(rows, n)
    native.LIBRARY.bh_linear_q8(
        x.data_ptr(),
        weight.data_ptr(),
        scale.data_ptr(),
        sums.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        rows,
        k,
        n,
        _threads(rows * k * n),
    )
    return out


def linear_4(
    x: Tensor, *, weight: Tensor, multipliers: Tensor, scale: Tensor, sums: Tensor, bias: Tensor | None
) -> Tensor:
    """(M, K) float32, contiguous as all tensors are, to (M, N) float32."""
    assert native.LIBRARY is not None
    (rows, k), n = x.shape, scale.shape[0]
    out = x.new_empty(rows, n)
    native.LIBRARY.bh_linear_q4(
        x.data_ptr(),
        weight.data_ptr(),
        multipliers.data_ptr(),
        scale.data_ptr(),
        sums.data_ptr(),
        None if bias is None else bias.data_ptr(),
        out.data_ptr(),
        rows,
        k,
        n,
        _threads(rows * k * n),
    )
    return out


def round_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, K) to int4 codes, multipliers and scales, as behold.quant.rounding.round_groups, 50 times as fast."""
    assert native.LIBRARY is not None
    weight = weight.float().contiguous()
    (n, k), groups = weight.shape, -(-weight.shape[1] // 32)
    codes = weight.new_empty(n, groups * 32, dtype=torch.uint8)
    multipliers = weight.new_empty(n, groups, dtype=torch.int8)
    scale = weight.new_empty(n)
    addresses = (weight.data_ptr(), codes.data_ptr(), multipliers.data_ptr(), scale.data_ptr())
    native.LIBRARY.bh_round_q4(*addresses, n, k, _threads(n * k))
    return codes, multipliers, scale


def _threads(products: int) -> int:
    return torch.get_num_threads() if products >= FORK_PRODUCTS else 1
