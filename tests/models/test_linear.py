"""The fast product and torch's own agree, and each is used where it should be."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from behold.kernels import onednn
from behold.nn.linear import Linear


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of any size take the fast product."""
    monkeypatch.setattr(onednn, "MIN_WEIGHTS", 0)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("shape", [(16, 40), (2, 9, 40), (700, 40), (1, 40), (0, 40)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_any_number_of_rows(shape: tuple[int, ...], bias: bool) -> None:
    layer = Linear(40, 24, bias=bias)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("eager")
def test_views_and_strides() -> None:
    layer = Linear(32, 8)
    x = torch.randn(32, 64).t()[:20, :]
    with torch.inference_mode():
        torch.testing.assert_close(layer(x), F.linear(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)


def test_where_it_suits() -> None:
    weight, small = torch.zeros(1024, 1024), torch.zeros(1023, 1024)
    one, most, more = (torch.zeros(rows, 1024) for rows in (1, 256, 257))
    with torch.inference_mode():
        assert onednn.suits(one, weight) == onednn.suits(most, weight) == onednn.AVAILABLE
        assert not onednn.suits(more, weight) and not onednn.suits(one[:0], weight) and not onednn.suits(one, small)
        assert not onednn.suits(one.double(), weight.double())
    assert not onednn.suits(one, weight)  # gradients are on


def test_gradients_flow() -> None:
    layer = Linear(32, 8)
    layer(torch.ones(20, 32)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().max() == 20
