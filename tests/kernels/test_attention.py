"""Our attention over cache rows and the reference agree, whatever sequences share a step; so does that of towers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from behold.kernels.attention import FEW, MAX_DIM, MAX_ROUNDED_DIM, RowTokens, Way, attend_all, suits_all, way
from behold.kernels.rows import KeptRow, spread, spread_by
from behold.nn.attention import attend_one

LAYERS, LAYER = 2, 1
KINDS = (torch.float32, torch.float16, torch.int8)


def kept(numbers: Tensor, dtype: torch.dtype = torch.float32) -> KeptRow:
    """A row (L, 2, Hkv, places, d) that holds these numbers as well as it can."""
    row = KeptRow.empty(tuple(numbers.shape), dtype, torch.device("cpu"))
    for layer, (keys, values) in enumerate(numbers):
        row.put(layer, 0, keys.transpose(0, 1), values.transpose(0, 1))
    return row


def copied(row: KeptRow) -> KeptRow:
    return KeptRow(row.numbers.clone(), None if row.scales is None else row.scales.clone())


relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sequences = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 70), st.sampled_from([95, 96, 127, 128, 200])),
        st.one_of(st.integers(1, 9), st.sampled_from([24, 61, 145])),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("stored", KINDS, ids=str)
@relaxed
@given(
    sequences=sequences,
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 7]), st.sampled_from([8, 24, 40, 64, 72, 128])),
    how=st.tuples(st.sampled_from(Way), st.sampled_from([None, 1, 5, 100])),
    seed=st.integers(0, 9),
)
def test_any_step(
    stored: torch.dtype,
    sequences: list[tuple[int, int]],
    shape: tuple[int, int, int],
    how: tuple[Way, int | None],
    seed: int,
) -> None:
    torch.manual_seed(seed)
    kind, window = how
    total = sum(length for _, length in sequences)
    kv_heads, shared, dim = shape
    heads = kv_heads * shared
    joined = torch.randn(total, heads + 2 * kv_heads, dim)
    scale = (1.0, 30.0)[seed % 2]  # with the larger one some weights vanish
    joined[:, :heads] *= scale
    q, k, v = joined.split((heads, kv_heads, kv_heads), dim=1)
    if seed % 3 == 0:
        q, k, v = q.contiguous(), k.transpose(1, 2).contiguous().transpose(1, 2), v.contiguous()
    rows, first = [], 0
    for context, length in sequences:
        row = kept(torch.randn(LAYERS, 2, kv_heads, context + length + 3, dim), stored)
        nothing = row.numbers if row.scales is None else row.scales
        nothing[:, :, :, context:] = torch.nan  # nobody may look at what is not written yet
        rows.append((row, context, length, first))
        first += length
    out = torch.full((total, heads, dim), torch.nan)
    before = [copied(row) for row, *_ in rows]
    with torch.inference_mode():
        RowTokens(kind, rows).attend(LAYER, q, k, v, out, window=window)
    for (row, context, length, first), wanted_row in zip(rows, before, strict=True):
        stop, own = context + length, slice(first, first + length)
        wanted_row.put(LAYER, context, k[own], v[own])
        assert same(row, wanted_row)
        keys, values = (x.double() for x in row.seen(LAYER, stop, torch.float32))
        if stored is torch.int8 and kind is Way.MANY:
            wanted = attend_one(of_7_bits(q[own]).double(), keys, values, window=window)
            assert (out[own] - wanted).norm() < 0.03 * wanted.norm()  # weights have as many
            continue
        wanted = attend_one(q[own].double(), keys, values, window=window)
        atol = 3e-4 * scale if stored is torch.int8 else 5e-6 * max(scale, 2.0)  # there, queries are rounded, too
        torch.testing.assert_close(out[own].double(), wanted, atol=atol, rtol=1e-5)


def of_7_bits(q: Tensor) -> Tensor:
    """Queries (T, H, d) as many of them are multiplied with integers."""
    wide = spread(q)
    step = wide.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 64
    return spread((wide / step).round() * step) / spread_by(q.shape[-1])


@pytest.mark.usefixtures("library")
def test_many_queries_over_integers_are_little_off() -> None:
    """Also where the first token takes nearly all of the weight and says nothing, as it does in many models."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(400, heads, 64) for heads in (4, 2, 2))
    q[..., 0] += 4
    k[0], v[0] = 0, v[0] / 50
    k[0, :, 0] = 16
    row, out = kept(torch.zeros(1, 2, 2, 400, 64), torch.int8), torch.empty(400, 4, 64)
    with torch.inference_mode():
        RowTokens(Way.MANY, [(row, 0, 400, 0)]).attend(0, q, k, v, out, window=None)
    wanted = attend_one(q, k.transpose(0, 1), v.transpose(0, 1))
    assert (out - wanted).norm() < 0.04 * wanted.norm()


def same(row: KeptRow, other: KeptRow) -> bool:
    """To the bit; of rounded rows, whose sums are made in another order, an integer in a thousand may be the next."""
    if row.scales is not None and other.scales is not None:
        written = ~row.scales.isnan()
        alike = torch.equal(written, ~other.scales.isnan())
        alike = alike and torch.allclose(row.scales[written], other.scales[written], atol=0, rtol=1e-6)
        off = (row.numbers.int() - other.numbers.int()).abs()
        return alike and int(off.max()) <= 1 and int(off.sum()) <= 1 + off.numel() // 1000
    return torch.equal(row.numbers.nan_to_num(), other.numbers.nan_to_num())


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("kind", Way)
@pytest.mark.parametrize("stored", KINDS, ids=str)
def test_a_token_depends_on_nothing_else(kind: Way, stored: torch.dtype) -> None:
    """The same to the last bit beside another sequence, in one piece, and in pieces."""
    torch.manual_seed(0)
    context, length, dim = 130, 100, 64
    q, k, v = (torch.randn(length, heads, dim) for heads in (4, 2, 2))
    row = kept(torch.randn(1, 2, 2, context + length, dim), stored)

    def run(cuts: list[int]) -> Tensor:
        own, out = copied(row), torch.empty_like(q)
        for start, stop in zip([0, *cuts], [*cuts, length], strict=True):
            tokens = RowTokens(kind, [(own, context + start, stop - start, 0)])
            tokens.attend(0, q[start:stop], k[start:stop], v[start:stop], out[start:stop], window=60)
        return out

    with torch.inference_mode():
        whole = run([])
        assert torch.equal(whole, run([1, 30, 77])) and torch.equal(whole, run(list(range(1, length))))
        beside = torch.empty(length + 40, 4, dim)
        other = (kept(torch.randn(1, 2, 2, 40, dim), stored), 0, 40, 0)
        new = [torch.cat([torch.randn(40, *x.shape[1:]), x]) for x in (q, k, v)]
        RowTokens(kind, [other, (copied(row), context, length, 40)]).attend(0, *new, beside, window=60)
        assert torch.equal(beside[40:], whole)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("kind", Way)
def test_what_is_too_large_stays_a_number(kind: Way) -> None:
    large = torch.tensor([1e6, -1e6, 65504.0, 65519.0, 3e-8, 2e-8, 6.1e-5, -0.0])
    k = large.repeat(3, 1, 1)
    row, out = kept(torch.zeros(1, 2, 1, 3, 8), torch.float16), torch.empty(3, 1, 8)
    with torch.inference_mode():
        RowTokens(kind, [(row, 0, 3, 0)]).attend(0, torch.ones(3, 1, 8), k, k, out, window=None)
    wanted = large.clamp(-65504, 65504).half()
    keys, values = row.numbers[0, :, 0]
    assert torch.equal(keys[1], wanted) and torch.equal(torch.signbit(values[2]), torch.signbit(wanted))
    torch.testing.assert_close(out[2, 0], wanted.float())


@pytest.mark.usefixtures("library")
@relaxed
@given(
    batch=st.integers(1, 2),
    length=st.one_of(st.integers(1, 100), st.sampled_from([143, 144, 145, 300])),
    heads=st.integers(1, 3),
    dim=st.sampled_from([8, 64, 72, 80, 88, 128]),
    seed=st.integers(0, 9),
)
def test_all_see_all(batch: int, length: int, heads: int, dim: int, seed: int) -> None:
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, batch, length, heads * dim)
    split = (x.double().view(batch, length, heads, dim).transpose(1, 2) for x in (q, k, v))
    wanted = torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
    with torch.inference_mode():
        found = attend_all(q, k, v, heads, start=0, stop=length)
        torch.testing.assert_close(found.double(), wanted, atol=3e-6, rtol=1e-5)
        cut = length // 3
        pieces = [attend_all(q, k, v, heads, start=a, stop=b) for a, b in ((0, cut), (cut, length)) if a < b]
        assert torch.equal(torch.cat(pieces, dim=1), found)
        assert torch.equal(attend_all(q[-1:], k[-1:], v[-1:], heads, start=0, stop=length)[0], found[-1])


@pytest.mark.usefixtures("library")
def test_where_it_suits() -> None:
    def row(dim: int, dtype: torch.dtype = torch.float32) -> KeptRow:
        return KeptRow.empty((1, 2, 1, 4, dim), dtype, torch.device("cpu"))

    x = torch.zeros(1, 3, 2 * MAX_DIM + 16)
    with torch.inference_mode():
        assert way(row(8), FEW) is way(row(8, torch.float16), 1) is way(row(256), 1) is Way.FEW
        assert way(row(MAX_ROUNDED_DIM, torch.int8), 1) is Way.FEW and way(row(264, torch.int8), 1) is None
        assert way(row(8), FEW + 1) is Way.MANY
        assert way(row(8, torch.int8), 1, prompt=True) is Way.MANY and way(row(8), 1, prompt=True) is Way.FEW
        assert way(row(12), 1) is way(row(256), FEW + 1) is way(row(8, torch.bfloat16), 1) is None
        assert suits_all(*[x[..., :16].contiguous()] * 3, 2)
        assert not suits_all(x, x, x, 2) and not suits_all(*[x[..., :24].contiguous()] * 3, 2)
    assert way(row(8), 1) is None  # gradients are on


@pytest.mark.parametrize("dim", [8, 24, 64, 80])
def test_spreading_keeps_products(dim: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 5, dim).double()
    torch.testing.assert_close((spread(q) * spread(k)).sum(-1), (q * k).sum(-1) * spread_by(dim))
    torch.testing.assert_close(spread(spread(k)), k * spread_by(dim))
    assert (spread(torch.eye(dim)).abs().sum(-1) == spread_by(dim)).all()


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("kind", Way)
@pytest.mark.parametrize(("louder", "most"), [(1, 0.02), (100, 0.05)])
def test_eight_bits_are_enough(kind: Way, louder: float, most: float) -> None:
    """Also where a channel of all keys is 100 times as loud as the others: it has no part in the weights' differences,
    but would take the bits of those that have.
    """
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 300, 2, 64)
    k[:, :, 5] = louder * (1 + 0.01 * k[:, :, 5])
    row, out = kept(torch.zeros(1, 2, 2, 300, 64), torch.int8), torch.empty_like(q)
    with torch.inference_mode():
        RowTokens(kind, [(row, 0, 300, 0)]).attend(0, q, k, v, out, window=None)
    wanted = attend_one(q, k.transpose(0, 1), v.transpose(0, 1))
    assert float((out - wanted).norm() / wanted.norm()) < most
