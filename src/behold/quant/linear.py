"""A linear layer with 8-bit weights: one float32 scale for each output row, inputs exact to 13 bits.

On x86 CPUs the product runs in int8 (FBGEMM through torch). Its own quantisation of the input takes one range for all
rows, so that one large row drowns the others, and 8-bit inputs would add an error as large as that of the weights.
Instead every row is divided by its largest value and split into a coarse and a fine part of 7 bits each, which go
through one product as two rows: batched = alone, and nothing overflows the 16-bit sums of CPUs without VNNI
(2 · 127 · 127 < 2¹⁵). Elsewhere the weights are widened for the product. Both ways save the memory; neither is tuned.
"""

from __future__ import annotations

import functools
import platform
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LIMIT = 127  # the largest weight
_COARSE = 63  # the largest coarse part; torch maps floats in [-64, 63] one to one to its 7-bit inputs
_FINE = 126  # fine parts in one coarse step: a rest of at most a half is at most 63 of them
_TINY = 1e-30  # a row of zeros is divided by this


class Int8Linear(nn.Module):
    """A replacement for nn.Linear: y = x · (q · scale)ᵀ + bias. Not differentiable.

    weight: (out, in) int8, or empty while `packed` holds the same numbers in the product's own order.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        """weight: (out, in) int8; scale: (out,) float32; bias: (out,) in the model's type."""
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)
        self.packed: Any = None
        self._pack()

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """The same layer, rounded."""
        weight, scale = quantize_rows(linear.weight.detach())
        # a copy: the loader's tensor may be a view of something larger
        return cls(weight, scale, None if linear.bias is None else linear.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), in the type of x."""
        if self.packed is None:
            return F.linear(x, self.weight * self.scale.to(x.dtype)[:, None], self.bias)
        y = self._product(x.reshape(-1, self.in_features).float())
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _product(self, x: Tensor) -> Tensor:
        """(M, in) float32 to (M, out) float32 with the packed weight."""
        rows = x.shape[0]
        step = torch.linalg.vector_norm(x, ord=float("inf"), dim=-1, keepdim=True).clamp_min_(_TINY) / _COARSE
        parts = x.new_zeros(2 * rows + 1, self.in_features)
        steps = x / step
        coarse = torch.round(steps, out=parts[:rows])
        torch.sub(steps, coarse, out=parts[rows:-1]).mul_(_FINE)
        # the last row only fixes the range that torch finds, so that its scale is 1 and rounding leaves integers alone
        parts[-1, 0], parts[-1, 1] = -_COARSE - 1, _COARSE
        sums = torch.ops.quantized.linear_dynamic(parts, self.packed, True)
        out: Tensor = torch.add(sums[:rows], sums[rows:-1], alpha=1 / _FINE).mul_(step)
        return out

    def dequantized(self) -> Tensor:
        """(out, in) float32 weights as this layer uses them."""
        return self._plain_weight().float() * self.scale[:, None]

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _pack(self) -> None:
        """Moves the weight into the packed form where this device has one."""
        if self.weight.device.type == "cpu" and can_pack() and self.in_features > 1:
            self.packed = _packed(self.weight, self.scale)
            self.weight = self.weight.new_empty(0)

    def _plain_weight(self) -> Tensor:
        if self.packed is None:
            return self.weight
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            weight: Tensor = torch.ops.quantized.linear_unpack(self.packed)[0].int_repr()
        return weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Int8Linear:
        """Follows the model to another device or type; weights stay int8 and scales float32."""
        scale, device = self.scale, fn(torch.empty(0, device=self.scale.device)).device
        if device != scale.device:
            self.weight, self.packed = self._plain_weight(), None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call, unused-ignore]
        self.scale = scale.to(device) if device.type != "meta" else self.scale
        if self.packed is None:
            self._pack()
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:  # noqa: ANN401 - torch's
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self._plain_weight()


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) to int8 values in [-127, 127] and (out,) float32 scales; the largest of each row becomes 127."""
    wide = weight.float()
    scale = (torch.linalg.vector_norm(wide, ord=float("inf"), dim=1) / _LIMIT).clamp_min(_TINY)
    return (wide / scale[:, None]).round_().clamp_(-_LIMIT, _LIMIT).to(torch.int8), scale


@functools.cache
def can_pack() -> bool:
    """Whether torch brings the int8 product for this CPU."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    engine = torch.backends.quantized.engine in ("x86", "fbgemm", "onednn")
    return x86 and engine and hasattr(torch.ops.quantized, "linear_dynamic")


def _packed(weight: Tensor, scale: Tensor) -> Any:  # noqa: ANN401 - an object of torch's own
    with warnings.catch_warnings():
        # torch announces a successor of its quantised tensors; can_pack looks for the operators, not for a version
        warnings.simplefilter("ignore", UserWarning)
        zero_points = torch.zeros(len(scale), dtype=torch.long)
        tensor = torch._make_per_channel_quantized_tensor(weight, scale.double(), zero_points, 0)
        return torch.ops.quantized.linear_prepack(tensor, None)
