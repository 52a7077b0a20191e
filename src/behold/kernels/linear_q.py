"""Our own linear layers with weights of 8 and 4 bits: rows are rounded and multiplied in one call.

What the tensors are is said in behold.quant.linear, what the numbers are in behold.quant.rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from behold.kernels import native

FORK_PRODUCTS = 1 << 18  # a smaller layer is done before a second thread has begun
# 32 bits hold the sums of so many products.
MAX_INPUTS_8 = 1 << 16
MAX_INPUTS_4 = 1 << 14


class Kernel:
    """A layer's kernel with the addresses of its tensors, looked up once: for one row a call's own cost is what counts.

    A copy is None, as it would speak of another layer's tensors.
    """

    def __init__(self, name: str, tensors: Sequence[Tensor | None], inputs: int, outputs: int) -> None:
        """name: of the function; tensors: what it takes between input and output, contiguous, the weights first."""
        assert all(tensor is None or tensor.is_contiguous() for tensor in tensors)
        self._tensors = tensors  # they live as long as their addresses are used
        self._addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        self._library, self._function = native.LIBRARY, getattr(native.LIBRARY, name)
        self._inputs, self._outputs = inputs, outputs

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _nothing, ()

    def fits(self, weight: Tensor) -> bool:
        """Whether it is still that of a layer with these weights."""
        return self._tensors[0] is weight and self._library is native.LIBRARY

    def __call__(self, x: Tensor) -> Tensor:
        """(…, K) float32, contiguous, to (…, N) float32."""
        assert x.shape[-1] == self._inputs, (x.shape, self._inputs)
        out = x.new_empty(*x.shape[:-1], self._outputs)
        self._function(
            x.data_ptr(),
            *self._addresses,
            out.data_ptr(),
            x.numel() // self._inputs,
            self._inputs,
            self._outputs,
            torch.get_num_threads() if x.numel() * self._outputs >= FORK_PRODUCTS else 1,
        )
        return out


def _nothing() -> None:
    return None


def round_groups(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(N, K) to int4 codes, multipliers and scales, as behold.quant.rounding.round_groups, 50 times as fast."""
    assert native.LIBRARY is not None
    weight = weight.float().contiguous()
    (n, k), groups = weight.shape, -(-weight.shape[1] // 32)
    codes = weight.new_empty(n, groups * 32, dtype=torch.uint8)
    multipliers = weight.new_empty(n, groups, dtype=torch.int8)
    scale = weight.new_empty(n)
    addresses = (weight.data_ptr(), codes.data_ptr(), multipliers.data_ptr(), scale.data_ptr())
    native.LIBRARY.bh_round_q4(*addresses, n, k, torch.get_num_threads())
    return codes, multipliers, scale
