"""The product of quantized layers in plain torch, where there are no compiled kernels: the same numbers, slower.

On x86 CPUs FBGEMM multiplies the integers, as fast as torch can. It rounds inputs itself, with one range for all rows;
one row more fixes that range so that integers stay what they are. Elsewhere rounded inputs meet widened weights.
"""

from __future__ import annotations

import functools
import platform
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from behold.quant.rounding import input_steps

MIDDLE = 64  # of the window of 128 integers


class Product:
    """One layer's weights in the order of FBGEMM, made for the first product: a second copy of them."""

    def __init__(self) -> None:
        self._packed: Any = None

    def __deepcopy__(self, memo: object) -> Product:
        return Product()

    def __reduce__(self) -> tuple[type[Product], tuple[()]]:
        return Product, ()

    def __call__(
        self, x: Tensor, weight: Callable[[], Tensor], scale: Tensor, sums: Tensor, bias: Tensor | None
    ) -> Tensor:
        """(M, K) float32 by 8-bit integers (N, K), with their (N,) scales and sums, to (M, N) float32."""
        if not can_pack() or x.shape[1] < 2 or not len(x):
            return F.linear(rounded_inputs(x, 7), weight().float() * scale[:, None], bias)
        step, zero = input_steps(x, 7)
        rounded = torch.round(x * (1 / step)[:, None]).nan_to_num_(0, 0, 0)
        inside = torch.maximum(torch.minimum(rounded, 127 - zero[:, None]), -zero[:, None])
        rounded -= inside
        if self._packed is None:
            self._packed = _packed(weight())
        middle = MIDDLE - zero[:, None]
        integers = _sums(inside - middle, self._packed).add_(middle.double() * sums)
        outliers = rounded.any(0).nonzero()[:, 0]
        if len(outliers):
            integers += rounded[:, outliers].double() @ weight()[:, outliers].double().T
        out = integers.float() * (step[:, None] * scale)
        return out if bias is None else out + bias


def rounded_inputs(x: Tensor, bits: int) -> Tensor:
    """(M, K) float32 as the layers use them: integers times the row's step."""
    step = input_steps(x, bits)[0][:, None]
    return torch.round(x * (1 / step)) * step


def _sums(integers: Tensor, packed: Any) -> Tensor:  # noqa: ANN401 - an object of torch's own
    """(M, K) integers in [-64, 63] by the packed ones: (M, N) float64, exact but for a rounding to float32."""
    fixed = integers.new_zeros(1, integers.shape[1])
    fixed[0, 0], fixed[0, 1] = -MIDDLE, MIDDLE - 1  # torch then maps that range to its 7-bit inputs, one to one
    out: Tensor = torch.ops.quantized.linear_dynamic(torch.cat([integers, fixed]), packed, True)[:-1].double()
    return out


@functools.cache
def can_pack() -> bool:
    """Whether torch brings the int8 product for this CPU."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    engine = torch.backends.quantized.engine in ("x86", "fbgemm", "onednn")
    return x86 and engine and hasattr(torch.ops.quantized, "linear_dynamic")


def _packed(weight: Tensor) -> Any:  # noqa: ANN401 - an object of torch's own
    with warnings.catch_warnings():
        # torch announces a successor of its quantised tensors; can_pack looks for the operators, not for a version
        warnings.simplefilter("ignore", UserWarning)
        n = len(weight)
        zero_points = torch.zeros(n, dtype=torch.long)
        tensor = torch._make_per_channel_quantized_tensor(weight.contiguous(), torch.ones(n).double(), zero_points, 0)
        return torch.ops.quantized.linear_prepack(tensor, None)
