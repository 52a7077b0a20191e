"""Rows of keys and values: any sequence of steps attends as if the history were there in one piece."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from behold.engine import kv_cache
from behold.engine.kv_cache import KVCache
from behold.errors import OptionError
from behold.kernels import attention
from behold.kernels import rows as kept_rows
from behold.kernels.rows import KeptRow
from behold.nn.attention import AttentionPlan, attend_one
from tests.engine.fake import FakeModel

HKV, D = 2, 8


def cache(*, layers: int = 2, stored: torch.dtype = torch.float32) -> KVCache:
    return KVCache(
        n_layers=layers,
        n_kv_heads=HKV,
        head_dim=D,
        device=torch.device("cpu"),
        dtype=stored,
        computes=torch.float32,
    )


def random(*shape: int) -> Tensor:
    return torch.randn(*shape)


class Histories:
    """Keys and values of every slot in one piece, and what attending to them gives."""

    def __init__(self, stored: torch.dtype = torch.float32) -> None:
        self.stored = stored
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def rounded(self, new: Tensor, *, values: bool) -> Tensor:
        """(T, Hkv, D) as a row keeps it: (Hkv, T, D)."""
        row = KeptRow.empty((1, 2, HKV, len(new), D), self.stored, torch.device("cpu"))
        row.put(0, 0, new, new)
        return row.seen(0, len(new), torch.float32)[values]

    def length(self, slot: int) -> int:
        return self.keys[slot].shape[1] if slot in self.keys else 0

    def attend(
        self,
        plan: AttentionPlan,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        window: int | None,
        *,
        as_kept: KVCache | None = None,
    ) -> Tensor:
        """as_kept: what it keeps is within a step of 127 of what is told here, and attended to in its place.

        A kernel adds up in another order than torch, and that may round a number to the next.
        """
        outputs, start = [], 0
        for index, (slot, length) in enumerate(zip(plan.slots, plan.lengths, strict=True)):
            rows = slice(start, start + length)
            for store, new in ((self.keys, k), (self.values, v)):
                old = store.get(slot, torch.empty(HKV, 0, D))
                store[slot] = torch.cat([old, self.rounded(new[rows], values=new is v)], 1)
            if as_kept is not None:
                row, stop = as_kept.rows[slot], self.length(slot)
                assert row.scales is not None
                for part, store in enumerate((self.keys, self.values)):
                    kept = row.seen(0, stop, torch.float32)[part]
                    # a step of a key is, turned back, at most a step in each of its numbers
                    step = 1.01 * row.scales[0, part, :, :stop, None]
                    assert bool(((kept - store[slot]).abs() <= step).all())
                    store[slot] = kept
            spans = plan.spans_of(index)
            outputs.append(attend_one(q[rows], self.keys[slot], self.values[slot], window=window, spans=spans))
            start += length
        return torch.cat(outputs)


# A step: for some slots, how many tokens each adds.
steps = st.lists(
    st.dictionaries(st.integers(0, 5), st.sampled_from([1, 1, 1, 2, 7, 20]), min_size=1, max_size=6),
    min_size=1,
    max_size=8,
)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16, torch.int8], ids=str)
def test_any_steps_attend_as_over_whole_histories(window: int | None, heads: int, stored: torch.dtype) -> None:
    @given(steps=steps, seed=st.integers(0, 99), native=st.booleans())
    @settings(max_examples=30, deadline=None)
    def run(steps: list[dict[int, int]], seed: int, native: bool) -> None:
        torch.manual_seed(seed)
        under_test, histories = cache(layers=1, stored=stored), Histories(stored)
        for step in steps:
            items = sorted(step.items(), key=lambda item: (item[1] > 1, item[0]))
            slots, lengths = tuple(slot for slot, _ in items), tuple(length for _, length in items)
            plan = AttentionPlan(lengths, tuple(histories.length(slot) for slot in slots), slots)
            for slot, context, length in zip(slots, plan.contexts, lengths, strict=True):
                under_test.grow(slot, context + length, reserve=200)
            q, k, v = random(plan.n_rows, heads, D), random(plan.n_rows, HKV, D), random(plan.n_rows, HKV, D)
            with torch.inference_mode(native):  # kernels keep to where no gradients are
                found = under_test.view(plan).attend(0, q, k, v, window=window)
            # of integers, queries and weights are of 15 bits; those of more than eight tokens of 7
            atol = 1e-5 if stored is not torch.int8 else 1e-3 if max(lengths) <= attention.FEW else 0.1
            wanted = histories.attend(plan, q, k, v, window, as_kept=under_test if stored is torch.int8 else None)
            assert torch.allclose(found, wanted, atol=atol)

    run()


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.int8], ids=str)
def test_spans_that_attend_both_ways(stored: torch.dtype) -> None:
    torch.manual_seed(0)
    under_test, histories = cache(layers=1, stored=stored), Histories(stored)
    for slot in (0, 1):
        under_test.grow(slot, 20, reserve=20)
    for plan in (
        AttentionPlan((6, 4), (0, 0), (0, 1), (((1, 4),), ())),
        AttentionPlan((5, 1), (6, 4), (0, 1), (((7, 10),), ())),
    ):
        q, k, v = random(plan.n_rows, 4, D), random(plan.n_rows, HKV, D), random(plan.n_rows, HKV, D)
        found = under_test.view(plan).attend(0, q, k, v)
        assert torch.allclose(found, histories.attend(plan, q, k, v, None), atol=1e-5)


@pytest.mark.parametrize("window", [None, 4])
def test_branches_see_what_is_before_them_and_themselves(window: int | None) -> None:
    torch.manual_seed(0)
    under_test = cache(layers=1)
    under_test.grow(0, 20, reserve=20)
    context = AttentionPlan((6,), (0,), (0,))
    old = [random(6, HKV, D) for _ in range(3)]
    under_test.view(context).attend(0, *old)
    branches = (3, 1, 2)
    q, k, v = (random(6, HKV, D) for _ in range(3))
    found = under_test.view(AttentionPlan((6,), (6,), (0,), branches=(branches,))).attend(0, q, k, v, window=window)
    start = 0
    for length in branches:
        rows = slice(start, start + length)
        keys, values = (torch.cat([a, b[rows]]).transpose(0, 1) for a, b in ((old[1], k), (old[2], v)))
        assert torch.allclose(found[rows], attend_one(q[rows], keys, values, window=window), atol=1e-5)
        start += length


@pytest.mark.parametrize("spans", [(), ((0, 3),)], ids=["causal", "both ways"])
def test_what_the_narrow_type_cannot_hold_stays_a_number(spans: tuple[tuple[int, int], ...]) -> None:
    under_test = cache(layers=1, stored=torch.float16)
    under_test.grow(0, 3, reserve=3)
    k = torch.full((3, HKV, D), 1e6)
    plan = AttentionPlan((3,), (0,), (0,), (spans,))
    with torch.inference_mode():
        found = under_test.view(plan).attend(0, random(3, HKV, D), k, -k)
    assert under_test.rows[0].numbers[0, 0, :, :3].unique().tolist() == [65504]
    assert torch.allclose(found, torch.tensor(-65504.0))


@pytest.mark.parametrize("stored", [torch.float32, torch.int8], ids=str)
def test_a_row_doubles_and_keeps_what_is_there(stored: torch.dtype) -> None:
    under_test = cache(stored=stored)
    capacities = []
    for tokens in (10, 64, 65, 200, 500):
        under_test.grow(3, tokens, reserve=tokens)
        capacities.append(under_test.rows[3].places)
        under_test.rows[3].put(1, tokens - 1, torch.full((1, HKV, D), tokens), torch.zeros(1, HKV, D))
    assert capacities == [64, 64, 128, 256, 512]
    under_test.grow(3, 520, reserve=600)
    row = under_test.rows[3]
    assert row.numbers.shape == (2, 2, HKV, 1024, D)
    keys, _ = row.seen(1, 500, torch.float32)
    torch.testing.assert_close(keys[0, [9, 63, 64, 199, 499], 0], torch.tensor([10.0, 64, 65, 200, 500]))
    under_test.grow(4, 5, reserve=5)
    a_place = 2 * 2 * HKV * (D * 4 if stored is torch.float32 else D + 4)
    assert under_test.n_bytes == a_place * (520 + 5)


def test_places_that_will_be_needed_soon_are_there_from_the_start() -> None:
    under_test = cache()
    under_test.grow(0, 100, reserve=300)
    assert under_test.rows[0].places == 512
    under_test.grow(1, 100, reserve=100_000)
    assert under_test.rows[1].places == 512, "not all that may ever be needed"


def test_rows_that_are_mostly_filled_lie_in_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(KeptRow, "in_large_pages", lambda row: asked.append(row.places))
    rows = cache(stored=torch.int8)
    rows.grow(0, 700, reserve=720)
    rows.grow(1, 40, reserve=1000)
    rows.grow(0, 701, reserve=720)
    assert asked == [rows.rows[0].places]


@pytest.mark.parametrize("stored", [torch.float32, torch.int8])
def test_what_lies_in_large_pages_is_told_once_for_each_part(
    stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[int, int] = {}
    monkeypatch.setattr(kept_rows, "advise", lambda address, n_bytes, _: told.update({address: n_bytes}))
    row = KeptRow.empty((2, 2, HKV, 64, D), stored, torch.device("cpu"))
    row.in_large_pages()
    parts = [part for part in (row.numbers, row.scales) if part is not None]
    assert told == {part.data_ptr(): part.nbytes for part in parts}


def test_memory_that_costs_at_once_is_no_more_than_reserved() -> None:
    under_test = KVCache(n_layers=2, n_kv_heads=HKV, head_dim=D, device=torch.device("meta"), dtype=torch.float32)
    under_test.grow(0, 100, reserve=110)
    assert under_test.rows[0].places == 110


def test_rows_that_are_not_retained_are_freed() -> None:
    under_test = cache()
    for row in range(3):
        under_test.grow(row, 5, reserve=5)
    under_test.retain({1, 7})
    assert list(under_test.rows) == [1]


@pytest.mark.parametrize("stored", [torch.float32, torch.int8], ids=str)
def test_a_part_of_a_row_is_copied(stored: torch.dtype) -> None:
    under_test = cache(stored=stored)
    numbers = torch.arange(10.0)[:, None, None].expand(10, HKV, D)
    for row, x in ((0, numbers), (1, torch.zeros(10, HKV, D))):
        under_test.grow(row, 10, reserve=10)
        for layer in range(2):
            under_test.rows[row].put(layer, 0, x, x)
    under_test.copy(0, 1, 4, 7)
    for x in under_test.rows[1].seen(1, 10, torch.float32):
        torch.testing.assert_close(x[1, :, 0], torch.tensor([0.0, 0, 0, 0, 4, 5, 6, 0, 0, 0]))


def test_a_ceiling_is_found_on_this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kv_cache.budget_bytes(torch.device("cpu")) >= kv_cache.FLOOR_BYTES
    monkeypatch.setattr(kv_cache, "_free_bytes", lambda: 6 << 30)
    assert kv_cache.budget_bytes(torch.device("cpu")) == 3 << 30


@pytest.mark.parametrize(
    ("choice", "integers", "wanted"),
    [
        ("auto", False, torch.float32),
        ("auto", True, torch.int8),
        ("float32", True, torch.float32),
        ("float16", False, torch.float16),
        ("int8", False, torch.int8),
    ],
)
def test_the_type_of_rows(choice: str, integers: bool, wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "integers_pay", lambda: True)
    model = FakeModel()
    if integers:
        model.decoder.register_buffer("weight", torch.zeros(1, dtype=torch.int8))
    assert kv_cache.stored_as(choice, model) is wanted


def test_rows_are_narrow_only_where_that_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "integers_pay", lambda: False)
    model = FakeModel()
    model.decoder.register_buffer("weight", torch.zeros(1, dtype=torch.int8))
    assert kv_cache.stored_as("auto", model) is torch.float32


def test_an_unknown_type_of_rows() -> None:
    with pytest.raises(OptionError, match=r"kv_dtype='int2'.*'auto', 'float32', 'float16', 'int8'"):
        kv_cache.stored_as("int2", FakeModel())


@pytest.mark.parametrize(
    ("choice", "weights", "kept"), [(0, 1, 0), (None, 1, 1 << 27), (None, 1 << 30, 1 << 28), (None, 1 << 33, 1 << 30)]
)
def test_a_small_model_keeps_less(choice: int | None, weights: int, kept: int) -> None:
    model = FakeModel()
    model.register_buffer("weights", torch.empty(weights - 1, dtype=torch.uint8, device="meta"))
    assert abs(kv_cache.kept_bytes(choice, model) - kept) < 1 << 20
