"""One quantized layer: close, small, row by row independent, and at home on any device and in any type."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from behold.quant.linear import Int4Linear, Int8Linear, QuantizedEmbedding, QuantizedLinear
from behold.quant.rounding import input_steps

ROUNDED = {Int8Linear: 0.012, Int4Linear: 0.1}  # the error, of 96 gaussian inputs
schemes = pytest.mark.parametrize("kind", [Int8Linear, Int4Linear])


def layer(width: int = 96, out: int = 40, *, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(width, out, bias=bias).requires_grad_(False)


def gaussian(width: int, out: int) -> nn.Linear:
    full = layer(width, out, bias=False)
    full.weight.normal_()
    return full


def relative_errors(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Each row's."""
    return (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1)


@schemes
def test_close_to_the_full_layer(form: str, kind: type[QuantizedLinear]) -> None:
    full = layer()
    x = torch.randn(7, 96)
    assert relative_errors(kind.of(full)(x), full(x)).max() < ROUNDED[kind]


def loud_rows(width: int, channels: int, times: float) -> torch.Tensor:
    """64 gaussian rows, two of them 100 times larger, with so many channels so many times larger."""
    x = torch.randn(64, width)
    x[:2] *= 100
    x[:, torch.randperm(width)[:channels]] *= times
    return x


@pytest.mark.parametrize(
    ("width", "channels", "times"),
    [(1024, 3, 100), (1024, 20, 50), *((width, 6, 50) for width in (1024, 1152, 2816, 4096, 4304)), (4304, 6, 100)],
)
def test_loud_channels_cost_no_more_than_one_percent(form: str, width: int, channels: int, times: int) -> None:
    errors = []
    for seed in range(3):
        full = layer(width, 128, bias=False, seed=seed)
        full.weight.normal_()
        x = loud_rows(width, channels, times)
        errors.append(relative_errors(Int8Linear.of(full)(x), full(x)).mean())
    assert torch.stack(errors).mean() < 0.01


def outliers(x: torch.Tensor) -> torch.Tensor:
    """How many entries of each row lie outside of its window at int8."""
    step, zero = input_steps(x, 7)
    integers = torch.round(x * (1 / step)[:, None]) + zero[:, None]
    return ((integers < 0) | (integers > 127)).sum(1)


def test_only_rows_that_are_not_loud_enough_as_a_whole_have_more_outliers() -> None:
    torch.manual_seed(0)
    plain = torch.randn(16, 4096)
    beside, drowned = plain.clone(), plain.clone()
    beside[:, 5], drowned[:, 5] = 150, 1000
    few = outliers(plain)
    assert few.max() < 40
    assert (outliers(beside) > 2 * few).all()
    assert (outliers(drowned) <= few + 1).all()


def test_the_errors_are_those_written_down() -> None:
    """Gaussian weights and inputs, K = 1024: see behold.quant.rounding."""
    full = gaussian(1024, 256)
    x = torch.randn(64, 1024)
    assert 0.013 < relative_errors(Int8Linear.of(full)(x), full(x)).mean() < 0.016
    off = relative_errors(Int4Linear.of(full).dequantized().flatten(), full.weight.flatten())
    assert 0.078 < off < 0.084


@schemes
def test_a_large_row_does_not_drown_the_others(form: str, kind: type[QuantizedLinear]) -> None:
    full = layer(bias=False)
    x = torch.randn(6, 96)
    x[2] *= 1000
    assert relative_errors(kind.of(full)(x), full(x)).max() < ROUNDED[kind]


def test_extreme_weights_do_not_overflow(form: str) -> None:
    """All weights and inputs at their largest: the sums that 16 bits could not hold."""
    full = layer(256, 8, bias=False)
    full.weight.fill_(1.0)
    x = torch.ones(3, 256)
    torch.testing.assert_close(Int8Linear.of(full)(x), full(x), rtol=1e-3, atol=0)
    torch.testing.assert_close(Int8Linear.of(full)(-x), full(-x), rtol=1e-3, atol=0)


@schemes
def test_rows_together_equal_rows_alone(form: str, kind: type[QuantizedLinear]) -> None:
    small = kind.of(layer())
    sizes = torch.logspace(-3, 3, 9)[:, None]
    x = torch.randn(9, 96) * sizes
    alone = torch.cat([small(row[None]) for row in x])
    if form == "native" or (form == "torch" and kind is Int8Linear):
        assert torch.equal(small(x), alone)
    torch.testing.assert_close(small(x) / sizes, alone / sizes, rtol=0, atol=1e-4)


@schemes
@pytest.mark.parametrize("shape", [(96,), (1, 96), (2, 3, 96), (0, 96)])
def test_any_leading_shape(form: str, kind: type[QuantizedLinear], shape: tuple[int, ...]) -> None:
    full = layer()
    x = torch.randn(shape)
    y = kind.of(full)(x)
    assert y.shape == (*shape[:-1], 40)
    torch.testing.assert_close(y, full(x), atol=2 * ROUNDED[kind], rtol=0)


@schemes
def test_zeros_stay_zero(form: str, kind: type[QuantizedLinear]) -> None:
    full = layer(bias=False)
    full.weight[3] = 0
    y = kind.of(full)(torch.cat([torch.zeros(1, 96), torch.randn(1, 96)]))
    assert not y[0].any() and not y[:, 3].any() and not y.isnan().any()


@schemes
def test_what_is_not_a_number_stays_in_its_row(form: str, kind: type[QuantizedLinear]) -> None:
    x = torch.randn(3, 96)
    x[1, 7] = torch.nan
    y = kind.of(layer())(x)
    assert y[1].isnan().all() and not y[[0, 2]].isnan().any()


@schemes
def test_a_single_column(kind: type[QuantizedLinear]) -> None:
    full = layer(1, 5)
    torch.testing.assert_close(kind.of(full)(torch.ones(2, 1)), full(torch.ones(2, 1)), atol=0.03, rtol=0)


@schemes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_go_in_and_come_out(form: str, kind: type[QuantizedLinear], dtype: torch.dtype) -> None:
    full = layer()
    small = kind.of(full).to(dtype)
    x = torch.randn(4, 96, dtype=dtype)
    assert small(x).dtype is dtype
    assert relative_errors(small(x).float(), full(x.float())).max() < ROUNDED[kind] + 0.01
    assert small.scale.dtype is torch.float32, "scales are not rounded with the model"


@pytest.mark.parametrize(("kind", "bits"), [(Int8Linear, 8), (Int4Linear, 4.25)])
def test_what_it_takes(kind: type[QuantizedLinear], bits: float) -> None:
    small = kind.of(layer(512, 512))
    assert small.n_bytes == 512 * 512 * bits / 8 + 3 * 4 * 512
    file = io.BytesIO()
    torch.save(small.state_dict(), file)
    assert len(file.getvalue()) < small.n_bytes + 4096


@schemes
def test_a_layer_is_its_state(kind: type[QuantizedLinear]) -> None:
    small = kind.of(layer(70, 33))
    again = kind.from_state(small.state(), in_features=70, out_features=33)
    x = torch.randn(3, 70)
    assert torch.equal(again(x), small(x)) and again.weight is small.weight
    assert set(small.state()) == set(small.state_dict())


@schemes
def test_a_copy_is_independent_and_equal(form: str, kind: type[QuantizedLinear]) -> None:
    small = kind.of(layer())
    x = torch.randn(2, 96)
    y = small(x)
    copied = copy.deepcopy(small)
    small.weight.zero_()
    assert torch.equal(copied(x), y)


@schemes
def test_moving_between_devices_keeps_the_types(kind: type[QuantizedLinear]) -> None:
    """The meta device stands in for another one."""
    small = kind.of(layer())
    moved = copy.deepcopy(small).to("meta", torch.bfloat16)
    assert {name: (t.shape, t.dtype) for name, t in moved.state().items()} == {
        name: (t.shape, t.dtype) for name, t in small.state().items()
    }
    assert moved(torch.empty(2, 96, device="meta", dtype=torch.bfloat16)).shape == (2, 40)


@schemes
def test_the_source_is_not_kept(kind: type[QuantizedLinear]) -> None:
    full = layer()
    small = kind.of(full)
    before = small(torch.ones(1, 96))
    full.weight.zero_()
    assert full.bias is not None
    full.bias.zero_()
    assert torch.equal(small(torch.ones(1, 96)), before)


@schemes
def test_large_weights_are_rounded_in_portions(kind: type[QuantizedLinear], monkeypatch: pytest.MonkeyPatch) -> None:
    full = layer(70, 100)
    whole = kind.of(full).state()
    monkeypatch.setattr("behold.quant.linear.AT_ONCE", 1)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in kind.of(full).state().items())


@schemes
def test_weights_that_are_read_by_rows(kind: type[QuantizedLinear], monkeypatch: pytest.MonkeyPatch) -> None:
    """The codes are the same, and never are more rows wanted than are rounded at a time."""
    full, asked = layer(50, 170).bfloat16(), []

    class Watched:
        shape, dtype, device, nbytes = full.weight.shape, torch.bfloat16, torch.device("cpu"), full.weight.nbytes

        def __getitem__(self, rows: slice) -> torch.Tensor:
            asked.append(rows)
            return full.weight[rows]

    whole = kind.of(full).state()
    monkeypatch.setattr("behold.quant.linear.AT_ONCE", 64 * 50)
    missing = nn.Linear(50, 170, device="meta")
    missing.bias = full.bias
    parts = kind.of(missing, Watched()).state()
    assert parts.keys() == whole.keys() and all(torch.equal(parts[name], whole[name]) for name in whole)
    assert asked == [slice(0, 64), slice(64, 128), slice(128, 192)]


@schemes
def test_some_of_its_weights_are_widened(kind: type[QuantizedLinear]) -> None:
    small = kind.of(layer(70, 100))
    for rows in (slice(0, 100), slice(0, 32), slice(31, 65), slice(64, 100), slice(99, 100)):
        assert torch.equal(small.wide(rows.start, rows.stop), small.dequantized()[rows])


@schemes
def test_it_says_what_it_is(kind: type[QuantizedLinear]) -> None:
    assert repr(kind.of(layer())) == f"{kind.__name__}(in_features=96, out_features=40, bias=True)"


def test_a_table_of_embeddings(form: str) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(70, 50).requires_grad_(False)
    small = QuantizedEmbedding.of(table)
    ids = torch.tensor([[0, 69], [33, 32]])
    assert torch.equal(small(ids), small.dequantized()[ids])
    torch.testing.assert_close(small(ids), table(ids), atol=0.02, rtol=0)
    hidden = torch.randn(2, 3, 50)
    logits = hidden @ table.weight.T
    assert relative_errors(small.logits(hidden), logits).max() < 0.02
    again = QuantizedEmbedding.from_state(small.state(), num_embeddings=70, embedding_dim=50)
    assert torch.equal(again(ids), small(ids)) and again.n_bytes == small.n_bytes
    assert small.to(torch.bfloat16)(ids).dtype is torch.bfloat16
