"""Our linear layer and torch's agree on any shape, and a row does not depend on its neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from behold.kernels import linear_f32

relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.usefixtures("library")
@relaxed
@given(
    rows=st.integers(1, 17),
    k=st.one_of(st.integers(1, 70), st.sampled_from([1023, 1024, 1040, 2050])),
    n=st.one_of(st.integers(1, 20), st.sampled_from([127, 128, 131, 300])),
    bias=st.booleans(),
    seed=st.integers(0, 9),
)
def test_any_shape(rows: int, k: int, n: int, bias: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, w, b = (torch.randn(shape, generator=generator) for shape in ((rows, k), (n, k), (n,)))
    with torch.inference_mode():
        found = linear_f32.linear(x, w, b if bias else None)
        wanted = x.double() @ w.double().T + (b.double() if bias else 0)
        assert (found - wanted).abs().max() <= 1e-6 * max(k, 16) ** 0.5 * 4
        alone = torch.cat([linear_f32.linear(row[None], w, b if bias else None) for row in x])
        assert torch.equal(found, alone)


def test_where_it_suits(library: object) -> None:
    weight, small = torch.zeros(256, 256), torch.zeros(8, 256)
    one, most, more = (torch.zeros(rows, 256) for rows in (1, linear_f32.MAX_ROWS, linear_f32.MAX_ROWS + 1))
    with torch.inference_mode():
        assert linear_f32.suits(one, weight) and linear_f32.suits(most, weight)
        assert not linear_f32.suits(more, weight) and not linear_f32.suits(one[:0], weight)
        assert not linear_f32.suits(one, small) and not linear_f32.suits(one.double(), weight.double())
        assert not linear_f32.suits(most.t().contiguous().t(), weight)  # rows that do not lie one behind the other
    assert not linear_f32.suits(one, weight)  # gradients are on
