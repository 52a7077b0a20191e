"""Our attention over cache rows and the reference agree, whatever sequences share a step."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from behold.kernels.attention_f32 import MAX_TOKENS, FewTokens, suits
from behold.nn.attention import attend_one

LAYERS, LAYER = 2, 1

sequences = st.lists(
    st.tuples(st.one_of(st.integers(0, 70), st.sampled_from([127, 128, 200])), st.integers(1, 9)),
    min_size=1,
    max_size=4,
)


@pytest.mark.usefixtures("library")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sequences=sequences,
    shape=st.tuples(st.integers(1, 3), st.sampled_from([1, 2, 7]), st.sampled_from([8, 24, 64, 72, 128])),
    window=st.sampled_from([None, 1, 5, 100]),
    scale=st.sampled_from([1.0, 30.0]),
    seed=st.integers(0, 9),
)
def test_any_step(
    sequences: list[tuple[int, int]],
    shape: tuple[int, int, int],
    window: int | None,
    scale: float,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    total = sum(length for _, length in sequences)
    kv_heads, shared, dim = shape
    heads = kv_heads * shared
    q, k, v = (torch.randn(total, n, dim) for n in (heads, kv_heads, kv_heads))
    q = q * scale  # some weights then vanish
    rows, first = [], 0
    for context, length in sequences:
        rows.append((torch.randn(LAYERS, 2, kv_heads, context + length + 3, dim), context, length, first))
        first += length
    out = torch.full_like(q, torch.nan)
    other_layer = [storage[0].clone() for storage, *_ in rows]
    with torch.inference_mode():
        FewTokens(rows).attend(LAYER, q, k, v, out, window=window)
    for (storage, context, length, first), untouched in zip(rows, other_layer, strict=True):
        stop, own = context + length, slice(first, first + length)
        keys, values = storage[LAYER][:, :, :stop]
        assert torch.equal(keys[:, context:], k[own].transpose(0, 1))
        assert torch.equal(values[:, context:], v[own].transpose(0, 1))
        assert torch.equal(storage[0], untouched)
        wanted = attend_one(q[own].double(), keys.double(), values.double(), window=window).float()
        # what a score of float32 is rounded by, grows with it, and weights with that
        torch.testing.assert_close(out[own], wanted, atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.usefixtures("library")
def test_where_it_suits() -> None:
    with torch.inference_mode():
        assert suits(torch.zeros(1, 2, 1, 4, 8), MAX_TOKENS)
        assert not suits(torch.zeros(1, 2, 1, 4, 8), MAX_TOKENS + 1)
        assert not suits(torch.zeros(1, 2, 1, 4, 12), 1)
        assert not suits(torch.zeros(1, 2, 1, 4, 8, dtype=torch.bfloat16), 1)
