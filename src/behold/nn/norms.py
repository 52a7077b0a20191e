"""Normalisation of rows: by their root mean square, and by mean and variance."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from behold.kernels import native, pointwise_f32


class LayerNorm(nn.LayerNorm):
    """(x - mean(x)) / sqrt(variance(x) + eps) · weight + bias over the last dimension, arxiv.org/abs/1607.06450."""

    def can_join(self, x: Tensor) -> bool:
        """Whether a kernel that takes x (…, D) can do this on its way."""
        return pointwise_f32.suits_norm(x, self.weight) and native.ready(self.bias)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension, computed in float32.

    Source: Zhang and Sennrich 2019, arxiv.org/abs/1910.07467.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def can_join(self, x: Tensor) -> bool:
        """Whether a kernel that takes x (…, D) can do this on its way."""
        return pointwise_f32.suits_norm(x, self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) to (…, D)."""
        if self.can_join(x):
            return pointwise_f32.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
