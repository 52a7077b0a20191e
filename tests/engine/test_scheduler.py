"""Who runs when: budgets, order, rows and memory, under random arrivals and cancellations. No model, no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behold.engine.blocks import RowTable
from behold.engine.scheduler import Scheduler, chunk_length
from behold.engine.sequence import Chunk, Sequence
from behold.types import ImageSpan, Prompt, SamplingParams


def sequence(key: int, length: int, new: int = 4, *, beams: int = 1, spans: tuple[ImageSpan, ...] = ()) -> Sequence:
    params = SamplingParams(max_new_tokens=new, num_beams=beams)
    return Sequence(key=key, prompt=Prompt(tuple(range(length)), spans=spans), params=params, limit=new)


def scheduler(*, rows: int = 4, memory: int = 1000, budget: int = 10) -> Scheduler:
    return Scheduler(RowTable(max_rows=rows, budget_tokens=memory), max_step_tokens=budget)


def record(chunks: list[Chunk]) -> list[Sequence]:
    """What the engine does after a step; returns the sequences that are over."""
    over = []
    for chunk in chunks:
        samples = chunk.samples
        chunk.sequence.computed = chunk.stop
        if samples:
            chunk.sequence.ids.append(0)
        if chunk.sequence.n_new == chunk.sequence.limit:
            over.append(chunk.sequence)
    return over


def shown(chunks: list[Chunk]) -> list[tuple[int, int, int]]:
    return [(chunk.sequence.key, chunk.start, chunk.length) for chunk in chunks]


def test_a_prompt_is_read_in_chunks_while_answers_go_on() -> None:
    plan = scheduler(budget=10)
    plan.add(sequence(0, 5))
    assert shown(plan.schedule()) == [(0, 0, 5)]
    record(plan.schedule())
    plan.add(sequence(1, 25))
    steps = []
    for _ in range(3):
        chunks = plan.schedule()
        steps.append(shown(chunks))
        record(chunks)
    assert steps == [[(0, 5, 1), (1, 0, 10)], [(0, 6, 1), (1, 10, 10)], [(0, 7, 1), (1, 20, 5)]]


def test_scheduling_twice_gives_the_same() -> None:
    """A step that was broken off is simply scheduled again."""
    plan = scheduler()
    for key in range(3):
        plan.add(sequence(key, 7))
    assert shown(plan.schedule()) == shown(plan.schedule()) == [(0, 0, 7), (1, 0, 3)]


def test_answers_are_in_the_order_of_their_rows() -> None:
    """Neighbours in the cache are neighbours in the batch, whoever came first."""
    plan = scheduler(budget=20)
    for key in range(3):
        plan.add(sequence(key, 3))
    record(plan.schedule())
    plan.finish(plan.running[0])
    plan.add(sequence(3, 1))
    chunks = plan.schedule()
    assert [(chunk.sequence.key, chunk.sequence.slots) for chunk in chunks] == [(3, (0,)), (1, (1,)), (2, (2,))]


def test_one_that_does_not_fit_holds_back_those_behind() -> None:
    plan = scheduler(memory=60, budget=100)
    plan.add(sequence(0, 27))  # 30 places
    plan.add(sequence(1, 47))  # 50 places: only once 0 is gone
    plan.add(sequence(2, 2))
    assert shown(plan.schedule()) == [(0, 0, 27)]
    plan.finish(plan.running[0])
    assert [chunk.sequence.key for chunk in plan.schedule()] == [1]


def test_beams_need_all_their_rows_at_once() -> None:
    plan = scheduler(rows=4)
    plan.add(sequence(0, 2, beams=3))
    plan.add(sequence(1, 2, beams=2))
    assert [chunk.sequence.key for chunk in plan.schedule()] == [0]
    assert plan.running[0].slots == (0, 1, 2)
    plan.finish(plan.running[0])
    assert [chunk.sequence.key for chunk in plan.schedule()] == [1]


SPANS = (ImageSpan(4, 6, 0, True), ImageSpan(10, 5, 1, True), ImageSpan(20, 3, 2, False))


@pytest.mark.parametrize(
    ("computed", "budget", "must_progress", "expected"),
    [
        (0, 4, True, 4),  # up to the first span
        (0, 9, True, 4),  # not into it
        (0, 10, True, 10),  # the whole of it
        (0, 12, True, 10),  # not into the next
        (4, 3, True, 6),  # longer than the budget: whole and alone
        (4, 3, False, 0),  # or not now
        (15, 6, True, 6),  # a span that attends one way may be cut
        (15, 99, True, 15),
    ],
)
def test_chunks_never_cut_what_attends_both_ways(
    computed: int, budget: int, must_progress: bool, expected: int
) -> None:
    item = sequence(0, 30, spans=SPANS)
    item.computed = computed
    assert chunk_length(item, budget, must_progress=must_progress) == expected


def test_a_preempted_sequence_reads_its_own_answer_again() -> None:
    plan = scheduler(budget=5)
    item = sequence(0, 4)
    plan.add(item)
    record(plan.schedule())
    record(plan.schedule())
    plan.finish(item)
    item.computed = 0
    plan.add(item)
    chunks = plan.schedule()
    assert shown(chunks) == [(0, 0, 5)] and not chunks[0].samples
    record(chunks)
    chunks = plan.schedule()
    assert shown(chunks) == [(0, 5, 1)] and chunks[0].samples


def test_the_table_counts_gaps_as_memory() -> None:
    table = RowTable(max_rows=4, budget_tokens=100)
    rows = [table.take(1, 25)[0] for _ in range(4)]
    assert not table.fits(1, 1)
    for row in rows[:3]:
        table.give_back((row,))
    assert table.shape == (4, 25) and table.fits(3, 25) and not table.fits(1, 26)
    assert table.can_ever_fit(1, 100) and not table.can_ever_fit(1, 101) and not table.can_ever_fit(5, 1)
    table.check()


events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 30), st.integers(1, 6), st.sampled_from([1, 1, 1, 2])),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("step")),
    ),
    max_size=40,
)


@given(events=events, rows=st.integers(2, 4), memory=st.integers(80, 200), budget=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_any_traffic_is_served_in_order_and_leaves_nothing(
    events: list[tuple[object, ...]], rows: int, memory: int, budget: int
) -> None:
    plan = scheduler(rows=rows, memory=memory, budget=budget)
    alive: list[Sequence] = []
    started: list[int] = []
    keys = iter(range(1000))

    def step() -> None:
        chunks = plan.schedule()
        plan.check()
        assert bool(chunks) == plan.has_work
        prompt_tokens = sum(chunk.length for chunk in chunks if chunk.length > 1)
        assert prompt_tokens <= budget
        high, capacity = plan.table.shape
        assert high * capacity <= memory
        for item in plan.running:
            if item.key not in started:
                started.append(item.key)
        for item in record(chunks):
            plan.finish(item)
            alive.remove(item)

    for event in events:
        if event[0] == "add":
            _, length, new, beams = event
            item = sequence(next(keys), length, new, beams=beams)  # type: ignore[arg-type]
            if plan.table.can_ever_fit(item.rows, item.reserve):
                plan.add(item)
                alive.append(item)
        elif event[0] == "cancel" and alive:
            item = alive.pop(event[1] % len(alive))  # type: ignore[operator]
            plan.finish(item)
        elif event[0] == "step":
            step()
    for _ in range(2000):
        if not plan.has_work:
            break
        step()
    assert not alive and plan.table.n_used == 0
    assert started == sorted(started), "first come, first served"


def test_the_planning_half_is_free_of_torch() -> None:
    names = ", ".join(
        f"behold.engine.{name}" for name in ("scheduler", "blocks", "sequence", "stops", "params", "beams")
    )
    code = f"import {names}, behold.engine.request, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
