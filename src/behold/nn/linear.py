"""The linear layer of every model: torch's own, with a faster product where one suits."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from behold.kernels import linear_f32, native, onednn


class Linear(nn.Linear):
    """x · weightᵀ + bias."""

    def reset_parameters(self) -> None:
        """Nothing on the meta device, whose layers are filled from a file: for hundreds of them it would take time."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, input: Tensor, plus: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """(…, K) to (…, N), written to `out` where that is given; `plus` is added. Both are of the result's shape."""
        y = product(input, self.weight, self.bias, plus)
        return y if out is None else out.copy_(y)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, plus: Tensor | None = None) -> Tensor:
    """(…, K) by weight (N, K) and bias (N,) to (…, N); `plus`, of that shape, is added."""
    if linear_f32.suits(x, weight) and (plus is None or native.ready(plus)):
        return linear_f32.linear(x, weight, bias, plus)
    out = onednn.linear(x, weight, bias) if onednn.suits(x, weight) else F.linear(x, weight, bias)
    return out if plus is None else plus + out
