"""float8 weights on this device: the product in float8, where it has units for it, beside the one on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import behold
from behold.quant.float8 import UNITS, Float8Linear, multiplies_float8

PICTURE = Path(__file__).parents[2] / "examples" / "scene.png"


def made(k: int, n: int) -> Float8Linear:
    torch.manual_seed(k + n)
    return Float8Linear.of(nn.Linear(k, n).requires_grad_(False))


def test_new_gpus_multiply_float8(device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < UNITS or torch.version.hip:
        pytest.skip(f"{device} has no units for float8")
    assert multiplies_float8(device)


@pytest.mark.parametrize(("k", "n"), [(896, 4864), (1152, 4304), (33, 17)])
@pytest.mark.parametrize("rows", [1, 5, 64])
def test_products(k: int, n: int, rows: int, device: torch.device, dtype: torch.dtype) -> None:
    """As on a CPU: of rounded inputs to the rounding of bfloat16, of full ones to that of float8."""
    layer, x = made(k, n), torch.randn(rows, k).to(dtype)
    expected, widened = layer.scaled_product(x).float(), layer(x).float()
    layer.to(device)
    found = layer(x.to(device)).float().cpu()
    if multiplies_float8(device):
        torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-6)
    assert (found - widened).norm() < 0.05 * widened.norm()


@pytest.mark.parametrize("rows", [1, 9])
def test_a_row_does_not_depend_on_its_neighbours(rows: int, device: torch.device) -> None:
    layer, x = made(896, 1152).to(device), torch.randn(rows, 896, device=device).bfloat16()
    torch.testing.assert_close(layer(torch.cat([x, 1000 * x]))[:rows], layer(x))


def test_the_demo_answers(device: torch.device, dtype: torch.dtype) -> None:
    vlm = behold.load("demo", device=device, dtype=dtype, quantize="float8")
    assert any(isinstance(module, Float8Linear) for module in vlm.model.modules())
    assert vlm.ask(PICTURE, "What do we see in this image?")
