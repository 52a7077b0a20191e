"""The linear layer of every model: torch's own, with a faster product where one suits."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from behold.kernels import linear_f32, onednn


class Linear(nn.Linear):
    """x · weightᵀ + bias."""

    def reset_parameters(self) -> None:
        """Nothing on the meta device, whose layers are filled from a file: for hundreds of them it would take time."""
        if not self.weight.is_meta:
            super().reset_parameters()

    def forward(self, input: Tensor, plus: Tensor | None = None) -> Tensor:
        """(…, K) to (…, N); `plus`, of that shape, is added."""
        out = product(input, self.weight, self.bias)
        return out if plus is None else plus + out


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(…, K) by weight (N, K) and bias (N,) to (…, N)."""
    if linear_f32.suits(x, weight):
        return linear_f32.linear(x, weight, bias)
    if onednn.suits(x, weight):
        return onednn.linear(x, weight, bias)
    return F.linear(x, weight, bias)
