"""Our quantized layers: the same integers as plain torch forms, on any shape, and rows that know nothing of others."""

from __future__ import annotations

import copy
import ctypes
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from behold.kernels import linear_q, native
from behold.quant import rounding
from behold.quant.linear import Int4Linear, Int8Linear, QuantizedEmbedding, QuantizedLinear
from behold.quant.rounding import input_steps

LAYERS: list[type[QuantizedLinear]] = [Int8Linear, Int4Linear]
relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# rows with every kind of trouble: outliers, one large entry beside others and among too many that a window for it would
# leave outside, nothing but one value, huge, tiny, and too many outliers for a list
KINDS = ("plain", "loud", "beside", "among", "zero", "constant", "huge", "tiny", "spikes", "positive", "crowd")


def rows_of(kinds: list[str], k: int) -> Tensor:
    """One row of each kind."""
    x = torch.randn(len(kinds), k)
    for number, kind in enumerate(kinds):
        row = x[number]
        match kind:
            case "loud":
                row[torch.randperm(k)[:6]] *= 50
            case "beside":
                row[-1] = 40
            case "among":
                row.uniform_(-1, 1)[-1] = 12
            case "zero":
                row.zero_()
            case "constant":
                row.fill_(-3.7)
            case "huge":
                row.mul_(1e30)
            case "tiny":
                row.mul_(1e-20)
            case "spikes":
                row[torch.randperm(k)[:3]] = torch.tensor([1e6, -1e6, 1e5])[: min(3, k)]
            case "positive":
                row.abs_()
            case "crowd":
                row[::5] *= 1000
    return x


def exact(layer: QuantizedLinear, x: Tensor) -> Tensor:
    """The product of the rounded rows in float64, without bias: integers, so there is nothing to lose."""
    step = input_steps(x, layer.INPUT_BITS)[0]
    integers = torch.round(x * (1 / step)[:, None]).double()
    weights = torch.round(layer.dequantized().double() / layer.scale.double()[:, None])
    return integers @ weights.T * (step.double()[:, None] * layer.scale.double())


def made(kind: type[QuantizedLinear], k: int, n: int, bias: bool = True) -> QuantizedLinear:
    return kind.of(nn.Linear(k, n, bias=bias).requires_grad_(False))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("kind", LAYERS)
@relaxed
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=20),
    sides=st.tuples(
        st.one_of(st.integers(1, 140), st.sampled_from([1023, 1024, 1025, 1100, 2050])),
        st.one_of(st.integers(1, 70), st.sampled_from([127, 128, 300])),
    ),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_shape(
    kind: type[QuantizedLinear], kinds: list[str], sides: tuple[int, int], bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    layer, x = made(kind, *sides, bias), rows_of(kinds, sides[0])
    with torch.inference_mode():
        found = layer(x)
        wanted = exact(layer, x)
        if layer.bias is not None:
            wanted += layer.bias
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
        assert ((found - wanted).abs() <= 3e-7 * (wanted.abs() + 1)).all()
        assert torch.equal(found, torch.cat([layer(row[None]) for row in x])), "together = alone"


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("rows", "k", "n"), [(200, 1100, 300), (64, 4100, 96), (9000, 8, 40)])
def test_many_rows_are_few_rows(kind: type[QuantizedLinear], rows: int, k: int, n: int) -> None:
    torch.manual_seed(0)
    layer, x = made(kind, k, n), rows_of([KINDS[number % len(KINDS)] for number in range(rows)], k)
    with torch.inference_mode():
        together = layer(x)
        for portion in (1, 2, 4, 16):
            some = slice(rows // 3, rows // 3 + portion)
            assert torch.equal(together[some], layer(x[some]))
        assert torch.equal(together[-1:], layer(x[-1:]))


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [0, 65, 299])
def test_what_is_not_finite_stays_in_its_row(kind: type[QuantizedLinear], value: float, place: int) -> None:
    layer, x = made(kind, 300, 40), torch.randn(5, 300)
    with torch.inference_mode():
        clean = layer(x)
        x[2, place] = value
        found = layer(x)
    assert found[2].isnan().all()
    others = torch.tensor([0, 1, 3, 4])
    assert torch.equal(found[others], clean[others])


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("rows", [1, 3, 18])
@pytest.mark.parametrize(
    ("kind", "k", "outliers"),
    [
        (Int8Linear, linear_q.MAX_INPUTS_8, 512),
        (Int4Linear, linear_q.MAX_INPUTS_4, 20),
        (Int4Linear, 8448, 512),
    ],
)
def test_the_largest_sums_fit(kind: type[QuantizedLinear], k: int, outliers: int, rows: int) -> None:
    """All weights and inputs at their largest, of 16 and of 32 bits, and as many outliers as a row may have."""
    full = nn.Linear(k, 3, bias=False).requires_grad_(False)
    full.weight.fill_(1.0)
    full.weight[1] = -1.0
    layer = kind.of(full)
    x = torch.ones(rows, k)
    x[1::3] = -1.0
    x[::3, (torch.arange(k) % 64 < 4).nonzero()[:outliers, 0]] = 40.0  # each some 3900 steps above the rest
    with torch.inference_mode():
        found = layer(x)
        torch.testing.assert_close(found, full(x), rtol=0.01, atol=0)
        torch.testing.assert_close(found.double(), exact(layer, x), rtol=1e-6, atol=0)
    assert input_steps(x, layer.INPUT_BITS)[0][0] < 0.011, "outliers are apart"


def with_wide(k: int, n: int, share: float) -> Int8Linear:
    """A layer of whose sums of four products in 16 bits about `share` may not fit."""
    full = nn.Linear(k, n).requires_grad_(False)
    weight = torch.randn(n, -(-k // 8), 2, 2, 2).clamp(-3, 3)  # places: 8 · eight + 4 · quad + 2 · pair + one
    wide = (torch.rand(n, weight.shape[1], 1, 2, 1) < share) * torch.randn(n, weight.shape[1], 1, 2, 1).sign()
    weight = torch.where(wide != 0, wide * (5 + torch.rand_like(weight)), weight).view(n, -1)[:, :k]
    full.weight.copy_(weight).clamp_(-6, 6)[:, 0] = 6
    return Int8Linear.of(full)


@pytest.mark.usefixtures("library")
@relaxed
@given(
    sides=st.tuples(st.integers(1, 300), st.integers(1, 70)),
    rows=st.integers(17, 40),
    share=st.sampled_from([0.0, 0.001, 0.01, 0.1]),
    seed=st.integers(0, 99),
)
def test_what_16_bits_lose_is_found(sides: tuple[int, int], rows: int, share: float, seed: int) -> None:
    torch.manual_seed(seed)
    layer = with_wide(*sides, share)
    x = rows_of([KINDS[number % len(KINDS)] for number in range(rows)], sides[0])
    weight = layer.dequantized()
    for number, sign in enumerate((1, -1, 1, -1)):  # all of a column's weights of one sign at once, and no other
        x[number] = (sign * weight[number % len(weight)]).sign().clamp_min(0)
    x[4] = 1.0
    with torch.inference_mode():
        found = layer(x)
        assert layer.bias is not None
        wanted = exact(layer, x) + layer.bias
        torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6 * float(wanted.abs().max()))
        assert torch.equal(found, torch.cat([layer(row[None]) for row in x])), "together = alone"


@pytest.mark.parametrize("share", [0.0, 0.003, 1.0])
def test_which_sums_may_not_fit(library: ctypes.CDLL, share: float) -> None:
    torch.manual_seed(0)
    k, n = 203, 70
    layer = with_wide(k, n, share)
    begin, entries = linear_q.wide_weights(layer.weight)
    if "avx2" not in library._name:
        assert not begin.any(), "other kernels add in 32 bits"
        return
    assert len(begin) == 4
    four = torch.nn.functional.pad(layer._integers().int(), (0, 5)).view(n, 26, 2, 2, 2).transpose(2, 3).flatten(3)
    far = torch.maximum(four.clamp_min(0).sum(3), -four.clamp_max(0).sum(3))  # (n, eight, pair)
    wanted = {(c, 8 * i + 2 * j, 32767 // int(far[c, i, j])) for c, i, j in (far * 127 > 32767).nonzero().tolist()}
    found = set()
    for panel, (first, last) in enumerate(itertools.pairwise(begin.tolist())):
        for entry in entries[first:last].tolist():
            place, column, limit = entry & 0xFFFFFFFF, entry >> 32 & 0xFFFF, entry >> 48
            found.add((32 * panel + column, place, limit))
    assert found == (wanted if share < 1 else {(32 * panel, 0xFFFFFFFF, 0) for panel in range(3)})
    assert bool(wanted) == (share > 0)


@pytest.mark.parametrize("kind", LAYERS)
def test_torch_agrees(kind: type[QuantizedLinear], library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    layer, x = made(kind, 1100, 70), rows_of(list(KINDS), 1100)
    with torch.inference_mode():
        ours = layer(x)
        monkeypatch.setattr(native, "LIBRARY", None)
        plain = layer(x)
    scale = plain.norm(dim=1, keepdim=True)
    assert ((ours - plain).norm(dim=1, keepdim=True) <= 2e-6 * scale).all()
    assert len(ours) == len(KINDS)


@pytest.mark.usefixtures("library")
def test_more_inputs_than_sums_hold_are_left_to_torch() -> None:
    layer = Int4Linear.from_state(made(Int4Linear, 64, 32).state(), in_features=64, out_features=32)
    assert layer.has_kernel
    layer.in_features = linear_q.MAX_INPUTS_4 + 1
    assert not layer.has_kernel


@pytest.mark.usefixtures("library")
def test_a_kernel_follows_its_layer() -> None:
    layer, other, x = made(Int8Linear, 64, 32), made(Int8Linear, 64, 32), torch.randn(2, 64)
    with torch.inference_mode():
        before, wanted = layer(x), other(x)
        copied = copy.deepcopy(layer)
        layer.load_state_dict(other.state_dict(), assign=True)
        assert torch.equal(layer(x), wanted) and torch.equal(copied(x), before)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 70), (9, 32), (40, 1000)])
def test_int4_weights_are_rounded_as_by_torch(n: int, k: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(n, k)
    weight[0] *= 1e-6
    if n > 1:
        weight[1], weight[2, : k // 2], weight[3, 0] = 0, 0, 30
    ours, plain = (values(*found) for found in (linear_q.round_groups(weight), rounding.round_groups(weight)))
    assert ours.shape == plain.shape
    off, plain_off = ((found[:, :k] - weight).norm(dim=1) for found in (ours, plain))
    torch.testing.assert_close(off, plain_off, rtol=1e-3, atol=1e-9)
    assert not ours[:, k:].any()


def values(codes: Tensor, multipliers: Tensor, scale: Tensor) -> Tensor:
    """(n, k) float32 weights."""
    assert codes.max() <= 15 and multipliers.abs().max() <= rounding.MULTIPLIER
    return (codes.float() - 8) * multipliers.repeat_interleave(32, 1) * scale[:, None]


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (70, 50), (33, 64), (64, 5)])
def test_rows_of_a_table(rows: int, width: int) -> None:
    table = QuantizedEmbedding.of(nn.Embedding(rows, width).requires_grad_(False))
    ids = torch.randint(rows, (3, 7))
    assert torch.equal(table(ids), table.dequantized()[ids])
    assert torch.equal(table(ids.t()), table.dequantized()[ids.t()])
    assert table(ids[:0]).shape == (0, 7, width)
    for wrong in (-1, rows):
        ids[1, 2] = wrong
        with pytest.raises(IndexError, match=str(wrong)):
            table(ids)
