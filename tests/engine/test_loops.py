"""The loop stop: what never ends is stopped, what has a purpose is not."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from behold.engine.engine import Engine
from behold.engine.loops import MAX_PERIOD, MIN_REPEATS, MIN_TOKENS, LoopDetector
from behold.types import SamplingParams
from tests.engine.fake import Parrot, prompt


def stopped_after(ids: Sequence[int]) -> int | None:
    """How many ids are said until the detector speaks."""
    detector = LoopDetector()
    return next((count for count, token in enumerate(ids, 1) if detector.add(token)), None)


def stopped_by_definition(ids: Sequence[int]) -> int | None:
    for count in range(MIN_TOKENS, len(ids) + 1):
        for period in range(1, MAX_PERIOD + 1):
            n = max(MIN_TOKENS, MIN_REPEATS * period)
            if n <= count and all(ids[at] == ids[at - period] for at in range(count - n + period, count)):
                return count
    return None


# --- what is stopped -----------------------------------------------------------------------------------------------

blocks = st.lists(st.integers(0, 5), min_size=1, max_size=MAX_PERIOD)


@given(start=st.lists(st.integers(0, 5), max_size=80), block=blocks)
def test_a_loop_of_any_period_is_stopped_in_time(start: list[int], block: list[int]) -> None:
    after = stopped_after([*start, *islice(cycle(block), 700)])
    assert after is not None
    assert after <= len(start) + max(MIN_TOKENS, MIN_REPEATS * len(block))


@settings(max_examples=40)
@given(st.lists(st.tuples(blocks, st.integers(1, 140)), min_size=1, max_size=4))
def test_it_is_exactly_the_rule(parts: list[tuple[list[int], int]]) -> None:
    ids = [token for block, count in parts for token in islice(cycle(block), count * len(block) % 251)]
    assert stopped_after(ids) == stopped_by_definition(ids)


@pytest.mark.parametrize(
    "block",
    ["a", "the ", "I am sorry. ", "The picture shows a red circle on a blue ground. ", "x" * 20 + "y" * 30],
)
def test_sentences_and_single_tokens_in_a_loop(block: str) -> None:
    text = "At first there is something to say. " + block * 200
    after = stopped_after(text.encode())
    assert after is not None and after <= len(text) - 190 * len(block) + MIN_TOKENS


def test_it_stays_a_loop_while_it_goes_on_and_no_longer() -> None:
    detector = LoopDetector()
    said = [detector.add(token) for token in [1, 2] * 100 + [3] + [1, 2] * 20]
    assert said.index(True) == MIN_TOKENS - 1
    assert all(said[MIN_TOKENS - 1 : 200]) and not any(said[200:])


# --- what is not: every byte is a token here, which makes runs as long as they can be -------------------------------

TEXT = "red green blue circle square star 0 1 10 yes no none the of in at left right top bottom"
WORDS = TEXT.split()
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6)


def table(rows: list[list[str]]) -> str:
    return "\n".join(
        ["| item | value |", "|------|-------|", *(f"| {i} | {' | '.join(r)} |" for i, r in enumerate(rows))]
    )


def listing(rows: list[list[str]]) -> str:
    return "\n".join(f"{number}. {' '.join(row)}" for number, row in enumerate(rows, 1))


def code(rows: list[list[str]]) -> str:
    lines = [f"    values[{i}] = {row[0]!r}  # {' '.join(row)}" for i, row in enumerate(rows)]
    return "def fill(values):\n" + "\n".join(lines) + "\n" + "#" * 120


def poem(rows: list[list[str]]) -> str:
    return "\n\n".join("\n".join([" ".join(row), "And round it goes, and round."]) for row in rows)


def records(rows: list[list[str]]) -> str:
    return json.dumps([{"id": i, "words": row} for i, row in enumerate(rows)], indent=2)


@settings(max_examples=60)
@given(st.sampled_from([table, listing, code, poem, records]), st.lists(words, min_size=1, max_size=40))
def test_tables_lists_code_poems_and_records_pass(form: object, rows: list[list[str]]) -> None:
    # The same row forty times over, too: numbers, or what stands between, keep it from being a loop.
    for chosen in (rows, [rows[0]] * 9, [[WORDS[i % len(WORDS)]] for i in range(40)]):
        assert stopped_after(form(chosen).encode()) is None  # type: ignore[operator]


@pytest.mark.parametrize(
    "text",
    [
        "ha " * 40,
        "=" * 120 + "\n" + "-" * 120,
        "Contents " + "." * 110 + " 5\n" + "Index " + "." * 113 + " 6",
        json.dumps([0] * 40),
        json.dumps([[0] * 10] * 10),
        "\n".join(["0 0 0 0 0 0 0 0 0"] * 9),
        "|   |   |   |   |   |   |   |   |\n" * 8,
        "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, " * 9,
        "We all live in a yellow submarine, a yellow submarine, a yellow submarine.\n" * 8,
        base64.b64encode(random.Random(0).randbytes(3000)).decode(),
        base64.b64encode(bytes(90)).decode(),
        "".join(f"{i:08b} " for i in range(256)),
        "".join(random.Random(1).choices("01", k=5000)),
    ],
)
def test_what_repeats_for_a_reason_passes(text: str) -> None:
    assert stopped_after(text.encode()) is None


# --- in the engine --------------------------------------------------------------------------------------------------


@pytest.fixture
def engine() -> Engine:
    return Engine(Parrot(context=1024), tokenizer=None, eos_token_ids=frozenset({1}))


def test_an_answer_in_a_loop_ends_and_says_so(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=900, loop_stop=True)
    looped, free = engine.complete([(prompt(0), params), (prompt(1), replace(params, loop_stop=False))])
    assert (looped.ended_by, looped.finish_reason, looped.usage.completion_tokens) == ("loop", "length", MIN_TOKENS)
    assert (free.ended_by, free.finish_reason, free.usage.completion_tokens) == ("length", "length", 900)
    assert free.ids[:MIN_TOKENS] == looped.ids
    deltas = list(engine.stream(prompt(0), params))
    assert (deltas[-1].ended_by, deltas[-1].finish_reason) == ("loop", "length")
    assert sum((delta.ids for delta in deltas), ()) == looped.ids
    engine.check()


def test_not_before_the_least_length_asked_for(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=900, min_new_tokens=300, loop_stop=True)
    assert engine.complete([(prompt(0), params)])[0].usage.completion_tokens == 300


def test_what_ends_at_the_same_token_is_named_first(engine: Engine) -> None:
    params = SamplingParams(max_new_tokens=MIN_TOKENS, loop_stop=True)
    assert engine.complete([(prompt(0), params)])[0].ended_by == "length"


def test_the_default_is_off() -> None:
    """As in transformers; the short surface turns it on."""
    assert SamplingParams().loop_stop is False
