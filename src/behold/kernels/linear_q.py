"""Our own linear layers with weights of 8 and 4 bits: rows are rounded and multiplied in one call.

What the tensors are is said in behold.quant.linear, what the numbers are in behold.quant.rounding.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from behold.kernels import native

FORK_PRODUCTS = 1 << 18  # a smaller layer is done before a second thread has begun
FEW = 16  # rows up to which reading the weights is what takes the time: csrc/linear_q.cpp
# 32 bits hold the sums of so many products.
MAX_INPUTS_8 = 1 << 16
MAX_INPUTS_4 = 1 << 14


class After(enum.IntEnum):
    """What becomes of the products: what csrc/linear_q.h calls the same."""

    STORE = 0
    ADD = 1  # to the residual
    TIMES_SILU = 2  # the second layer's, of the first's
    GELU = 3  # in its tanh form


@dataclass(frozen=True, slots=True)
class Parts:
    """What a layer is made of; multipliers are None at 8 bits."""

    weight: Tensor
    multipliers: Tensor | None
    scale: Tensor
    sums: Tensor
    bias: Tensor | None
    outputs: int

    def numbers(self, wide: tuple[Tensor, Tensor] | None = None) -> list[int]:
        """The layer as csrc/linear_q.h has it; wide: as `wide_weights` gives it, or not looked for."""
        tensors = (self.weight, self.multipliers, self.scale, self.sums, self.bias)
        assert all(tensor is None or tensor.is_contiguous() for tensor in tensors)
        found = (0, 0) if wide is None else (wide[0].data_ptr(), wide[1].data_ptr())
        return [*(0 if tensor is None else tensor.data_ptr() for tensor in tensors), self.outputs, *found]


class Kernel:
    """Layers of one input as one call: rows are rounded once, and the next norm, gate or sum is done on the way.

    The addresses of the tensors are looked up once: for one row a call's own cost is what counts. A copy is None, as
    it would speak of other layers' tensors.
    """

    __slots__ = ("_count", "_inputs", "_layers", "_library", "_parts", "_wide", "_width")

    def __init__(self, parts: Sequence[Parts], inputs: int) -> None:
        self._parts = parts  # they live as long as their addresses are used
        self._layers, self._count = words([part.numbers() for part in parts]), len(parts)
        self._wide: list[tuple[Tensor, Tensor] | None] | None = None
        self._library = native.LIBRARY
        self._inputs, self._width = inputs, sum(part.outputs for part in parts)

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()

    def fits(self, *weights: Tensor | None) -> bool:
        """Whether it is still that of layers with these weights."""
        return self._library is native.LIBRARY and all(
            part.weight is weight for part, weight in zip(self._parts, weights, strict=True)
        )

    def __call__(
        self,
        x: Tensor,
        after: After = After.STORE,
        *,
        norm: Tensor | None = None,
        norm_bias: Tensor | None = None,
        eps: float = 0.0,
        residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """(…, K) to (…, N), the layers' outputs side by side; all float32 and contiguous.

        after: TIMES_SILU makes one output of two layers. norm: (K,) the weight of a norm of x before: by its root mean
        square or, with a bias (K,), by mean and variance. residual: (…, N), for ADD. out: (…, N), what is written to.
        """
        assert x.shape[-1] == self._inputs, (x.shape, self._inputs)
        rows = x.numel() // self._inputs
        if rows > FEW and self._wide is None:
            self._look_for_wide()
        width = self._width >> 1 if after is After.TIMES_SILU else self._width
        if out is None:
            out = x.new_empty((*x.shape[:-1], width))
        assert out.shape == (*x.shape[:-1], width) and out.is_contiguous(), (out.shape, x.shape, width)
        assert residual is None or residual.shape == out.shape
        native.call(
            "bh_linear_q",
            x.data_ptr(),
            self._layers,
            self._count,
            after,
            None if norm is None else norm.data_ptr(),
            None if norm_bias is None else norm_bias.data_ptr(),
            eps,
            None if residual is None else residual.data_ptr(),
            out.data_ptr(),
            rows,
            self._inputs,
            torch.get_num_threads() if x.numel() * self._width >= FORK_PRODUCTS else 1,
            kept=(self, x, norm, norm_bias, residual, out),
        )
        return out

    def _look_for_wide(self) -> None:
        """For the first product with many rows. What the library has in hand stays as it is: others may be using it."""
        self._wide = [None if part.multipliers is not None else wide_weights(part.weight) for part in self._parts]
        self._layers = words([part.numbers(wide) for part, wide in zip(self._parts, self._wide, strict=True)])


def words(layers: list[list[int]]) -> ctypes.Array[ctypes.c_int64]:
    """Layers, each as Parts.numbers gives it, as a kernel takes them."""
    numbers = [number for layer in layers for number in layer]
    return (ctypes.c_int64 * len(numbers))(*numbers)


def wide_weights(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Which weights of an int8 layer, as it is packed, have products that may not fit when they are added in 16 bits.

    Where each panel's begin, (panels + 1,) int32, and all of them, (count,) int64: csrc/linear_q.h says what they hold.
    """
    assert native.LIBRARY is not None
    panels, quads = weight.shape[:2]
    counts = torch.zeros(panels, dtype=torch.int32)
    threads = torch.get_num_threads() if weight.numel() >= FORK_PRODUCTS else 1
    look = native.LIBRARY.bh_wide_q8
    look(weight.data_ptr(), panels, 4 * quads, counts.data_ptr(), None, None, threads)
    begin = torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()
    entries = torch.empty(max(1, int(begin[-1])), dtype=torch.int64)
    look(weight.data_ptr(), panels, 4 * quads, counts.data_ptr(), begin.data_ptr(), entries.data_ptr(), threads)
    return begin, entries


def _nothing() -> None:
    return None


def round_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, K) to int4 codes, multipliers and scales, as behold.quant.rounding.round_groups, ten times as fast."""
    assert native.LIBRARY is not None
    weight = weight.float().contiguous()
    (n, k), groups = weight.shape, -(-weight.shape[1] // 32)
    codes = weight.new_empty(n, groups * 32, dtype=torch.uint8)
    multipliers = weight.new_empty(n, groups, dtype=torch.int8)
    scale = weight.new_empty(n)
    addresses = (weight.data_ptr(), codes.data_ptr(), multipliers.data_ptr(), scale.data_ptr())
    native.LIBRARY.bh_round_q4(*addresses, n, k, torch.get_num_threads())
    return codes, multipliers, scale
