"""Rows of keys and values: any sequence of steps attends as if the history were there in one piece."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from behold.engine import kv_cache
from behold.engine.kv_cache import KVCache
from behold.nn.attention import AttentionPlan, attend_one

HKV, D = 2, 8


def cache(*, rows: int = 6, budget: int = 10_000, layers: int = 2) -> KVCache:
    return KVCache(
        n_layers=layers,
        n_kv_heads=HKV,
        head_dim=D,
        max_rows=rows,
        budget_tokens=budget,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )


def random(*shape: int) -> Tensor:
    return torch.randn(*shape)


class Histories:
    """Keys and values of every slot in one piece, and what attending to them gives."""

    def __init__(self) -> None:
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def length(self, slot: int) -> int:
        return self.keys[slot].shape[1] if slot in self.keys else 0

    def attend(self, plan: AttentionPlan, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        outputs, start = [], 0
        for index, (slot, length) in enumerate(zip(plan.slots, plan.lengths, strict=True)):
            rows = slice(start, start + length)
            for store, new in ((self.keys, k), (self.values, v)):
                old = store.get(slot, torch.empty(HKV, 0, D))
                store[slot] = torch.cat([old, new[rows].transpose(0, 1)], 1)
            spans = plan.spans_of(index)
            outputs.append(attend_one(q[rows], self.keys[slot], self.values[slot], window=window, spans=spans))
            start += length
        return torch.cat(outputs)


# A step: for some slots, how many tokens each adds.
steps = st.lists(
    st.dictionaries(st.integers(0, 5), st.sampled_from([1, 1, 1, 2, 7]), min_size=1, max_size=6), min_size=1, max_size=8
)


@pytest.mark.parametrize("limit", [0.0, 1.5, 1e9], ids=["one by one", "as it pays", "padded"])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [2, 6])
def test_any_steps_attend_as_over_whole_histories(
    monkeypatch: pytest.MonkeyPatch, limit: float, window: int | None, heads: int
) -> None:
    monkeypatch.setattr(kv_cache, "PADDED_WORK_LIMIT", limit)

    @given(steps=steps, seed=st.integers(0, 99))
    @settings(max_examples=30, deadline=None)
    def run(steps: list[dict[int, int]], seed: int) -> None:
        torch.manual_seed(seed)
        under_test, histories = cache(layers=1), Histories()
        for step in steps:
            items = sorted(step.items(), key=lambda item: (item[1] > 1, item[0]))
            slots, lengths = tuple(slot for slot, _ in items), tuple(length for _, length in items)
            plan = AttentionPlan(lengths, tuple(histories.length(slot) for slot in slots), slots)
            longest = max(context + length for context, length in zip(plan.contexts, lengths, strict=True))
            under_test.grow(max(slots) + 1, longest, reserved=(6, 64))
            q, k, v = random(plan.n_rows, heads, D), random(plan.n_rows, HKV, D), random(plan.n_rows, HKV, D)
            found = under_test.view(plan).attend(0, q, k, v, window=window)
            assert torch.allclose(found, histories.attend(plan, q, k, v, window), atol=1e-5)

    run()


def test_spans_that_attend_both_ways() -> None:
    torch.manual_seed(0)
    under_test, histories = cache(layers=1), Histories()
    under_test.grow(2, 20, reserved=(2, 20))
    for plan in (
        AttentionPlan((6, 4), (0, 0), (0, 1), (((1, 4),), ())),
        AttentionPlan((5, 1), (6, 4), (0, 1), (((7, 10),), ())),
    ):
        q, k, v = random(plan.n_rows, 4, D), random(plan.n_rows, HKV, D), random(plan.n_rows, HKV, D)
        found = under_test.view(plan).attend(0, q, k, v)
        assert torch.allclose(found, histories.attend(plan, q, k, v, None), atol=1e-5)


def test_growing_keeps_what_is_there_and_doubles() -> None:
    under_test = cache()
    shapes = []
    for tokens in (10, 64, 65, 200, 500):
        under_test.grow(1, tokens, reserved=(1, 1000))
        shapes.append(under_test.shape)
        under_test.keys[1][0, :, tokens - 1] = tokens
    assert shapes == [(1, 64), (1, 64), (1, 128), (1, 256), (1, 512)]
    under_test.grow(3, 500, reserved=(3, 1000))
    assert under_test.shape == (3, 512)
    assert [float(under_test.keys[1][0, 0, n - 1, 0]) for n in (10, 64, 65, 200, 500)] == [10, 64, 65, 200, 500]
    assert all(table.shape[0::2] == (3, 512) for table in (*under_test.keys, *under_test.values))


def test_storage_is_no_larger_than_what_is_reserved_or_budgeted() -> None:
    under_test = cache(budget=400)
    under_test.grow(1, 300, reserved=(1, 310))
    assert under_test.shape == (1, 320)
    under_test.grow(4, 90, reserved=(4, 100))
    assert under_test.shape == (4, 100), "rows that are over give their length back"
    under_test.grow(1, 350, reserved=(1, 400))
    rows, capacity = under_test.shape
    assert capacity >= 350 and rows * capacity <= 400


def test_growing_again_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    under_test, calls = cache(), iter(range(100))
    resized = kv_cache._resized

    def interrupted(*args: object) -> Tensor:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return resized(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(kv_cache, "_resized", interrupted)
    with pytest.raises(KeyboardInterrupt):
        under_test.grow(2, 30, reserved=(2, 30))
    under_test.grow(2, 30, reserved=(2, 30))
    assert {tuple(table.shape) for table in (*under_test.keys, *under_test.values)} == {(2, HKV, 64, D)}


def test_fork_copies_a_part_of_a_row() -> None:
    under_test = cache()
    under_test.grow(2, 10, reserved=(2, 10))
    under_test.values[1][0, :, :10] = torch.arange(10.0)[:, None]
    under_test.fork(0, 1, 4, 7)
    assert under_test.values[1][1, 0, :10, 0].tolist() == [0, 0, 0, 0, 4, 5, 6, 0, 0, 0]


def test_a_ceiling_is_found_on_this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kv_cache.budget_bytes(torch.device("cpu")) >= kv_cache.FLOOR_BYTES
    monkeypatch.setattr(kv_cache, "_free_bytes", lambda: 6 << 30)
    assert kv_cache.budget_bytes(torch.device("cpu")) == 3 << 30
