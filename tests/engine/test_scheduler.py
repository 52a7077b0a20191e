"""Who runs when: budgets, order, rows, memory, pictures and shared beginnings, under random arrivals. No torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behold.engine.beams import BeamSearch
from behold.engine.blocks import RowTable
from behold.engine.scheduler import STILL_THERE_S, Scheduler, Step, chunk_length
from behold.engine.sequence import Sequence
from behold.types import ImageInput, ImageSpan, Prompt, SamplingParams


def picture(name: str, n_tokens: int) -> ImageInput:
    return ImageInput(np.zeros((n_tokens, 1), np.float32), n_tokens, name)


def sequence(
    key: int, length: int, new: int = 4, *, beams: int = 1, spans: tuple[ImageSpan, ...] = (), first: int | None = None
) -> Sequence:
    """Prompts of different keys begin differently, unless `first` says with what."""
    params = SamplingParams(max_new_tokens=new, num_beams=beams)
    ids = (1000 + key if first is None else first, *range(1, length))
    pictures = tuple(picture(f"{number}", span.length) for number, span in enumerate(spans))
    item = Sequence(key=key, prompt=Prompt(ids, pictures, spans), params=params, limit=new)
    if beams > 1:
        item.beams = BeamSearch(params, new, 0, lambda ids: False)
    return item


class Seen:
    """Pictures that are there."""

    def __init__(self, *digests: str) -> None:
        self.digests = set(digests)
        self.held: set[tuple[int, str]] = set()

    def hold(self, sequence: Sequence, digest: str) -> None:
        self.held.add((sequence.key, digest))

    def ready(self, digest: str) -> bool:
        return digest in self.digests


def scheduler(
    *,
    rows: int = 4,
    memory: int = 1000,
    budget: int = 10,
    keep: int = 0,
    seen: Seen | None = None,
    image_tokens: int = 99,
) -> Scheduler:
    table = RowTable(max_rows=rows, budget_tokens=memory, keep_tokens=keep)
    pictures = seen or Seen()
    return Scheduler(
        table, pictures, max_step_tokens=budget, max_image_tokens=image_tokens, clock=iter(range(10**6)).__next__
    )


def record(step: Step, *, came: int = 0) -> list[Sequence]:
    """What the engine does after a step, `came` requests having come; returns the sequences that are over."""
    over = []
    for chunk in step.chunks:
        item, samples = chunk.sequence, chunk.samples
        item.computed = chunk.stop
        if samples:
            item.began = item.began or came or 10**6
            if item.beams is None:
                item.ids.append(0)
            else:
                item.beams.started = True
        if item.n_new == item.limit or (item.beams is not None and item.computed == item.n_prompt + item.limit - 1):
            over.append(item)
    return over


def shown(step: Step) -> list[tuple[int, int, int]]:
    return [(chunk.sequence.key, chunk.start, chunk.length) for chunk in step.chunks]


def wanted(step: Step) -> list[str]:
    return [each.digest for each in step.pictures]


def test_a_prompt_is_read_in_chunks_while_answers_go_on() -> None:
    plan = scheduler(budget=10)
    plan.add(sequence(0, 5))
    assert shown(plan.schedule()) == [(0, 0, 5)]
    record(plan.schedule())
    plan.add(sequence(1, 25))
    steps = []
    for _ in range(3):
        step = plan.schedule()
        steps.append(shown(step))
        record(step)
    assert steps == [[(0, 5, 1), (1, 0, 10)], [(0, 6, 1), (1, 10, 10)], [(0, 7, 1), (1, 20, 5)]]


def test_scheduling_twice_gives_the_same() -> None:
    """A step that was broken off is simply scheduled again."""
    plan = scheduler()
    for key in range(3):
        plan.add(sequence(key, 7))
    assert shown(plan.schedule()) == shown(plan.schedule()) == [(0, 0, 7), (1, 0, 3)]


def test_one_that_does_not_fit_holds_back_those_behind() -> None:
    plan = scheduler(memory=60, budget=100)
    plan.add(sequence(0, 27))  # 30 places
    plan.add(sequence(1, 47))  # 50 places: only once 0 is gone
    plan.add(sequence(2, 2))
    assert shown(plan.schedule()) == [(0, 0, 27)]
    plan.finish(plan.running[0], keep=True)
    assert [chunk.sequence.key for chunk in plan.schedule().chunks] == [1, 2]


def test_beams_need_all_their_rows_at_once() -> None:
    plan = scheduler(rows=4)
    plan.add(sequence(0, 2, beams=3))
    plan.add(sequence(1, 2, beams=2))
    assert [chunk.sequence.key for chunk in plan.schedule().chunks] == [0]
    assert plan.running[0].slots == (0, 1, 2)
    plan.finish(plan.running[0], keep=True)
    assert [chunk.sequence.key for chunk in plan.schedule().chunks] == [1]


# --- pictures ------------------------------------------------------------------------------------------------------

ONE = (ImageSpan(2, 5, 0),)


def test_a_prompt_waits_for_its_pictures_and_others_do_not() -> None:
    seen = Seen()
    plan = scheduler(budget=30, seen=seen)
    looking, plain = sequence(0, 10, spans=ONE), sequence(1, 6)
    plan.add(looking)
    plan.add(plain)
    first, second = plan.schedule(), plan.schedule()
    for step in (first, second):  # tokens and pictures in turns
        assert (shown(step), wanted(step)) in ([[(1, 0, 6)], []], ([], ["0"])) or shown(step) == [(1, 0, 6)]
    assert {bool(first.pictures), bool(second.pictures)} == {True, False}
    assert (0, "0") in seen.held
    seen.digests.add("0")
    assert shown(plan.schedule()) == [(0, 0, 10), (1, 0, 6)]


def test_pictures_of_all_waiting_prompts_are_wanted_together_each_once() -> None:
    plan = scheduler(budget=30)
    for key, image in enumerate((0, 1, 0)):
        item = sequence(key, 10, spans=(ImageSpan(2, 5, 0),))
        item.prompt = Prompt(item.prompt.ids, (picture(str(image), 5),), item.prompt.spans)
        plan.add(item)
    step = plan.schedule()
    assert wanted(step) == ["0", "1"] and [item.key for item in step.looking] == [0, 1, 2]


def test_prompts_with_more_pictures_than_may_be_held_come_one_after_the_other() -> None:
    plan = scheduler(rows=4, image_tokens=8)
    for key in range(2):
        plan.add(sequence(key, 10, spans=ONE))
    plan.add(sequence(2, 3))
    plan.schedule()
    assert [item.key for item in plan.running] == [0]
    plan.running[0].computed = 7
    plan.schedule()
    assert [item.key for item in plan.running] == [0, 1, 2]
    large = scheduler(image_tokens=2)
    large.add(sequence(0, 10, spans=ONE))
    assert wanted(large.schedule()) == ["0"], "what is too large for all runs alone"


# --- answers and prompts beside each other -----------------------------------------------------------------------


def test_an_answer_yields_to_what_came_before_it_began_and_not_to_what_came_after() -> None:
    seen = Seen()
    plan = scheduler(budget=30, seen=seen)
    plan.add(sequence(0, 3, new=50))
    plan.add(sequence(1, 10, spans=ONE))
    record(plan.schedule(), came=2)  # 0 has begun when 0 and 1 had come
    pictures = [step for step in (plan.schedule() for _ in range(6)) if step.pictures]
    assert pictures and pictures[0].pictures_s > 0
    assert sum(bool(step.chunks) for step in pictures) <= 1 + len(pictures) // STILL_THERE_S
    seen.digests.add("0")
    assert shown(plan.schedule()) == [(0, 3, 1), (1, 0, 10)], "at full speed"
    record(plan.schedule(), came=2)
    late = sequence(2, 40)
    plan.add(late)
    for _ in range(4):
        plan.pace.record(1.0, decoding=2, prompt_tokens=0, pictures=False)
        plan.pace.record(1.8, decoding=2, prompt_tokens=8, pictures=False)
    step = plan.schedule()
    assert shown(step)[:2] == [(0, 4, 1), (1, 10, 1)] and shown(step)[2] == (2, 0, 8)
    late.prompt = sequence(2, 40, spans=(ImageSpan(2, 30, 0), ImageSpan(33, 2, 1))).prompt
    step = next(step for step in (plan.schedule() for _ in range(2)) if step.pictures)
    assert len(step.chunks) == 2 and step.pictures_s == pytest.approx(plan.pace.pictures_s)


# --- shared beginnings -------------------------------------------------------------------------------------------


def test_a_follow_up_takes_over_the_row_and_a_stranger_copies_from_it() -> None:
    plan = scheduler(budget=100, keep=500)
    plan.add(sequence(0, 40, first=7))
    while plan.running or plan.waiting:
        for item in record(plan.schedule()):
            plan.finish(item, keep=True)
    assert list(plan.table.kept) == [0]
    follow = sequence(1, 60, first=7)
    plan.add(follow)
    step = plan.schedule()
    assert follow.slots == (0,) and follow.cached == 40 and shown(step) == [(1, 40, 20)]
    record(step)
    stranger = sequence(2, 30, first=7)  # shares 29 of the 60 that 1 has read, and 1 is still running
    plan.add(stranger)
    step = plan.schedule()
    chunk = next(chunk for chunk in step.chunks if chunk.sequence is stranger)
    assert (chunk.source, chunk.start, chunk.length, stranger.computed) == (0, 29, 1, 0)
    plan.check()


def test_who_begins_like_one_that_is_being_read_waits_for_it() -> None:
    plan = scheduler(budget=20, keep=500)
    plan.add(sequence(0, 60, first=7))
    plan.add(sequence(1, 60, first=7))
    plan.add(sequence(2, 9))
    steps = []
    for _ in range(4):
        step = plan.schedule()
        steps.append(shown(step))
        record(step)
    assert steps == [[(0, 0, 20)], [(0, 20, 20)], [(0, 40, 20)], [(0, 60, 1), (1, 59, 1), (2, 0, 9)]]


def test_pictures_that_a_kept_beginning_covers_are_not_looked_at() -> None:
    seen = Seen("0")
    plan = scheduler(budget=100, keep=500, seen=seen)
    plan.add(sequence(0, 30, spans=ONE, first=7))
    while plan.running or plan.waiting:
        for item in record(plan.schedule()):
            plan.finish(item, keep=True)
    seen.digests.clear()
    plan.add(sequence(1, 20, spans=ONE, first=7))
    step = plan.schedule()
    assert not step.pictures and shown(step) == [(1, 19, 1)]


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
    assert chunk_length(item, computed, budget, must_progress=must_progress) == expected


def test_kept_rows_make_room_and_the_least_used_go_first() -> None:
    table = RowTable(max_rows=4, budget_tokens=400, keep_tokens=300)
    for symbol in range(3):
        (row,) = table.take(1, 100)
        table.keep(row, np.full(80, symbol))
    assert list(table.kept) == [0, 1, 2] and all(kept.places == 100 for kept in table.kept.values())
    table.touch(0)
    assert table.fits(2, 100)
    table.take(2, 100)
    assert list(table.kept) == [2, 0]
    table.check()
    table.take(2, 100)
    assert not table.kept and not table.fits(1, 1)
    assert table.can_ever_fit(1, 400) and not table.can_ever_fit(1, 401) and not table.can_ever_fit(5, 1)
    table.check()


def test_what_is_kept_is_kept_once_and_not_without_end() -> None:
    table = RowTable(max_rows=2, budget_tokens=10_000, keep_tokens=10_000)

    def keep(symbols: np.ndarray) -> None:
        (row,) = table.take(1, 100)
        table.keep(row, symbols)

    keep(np.arange(50))
    keep(np.arange(50))
    keep(np.arange(30))
    assert list(table.kept) == [0], "it holds them all"
    keep(np.arange(60))
    assert list(table.kept) == [3], "it holds what was kept before"
    for symbol in range(20):
        keep(np.full(9, symbol))
    assert list(table.kept) == list(range(16, 24)), "the latest ones"
    table.check()


events = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            st.integers(1, 30),
            st.integers(1, 6),
            st.sampled_from([1, 1, 1, 2]),
            st.sampled_from([7, None]),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("step")),
    ),
    max_size=40,
)


@given(
    events=events,
    rows=st.integers(2, 4),
    memory=st.integers(80, 200),
    budget=st.integers(1, 40),
    keep=st.sampled_from([0, 50, 200]),
)
@settings(max_examples=150, deadline=None)
def test_any_traffic_is_served_in_order_and_leaves_nothing(
    events: list[tuple[object, ...]], rows: int, memory: int, budget: int, keep: int
) -> None:
    plan = scheduler(rows=rows, memory=memory, budget=budget, keep=keep)
    alive: list[Sequence] = []
    started: list[int] = []
    keys = iter(range(1000))

    def step() -> None:
        now = plan.schedule()
        check(plan, now, budget)
        for item in plan.running:
            if item.key not in started:
                started.append(item.key)
        for item in record(now, came=max(started) + 1 if started else 0):
            plan.finish(item, keep=True)
            alive.remove(item)

    for event in events:
        if event[0] == "add":
            _, length, new, beams, first = event
            item = sequence(next(keys), length, new, beams=beams, first=first)  # type: ignore[arg-type]
            if plan.table.can_ever_fit(item.rows, item.reserve):
                plan.add(item)
                alive.append(item)
        elif event[0] == "cancel" and alive:
            item = alive.pop(event[1] % len(alive))  # type: ignore[operator]
            plan.finish(item, keep=True)
        elif event[0] == "step":
            step()
    for _ in range(2000):
        if not plan.has_work:
            break
        step()
    assert not alive and plan.table.n_used == 0
    assert started == sorted(started), "first come, first served"


def check(plan: Scheduler, step: Step, budget: int) -> None:
    """What holds for every step."""
    plan.check()
    assert bool(step.chunks) == plan.has_work
    assert sum(chunk.length for chunk in step.chunks if not chunk.sequence.answering) <= budget
    for chunk in step.chunks:
        filled = chunk.sequence.computed
        assert chunk.start == filled or (chunk.source in plan.table.rows and chunk.start > filled)


def test_the_planning_half_is_free_of_torch() -> None:
    names = ", ".join(
        f"behold.engine.{name}" for name in ("scheduler", "blocks", "sequence", "prefix", "pace", "stats", "beams")
    )
    code = f"import {names}, behold.engine.request, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
