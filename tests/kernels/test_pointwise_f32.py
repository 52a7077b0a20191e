"""Norms, rotations and gates of ours and torch's agree, in one thread and in several."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from behold.kernels import pointwise_f32
from behold.nn.rotary import RopeConfig, Rotary

ROWS = (1, 3, 16, 700)


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("width", [8, 24, 64, 1024])
@pytest.mark.parametrize("rows", ROWS)
def test_norm(rows: int, width: int) -> None:
    x, weight = numbers(rows, width), numbers(width)
    x[0] = 0
    with torch.inference_mode():
        assert pointwise_f32.suits_norm(x, weight)
        found = pointwise_f32.rms_norm(x, weight, 1e-6)
        torch.testing.assert_close(found, F.rms_norm(x, (width,), weight, 1e-6), atol=1e-6, rtol=2e-6)
        assert torch.equal(found[-1:], pointwise_f32.rms_norm(x[-1:], weight, 1e-6))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("half", [1, 32, 40])
@pytest.mark.parametrize("rows", ROWS)
def test_angles(rows: int, half: int) -> None:
    positions, rotary = torch.arange(rows) * 47, Rotary(RopeConfig(), 2 * half)
    wanted = rotary(positions, torch.float32)  # with gradients it is torch that computes
    with torch.inference_mode():
        assert pointwise_f32.suits_angles(positions, rotary.frequencies)
        found = rotary(positions, torch.float32)
        assert all(part.shape == (rows, 1, 2 * half) for part in found)
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
        assert torch.equal(found[1][-1:], rotary(positions[-1:], torch.float32)[1])
        assert rotary(positions, torch.bfloat16)[0].dtype is torch.bfloat16


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("dim", [16, 64, 80])
@pytest.mark.parametrize("rows", ROWS)
def test_rotation(rows: int, dim: int) -> None:
    x = numbers(rows, 3, dim)
    cosines, sines = Rotary(RopeConfig(), dim)(torch.arange(rows) + 5, torch.float32)
    with torch.inference_mode():
        assert pointwise_f32.suits_rotation(x, cosines, sines)
        wanted = torch.addcmul(x * cosines, x.roll(dim // 2, dims=-1), sines)
        torch.testing.assert_close(pointwise_f32.rotate(x, cosines, sines), wanted, atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("rows", ROWS)
def test_gate(rows: int) -> None:
    gate, up = numbers(rows, 48) * 20, numbers(rows, 48)
    gate[0, :5] = torch.tensor([0.0, 1e30, -1e30, math.inf, 90.0])
    with torch.inference_mode():
        assert pointwise_f32.suits_gate(gate, up)
        found = pointwise_f32.silu_times(gate, up)
        torch.testing.assert_close(found, F.silu(gate) * up, atol=1e-6, rtol=2e-6)
        gate[0, 1] = up[0, 2] = math.nan
        assert pointwise_f32.silu_times(gate, up)[0, :3].isnan().tolist() == [False, True, True]


def test_where_they_do_not_suit(library: object) -> None:
    with torch.inference_mode():
        assert not pointwise_f32.suits_norm(numbers(2, 12), numbers(12))
        assert not pointwise_f32.suits_rotation(numbers(2, 1, 24), numbers(2, 1, 24), numbers(2, 1, 24))
        assert not pointwise_f32.suits_gate(numbers(2, 3), numbers(2, 3))
        assert not pointwise_f32.suits_norm(numbers(64, 2).t(), numbers(64))
