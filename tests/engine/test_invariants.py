"""Every invariant on every toy and on the bundled checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from behold.checkpoint.hub import DEMO, demo_folder
from tests import invariants, toys

NAMES = (*toys.TOYS, DEMO)


@functools.cache
def subject(name: str, quantize: str | None = None) -> invariants.Subject:
    return invariants.load(demo_folder() if name == DEMO else toys.checkpoint(name), quantize=quantize)


@pytest.mark.parametrize("check", invariants.ALL, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_invariant(name: str, check: Callable[[invariants.Subject], None]) -> None:
    check(subject(name))


@pytest.mark.parametrize("check", invariants.QUANTIZED, ids=lambda check: check.__name__)
@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("name", NAMES)
def test_quantized_invariant(name: str, scheme: str, check: Callable[[invariants.Subject], None]) -> None:
    check(subject(name, scheme))


@pytest.mark.parametrize("check", invariants.QUANTIZED_ONCE, ids=lambda check: check.__name__)
@pytest.mark.parametrize(("name", "scheme"), [("llava-siglip-qwen2", "int8"), ("idefics2", "int4")])
def test_quantized_invariant_of_one(name: str, scheme: str, check: Callable[[invariants.Subject], None]) -> None:
    check(subject(name, scheme))


@pytest.mark.parametrize("name", toys.TOYS)
def test_left_padding(name: str) -> None:
    invariants.left_padded_equals_alone(toys.checkpoint(name))
