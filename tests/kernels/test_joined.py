"""Layers of one input as one call: what the layers give one by one, whatever comes before and after."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from behold.kernels import native
from behold.kernels.linear_q import After
from behold.kernels.pointwise_f32 import rms_norm
from behold.nn.mlp import MLP, GatedMLP
from behold.nn.norms import LayerNorm, RMSNorm
from behold.quant.joined import Joined
from behold.quant.linear import Int4Linear, Int8Linear, QuantizedLinear

pytestmark = pytest.mark.usefixtures("library")
ROWS = [1, 2, 5, 17, 200]


def made(kind: type[QuantizedLinear], k: int, n: int, bias: bool = True) -> QuantizedLinear:
    return kind.of(nn.Linear(k, n, bias=bias).requires_grad_(False))


def layer_norm(width: int) -> LayerNorm:
    norm = LayerNorm(width)
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    return norm


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kinds", [(Int8Linear,) * 3, (Int4Linear,) * 3, (Int4Linear, Int8Linear, Int4Linear)])
def test_side_by_side(rows: int, kinds: tuple[type[QuantizedLinear], ...]) -> None:
    layers = [made(kind, 72, n, bias) for kind, n, bias in zip(kinds, (96, 33, 1), (True, False, True), strict=True)]
    x, weight = torch.randn(rows, 72), torch.rand(72)
    with torch.inference_mode():
        kernel = Joined().kernel(x, *layers)
        assert kernel is not None
        assert torch.equal(kernel(x), torch.cat([layer(x) for layer in layers], dim=1))
        normed = rms_norm(x, weight, 1e-6)
        assert torch.equal(kernel(x, norm=weight, eps=1e-6), torch.cat([layer(normed) for layer in layers], dim=1))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("gate", "up"), [(Int8Linear, Int8Linear), (Int4Linear, Int4Linear), (Int4Linear, Int8Linear)])
def test_a_gated_block(rows: int, gate: type[QuantizedLinear], up: type[QuantizedLinear]) -> None:
    block, norm = GatedMLP(64, 75, "silu"), RMSNorm(64, 1e-6)
    block.gate_proj, block.up_proj, block.down_proj = made(gate, 64, 75), made(up, 64, 75), made(Int8Linear, 75, 64)  # type: ignore[assignment]
    nn.init.uniform_(norm.weight)
    x = torch.randn(rows, 64)
    with torch.inference_mode():
        normed = norm(x)
        inner = F.silu(block.gate_proj(normed)) * block.up_proj(normed)
        joined = Joined().kernel(normed, block.gate_proj, block.up_proj)
        assert joined is not None
        torch.testing.assert_close(joined(normed, After.TIMES_SILU), inner, rtol=1e-5, atol=1e-6)
        found = block(x, norm, x)
        assert torch.equal(found, x + block.down_proj(joined(normed, After.TIMES_SILU)))
        assert torch.equal(found, torch.cat([block(row[None], norm, row[None]) for row in x])), "together = alone"


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])
def test_a_block_with_gelu(rows: int, kind: type[QuantizedLinear]) -> None:
    block, x, norm = MLP(64, 75, "gelu_pytorch_tanh"), torch.randn(rows, 64) * 3 + 1, layer_norm(64)
    block.fc1, block.fc2 = made(kind, 64, 75), made(kind, 75, 64)  # type: ignore[assignment]
    with torch.inference_mode():
        joined = Joined().kernel(x, block.fc1)
        assert joined is not None
        inner = joined(x, After.GELU)
        torch.testing.assert_close(inner, F.gelu(block.fc1(x), approximate="tanh"), rtol=1e-5, atol=2e-6)
        wanted = x + block.fc2(joined(x, After.GELU, norm=norm.weight, norm_bias=norm.bias, eps=norm.eps))
        found = torch.full_like(x, torch.nan)
        block(x, norm, x, found)
        assert torch.equal(found, wanted)
        apart = torch.full((rows, 70), torch.nan)[:, 3:67]
        block(x, norm, x, apart)
        assert torch.equal(apart, wanted), "where it goes changes nothing"


@pytest.mark.parametrize("width", [8, 24, 64, 1152])
def test_rows_less_their_mean(width: int) -> None:
    layer, norm, x = made(Int8Linear, width, 64), layer_norm(width), torch.randn(300, width) * 3 + 5
    with torch.inference_mode():
        kernel = Joined().kernel(x, layer)
        assert kernel is not None
        found = kernel(x, norm=norm.weight, norm_bias=norm.bias, eps=norm.eps)
        wanted = layer(F.layer_norm(x.double(), (width,), norm.weight.double(), norm.bias.double(), norm.eps).float())
        off = (found - wanted).abs().amax(dim=1) / wanted.abs().amax(dim=1)
    assert (off < 1e-5).float().mean() > 0.9, "here and there an entry is rounded the other way"
    assert off.max() < 0.05


def test_what_is_not_finite_is_not_hidden() -> None:
    layer, x = made(Int8Linear, 64, 64), torch.randn(3, 64)
    x[1, 5] = torch.nan
    with torch.inference_mode():
        kernel = Joined().kernel(x, layer, layer)
        assert kernel is not None
        for after in (After.STORE, After.TIMES_SILU, After.GELU):
            assert kernel(x, after).isnan().all(dim=1).tolist() == [False, True, False]


def test_a_replaced_layer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, x = made(Int8Linear, 64, 32), made(Int4Linear, 64, 32), torch.randn(2, 64)

    def product(joined: Joined, *layers: nn.Module) -> Tensor:
        kernel = joined.kernel(x, *layers)
        assert kernel is not None
        return kernel(x)

    with torch.inference_mode():
        joined = Joined()
        assert torch.equal(product(joined, first), first(x))
        assert torch.equal(product(joined, second), second(x))
        assert torch.equal(product(copy.deepcopy(joined), first), first(x))
        assert joined.kernel(x, first, nn.Linear(64, 32)) is None
        assert joined.kernel(x.double(), first) is None
        assert joined.kernel(x[:0], first) is None
        watched = first.register_forward_hook(lambda *_: None)
        assert joined.kernel(x, first) is None
        watched.remove()
        assert joined.kernel(x, first) is not None
        monkeypatch.setattr(native, "LIBRARY", None)
        assert joined.kernel(x, first) is None
    assert joined.kernel(x, first) is None, "with gradients"
