"""Attention with rounded numbers: what it rounds is what it says, and how far off that is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from behold.kernels.attention_q8 import CHUNK, SHORT, Rounded, suits

MOST, LENGTH, TOGETHER, VALUES, WEIGHT = 90, 178.5, 12, 104, 127

relaxed = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
shapes = st.tuples(
    st.integers(1, 2),
    st.one_of(st.integers(1, 130), st.sampled_from([191, 192, 193, 300])),
    st.integers(1, 3),
    st.sampled_from([8, 16, 64, 72, 80, 88, 128]),
)


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(B, n, heads · d) to (B, heads, n, d) float64."""
    return x.double().unflatten(2, (heads, -1)).transpose(1, 2)


def exactly(joined: Tensor, heads: int) -> Tensor:
    q, k, v = (heads_of(x, heads) for x in joined.chunk(3, dim=2))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def rounded_rows(x: Tensor) -> Tensor:
    """To steps of which a row's largest number has MOST, and either half of the places of a sum has LENGTH together."""
    halves = torch.nn.functional.pad(x, (0, -x.shape[3] % (8 * SHORT))).unflatten(3, (-1, 2 * SHORT, 2, 2))
    longest = halves.square().sum((4, 6)).amax((3, 4)).sqrt()
    return to_steps(x, torch.maximum(x.abs().amax(3) / MOST, longest / LENGTH)[..., None])


def rounded_values(x: Tensor) -> Tensor:
    """To steps, one for each channel, of which either half of the TOGETHER keys of a sum has VALUES together."""
    turned = torch.nn.functional.pad(x, (0, 0, 0, CHUNK - x.shape[2])).unflatten(2, (CHUNK // 32, 4, 2, 2, 2))
    keys = turned.transpose(3, 4).flatten(2, 4).unflatten(2, (-1, TOGETHER // 4))  # fours in the order of weights
    return to_steps(x, keys.square().sum((3, 5)).amax((2, 3)).sqrt()[:, :, None] / VALUES)


def to_steps(x: Tensor, step: Tensor) -> Tensor:
    return torch.where(step > 0, torch.round(x / step) * step, 0.0)


def as_documented(joined: Tensor, heads: int) -> Tensor:
    """The same in torch."""
    q, k, v = (heads_of(x, heads) for x in joined.chunk(3, dim=2))
    q_mean, k_mean, v_mean = (x.mean(2, keepdim=True) for x in (q, k, v))
    bias = (q_mean * (k - k_mean)).sum(3)[:, :, None]
    products = rounded_rows(q - q_mean) @ rounded_rows(k - k_mean).transpose(2, 3)
    scores = (products + bias) / math.sqrt(q.shape[3])
    largest = scores.amax(3, keepdim=True)
    found, total = torch.zeros_like(q), (scores - largest).exp().sum(3, keepdim=True)
    for start in range(0, k.shape[2], CHUNK):
        some, values = scores[..., start : start + CHUNK], (v - v_mean)[:, :, start : start + CHUNK]
        top = some.amax(3, keepdim=True)
        weights = torch.round((some - top).exp() * WEIGHT) / WEIGHT
        found += weights @ rounded_values(values) * (top - largest).exp()
    return (v_mean + found / total).transpose(1, 2).flatten(2)


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


@pytest.mark.usefixtures("library")
@relaxed
@given(shape=shapes, scale=st.sampled_from([0.0, 0.1, 1.0, 4.0]), seed=st.integers(0, 9))
def test_any_picture(shape: tuple[int, int, int, int], scale: float, seed: int) -> None:
    batch, length, heads, dim = shape
    torch.manual_seed(seed)
    joined = torch.randn(batch, length, 3 * heads * dim)
    joined[..., : heads * dim] *= scale
    with torch.inference_mode():
        found = Rounded(joined, heads).attend(0, length)
        # where a number lies between two integers, the last bit decides; of few weights each one counts
        assert off(found, as_documented(joined, heads)) < 2e-3 + 1 / (WEIGHT * length)
        assert off(found, exactly(joined, heads)) < 0.04
        cut = length // 3
        pieces = [Rounded(joined, heads).attend(a, b) for a, b in ((0, cut), (cut, length)) if a < b]
        assert torch.equal(torch.cat(pieces, dim=1), found)
        assert torch.equal(Rounded(joined[-1:].clone(), heads).attend(0, length)[0], found[-1])


def normal(length: int = 600) -> Tensor:
    return torch.randn(1, length, 3 * 2 * 72)


def steady_channels() -> Tensor:
    """Some channels of queries, keys and values are large everywhere."""
    joined = normal()
    joined[..., ::24] += 30 * torch.randn(1, 1, 18)
    joined[..., :144:24] -= 25
    return joined


def one_key_for_all() -> Tensor:
    """A key takes half of all weight, and the others, each for itself, too little for 8 bits."""
    joined = normal()
    joined[..., :144] *= 0.1
    joined[..., :144:72] = 8.0
    joined[..., 144:288:72] = 0.0
    joined[:, 5, 144:288:72] = math.log(600) * math.sqrt(72) / 8
    return joined


def loud_patch() -> Tensor:
    """The numbers of one patch are a hundred times the others'."""
    joined = normal()
    joined[:, 400] *= 100
    return joined


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize(
    ("make", "gate"), [(normal, 0.022), (steady_channels, 0.003), (one_key_for_all, 0.03), (loud_patch, 0.05)]
)
def test_how_far_off(make: object, gate: float) -> None:
    torch.manual_seed(0)
    assert callable(make)
    joined = make()
    with torch.inference_mode():
        found, wanted = Rounded(joined, 2).attend(0, 600), exactly(joined, 2)
    rows = (found.double() - wanted).norm(dim=2) / wanted.norm(dim=2)
    assert off(found, wanted) < gate and float(rows.median()) < gate


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("dim", [40, 72, 128])
def test_sums_as_large_as_can_be(dim: int) -> None:
    """All numbers are as large, queries like keys, or weights all alike: no sum of 16 bits runs over."""
    torch.manual_seed(0)
    signs = torch.randint(0, 2, (1, 200, dim)) * 2.0 - 1
    signs[:, 100:] = -signs[:, :100]  # no mean is to be taken off
    steps = torch.where(torch.arange(200) < 100, 1.0, -1.0)[None, :, None].expand(1, 200, dim)
    for joined in (torch.cat([signs, signs, signs], 2), torch.cat([0 * signs, signs, steps], 2)):
        with torch.inference_mode():
            found = Rounded(joined.contiguous(), 1).attend(0, 200)
            assert (found.double() - as_documented(joined, 1)).abs().max() < 2e-3


def test_where_it_suits() -> None:
    assert not suits(24, 2) and not suits(2 * 136, 2)


@pytest.mark.usefixtures("library")
def test_where_it_suits_with_kernels() -> None:
    assert suits(144, 2) and suits(8, 1)
