"""One int8 layer: close, small, row by row independent, and at home on any device and in any type."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from behold.quant import linear as linears
from behold.quant.linear import Int8Linear, can_pack, quantize_rows


@pytest.fixture(params=["packed", "plain"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to compute: torch's int8 product, and widened weights as on other devices."""
    if request.param == "packed" and not can_pack():
        pytest.skip("torch has no int8 product for this CPU")
    if request.param == "plain":
        monkeypatch.setattr(linears, "can_pack", lambda: False)
    return str(request.param)


def layer(width: int = 96, out: int = 40, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(width, out, bias=bias).requires_grad_(False)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The worst row's."""
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)).max())


def test_only_the_weights_are_rounded(form: str) -> None:
    full = layer()
    small = Int8Linear.of(full)
    assert (small.packed is not None) == (form == "packed")
    x = torch.randn(7, 96)
    assert relative_error(small(x), full(x)) < 0.01
    exact = torch.nn.functional.linear(x, small.dequantized(), full.bias)
    assert relative_error(small(x), exact) < 3e-4


def test_a_large_row_does_not_drown_the_others(form: str) -> None:
    full = layer(bias=False)
    x = torch.randn(6, 96)
    x[2] *= 1000
    assert relative_error(Int8Linear.of(full)(x), full(x)) < 0.01


def test_a_large_channel_does_not_drown_the_others(form: str) -> None:
    full = layer(bias=False)
    x = torch.randn(6, 96)
    x[:, 5] *= 50
    exact = torch.nn.functional.linear(x, Int8Linear.of(full).dequantized())
    assert relative_error(Int8Linear.of(full)(x), exact) < 1e-3


def test_extreme_weights_do_not_overflow(form: str) -> None:
    """All weights and inputs at their largest: the sums that 16 bits could not hold."""
    full = layer(256, 8, bias=False)
    full.weight.fill_(1.0)
    x = torch.ones(3, 256)
    torch.testing.assert_close(Int8Linear.of(full)(x), full(x), rtol=1e-3, atol=0)
    torch.testing.assert_close(Int8Linear.of(full)(-x), full(-x), rtol=1e-3, atol=0)


def test_rows_together_equal_rows_alone(form: str) -> None:
    small = Int8Linear.of(layer())
    sizes = torch.logspace(-3, 3, 9)[:, None]
    x = torch.randn(9, 96) * sizes
    alone = torch.cat([small(row[None]) for row in x])
    torch.testing.assert_close(small(x) / sizes, alone / sizes, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(96,), (1, 96), (2, 3, 96), (0, 96)])
def test_any_leading_shape(form: str, shape: tuple[int, ...]) -> None:
    full = layer()
    x = torch.randn(shape)
    y = Int8Linear.of(full)(x)
    assert y.shape == (*shape[:-1], 40)
    torch.testing.assert_close(y, full(x), atol=0.02, rtol=0)


def test_zeros_stay_zero(form: str) -> None:
    full = layer(bias=False)
    full.weight[3] = 0
    y = Int8Linear.of(full)(torch.cat([torch.zeros(1, 96), torch.randn(1, 96)]))
    assert not y[0].any() and not y[:, 3].any() and not y.isnan().any()


def test_a_single_column() -> None:
    full = layer(1, 5)
    torch.testing.assert_close(Int8Linear.of(full)(torch.ones(2, 1)), full(torch.ones(2, 1)), atol=0.02, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_go_in_and_come_out(form: str, dtype: torch.dtype) -> None:
    full = layer()
    small = Int8Linear.of(full).to(dtype)
    x = torch.randn(4, 96, dtype=dtype)
    assert small(x).dtype is dtype
    assert relative_error(small(x).float(), full(x.float())) < 0.02
    assert small.scale.dtype is torch.float32, "scales are not rounded with the model"


def test_a_quarter_of_the_memory(form: str) -> None:
    full = layer(512, 512, bias=False)
    small = Int8Linear.of(full)
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    assert len(file.getvalue()) < full.weight.numel() * 1.1 + 4096
    kept = sum(buffer.numel() * buffer.element_size() for buffer in small.buffers())
    assert kept < full.weight.numel() * 1.1
    assert (small.packed is None) or small.weight.numel() == 0, "the numbers are held once"


def test_the_state_holds_the_int8_weights(form: str) -> None:
    full = layer()
    state = Int8Linear.of(full).state_dict()
    weight, scale = quantize_rows(full.weight)
    assert state["weight"].dtype is torch.int8
    assert torch.equal(state["weight"], weight) and torch.equal(state["scale"], scale)


def test_a_copy_is_independent_and_equal(form: str) -> None:
    small = Int8Linear.of(layer())
    x = torch.randn(2, 96)
    assert torch.equal(copy.deepcopy(small)(x), small(x))


def test_moving_between_devices_keeps_the_weights() -> None:
    """The meta device stands in for another one: the packed form is undone on the way."""
    small = Int8Linear.of(layer())
    moved = copy.deepcopy(small).to("meta")
    assert moved.packed is None
    assert moved.weight.shape == (40, 96) and moved.weight.dtype is torch.int8


def test_the_source_is_not_kept() -> None:
    full = layer()
    small = Int8Linear.of(full)
    before = small(torch.ones(1, 96))
    full.weight.zero_()
    assert full.bias is not None
    full.bias.zero_()
    assert torch.equal(small(torch.ones(1, 96)), before)


def test_it_says_what_it_is() -> None:
    assert repr(Int8Linear.of(layer())) == "Int8Linear(in_features=96, out_features=40, bias=True)"
