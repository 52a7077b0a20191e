"""Rotary position embeddings (Su et al. 2021, arxiv.org/abs/2104.09864), in the half-split layout of Llama.

Scaled kinds: "linear" divides all frequencies (position interpolation, arxiv.org/abs/2306.15595), "llama3" divides the
low ones and blends the middle ones (Llama 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from behold.kernels import pointwise_f32


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """theta: the base wavelength. The factors and original_max_positions belong to the scaled kinds."""

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192


def inverse_frequencies(config: RopeConfig, head_dim: int) -> Tensor:
    """(head_dim / 2,) float32 radians per position."""
    # always on the CPU and real, also while a model is built on the meta device
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim
    frequencies = 1.0 / config.theta**exponents
    if config.kind == "linear":
        return frequencies / config.factor
    if config.kind == "llama3":
        waves_in_context = config.original_max_positions * frequencies / (2 * math.pi)
        blend = (waves_in_context - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
        blend = blend.clamp(0, 1)  # 0: slow wave, fully divided; 1: fast wave, kept
        return frequencies * (blend + (1 - blend) / config.factor)
    return frequencies


class Rotary(nn.Module):
    """Makes the cosines and sines of a step once; `rotate` uses them in every layer.

    The frequencies are no parameter and no buffer: they stay float32 when the model's type changes, because rounding
    them would move far positions by whole turns.
    """

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        super().__init__()
        self.frequencies = inverse_frequencies(config, head_dim)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(N,) positions to cosines and signed sines, (N, 1, d) each: one head axis to broadcast over."""
        if dtype is torch.float32 and pointwise_f32.suits_angles(positions, self.frequencies):
            return pointwise_f32.angles(positions, self.frequencies)
        angles = positions.to(torch.float32)[:, None, None] * self.frequencies
        cosines, sines = angles.cos(), angles.sin()
        return torch.cat((cosines, cosines), dim=-1).to(dtype), torch.cat((-sines, sines), dim=-1).to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        """Follows the module to another device, but never to another type."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        device = fn(torch.empty(0, device=self.frequencies.device)).device
        if device.type != "meta":
            self.frequencies = self.frequencies.to(device)
        return self


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """(N, H, d) rotated by the angles of its rows: x · cos + (second half, first half) · signed sin."""
    if pointwise_f32.suits_rotation(x, cosines, sines):
        return pointwise_f32.rotate(x, cosines, sines)
    return torch.addcmul(x * cosines, x.roll(x.shape[-1] // 2, dims=-1), sines)


def rotate_(x: Tensor, heads: int, cosines: Tensor, sines: Tensor) -> Tensor:
    """(N, H, d) whose first `heads` are rotated in place."""
    if pointwise_f32.suits_rotation(x, cosines, sines):
        return pointwise_f32.rotate_(x, heads, cosines, sines)
    x[:, :heads] = rotate(x[:, :heads], cosines, sines)
    return x
