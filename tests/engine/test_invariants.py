"""Every invariant on every toy."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import invariants, toys


@functools.cache
def subject(name: str) -> invariants.Subject:
    return invariants.load(toys.checkpoint(name))


@pytest.mark.parametrize("check", invariants.ALL, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", toys.TOYS)
def test_invariant(name: str, check: Callable[[invariants.Subject], None]) -> None:
    check(subject(name))


@pytest.mark.parametrize("name", toys.TOYS)
def test_left_padding(name: str) -> None:
    invariants.left_padded_equals_alone(toys.checkpoint(name))


@pytest.mark.parametrize("name", ["llava-clip-mistral", "idefics2-split"])
def test_random_traffic(name: str) -> None:
    """Arrivals, cancellations and limits drawn at random: whoever is not cancelled gets the answer it gets alone."""
    under_test = subject(name)
    count = len(under_test.prompts)
    event = st.tuples(st.sampled_from(["ask", "ask", "step", "step", "cancel"]), st.integers(0, count - 1))

    @given(events=st.lists(event, max_size=14), rows=st.integers(1, 4), budget=st.integers(2, 90))
    @settings(max_examples=25, deadline=None)
    def run(events: list[tuple[str, int]], rows: int, budget: int) -> None:
        engine = under_test.engine(max_rows=rows, max_step_tokens=budget)
        asked: list[tuple[int, object]] = []
        for kind, index in events:
            if kind == "ask":
                asked.append((index, engine.submit(under_test.prompts[index], under_test.params)))
            elif kind == "step":
                engine.step()
            elif asked:
                engine.cancel(asked[index % len(asked)][1])  # type: ignore[arg-type]
        engine.wait([request for _, request in asked])  # type: ignore[misc]
        for index, request in asked:
            done = request.completions[0]  # type: ignore[attr-defined]
            expected = under_test.expected[index]
            assert done.ids == (expected[: len(done.ids)] if done.finish_reason == "cancelled" else expected)
        engine.check()

    run()
