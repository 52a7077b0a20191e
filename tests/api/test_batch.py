"""Collections: read as they are needed, prepared beside the engine, answered in order, whatever breaks."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import behold
from behold.api.batches import AHEAD
from behold.engine.runner import Runner
from behold.errors import CapacityError, ChatError, MediaError, OptionError, StructuredOutputError
from tests import toys

QUESTION = "What do we see in this image?"
PICTURE = toys.picture()
TOY = "llava-siglip-qwen2"


@pytest.fixture(scope="module")
def vlm() -> behold.VLM:
    return behold.load(toys.checkpoint(TOY))


@pytest.fixture(autouse=True)
def _nothing_is_left(vlm: behold.VLM) -> Iterator[None]:
    yield
    assert vlm.engine.stats().running == vlm.engine.stats().waiting == 0
    vlm.engine.check()


def numbered() -> Iterator[tuple[Any, str]]:
    for number in itertools.count():
        yield (PICTURE if number % 3 == 0 else []), f"Question {number}?"


def test_a_batch_runs_together(vlm: behold.VLM) -> None:
    before = vlm.engine.stats().steps
    vlm.batch([([], f"Number {number}.") for number in range(6)], max_new_tokens=40, ignore_eos=True)
    assert vlm.engine.stats().steps - before < 2 * 40, "six alone take six times as many"


def test_more_items_than_are_under_way_at_once(vlm: behold.VLM) -> None:
    items = list(itertools.islice(numbered(), 2 * AHEAD + 3))
    together = vlm.batch(items, max_new_tokens=3)
    assert together == [vlm.ask(*item, max_new_tokens=3) for item in items]
    assert len(set(together)) > 3


def test_items_are_read_as_they_are_needed(vlm: behold.VLM) -> None:
    read = []

    def endless() -> Iterator[tuple[Any, str]]:
        for item in numbered():
            read.append(item)
            yield item

    answers = vlm.batch_iter(endless(), max_new_tokens=2)
    assert read == []
    first = [next(answers) for _ in range(5)]
    assert len(read) <= AHEAD + 5 + AHEAD
    assert first == vlm.batch(read[:5], max_new_tokens=2)
    answers.close()
    assert vlm.engine.stats().running == vlm.engine.stats().waiting == 0


def test_the_engine_runs_while_an_item_is_being_prepared(vlm: behold.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    answered, threads = threading.Event(), []
    chat = vlm.processor.chat

    def slow(messages: Any) -> Any:
        threads.append(threading.current_thread())
        if messages[0].text == "Slow.":
            assert answered.wait(20), "the first item must be answered meanwhile"
        return chat(messages)

    monkeypatch.setattr(vlm.processor, "chat", slow)
    answers = vlm.batch_iter([([], "Fast."), ([], "Slow.")], max_new_tokens=2)
    assert next(answers)
    answered.set()
    assert len(list(answers)) == 1
    assert threading.main_thread() not in threads


def test_a_broken_item_ends_the_others_and_is_named(vlm: behold.VLM) -> None:
    endless = itertools.chain([([], "Fine."), ("no-such.png", "What?")], numbered())
    with pytest.raises(MediaError, match=r"item 1 .*no-such\.png") as caught:
        vlm.batch(endless, max_new_tokens=400)
    assert isinstance(caught.value.__cause__, MediaError)
    with pytest.raises(ChatError, match=r"item 0 .*neither"):
        vlm.batch([42])  # type: ignore[list-item]
    with pytest.raises(CapacityError, match="item 2 "):
        vlm.batch([([], "Short."), ([], "Short."), ([], "word " * 2000)], max_new_tokens=400)


def test_broken_items_can_be_kept_in_their_places(vlm: behold.VLM) -> None:
    items: list[Any] = [([], "One."), ("no-such.png", "?"), 42, (PICTURE, "Two."), ([], "word " * 2000), ([], "Three.")]
    results = vlm.batch(items, on_error="keep", max_new_tokens=3)
    kinds = [behold.Answer, MediaError, ChatError, behold.Answer, CapacityError, behold.Answer]
    assert [type(result) for result in results] == kinds
    assert all(f"item {number} " in str(results[number]) for number in (1, 2, 4))
    assert [results[number] for number in (0, 3, 5)] == vlm.batch([items[0], items[3], items[5]], max_new_tokens=3)
    assert len(list(vlm.batch_iter(items, on_error="keep", max_new_tokens=3))) == len(items)


def test_an_error_keeps_what_it_carries(vlm: behold.VLM) -> None:
    (error,) = vlm.batch([([], "Which?")], choices=["a very long choice"], max_new_tokens=2, on_error="keep")
    assert isinstance(error, StructuredOutputError)
    assert "a very long choice".startswith(error.answer) and error.answer


def test_faults_are_never_kept(vlm: behold.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(type(vlm.model), "logits", broken)
    with pytest.raises(RuntimeError, match="no such luck"):
        vlm.batch(itertools.islice(numbered(), 9), on_error="keep", max_new_tokens=3)

    monkeypatch.undo()

    def items() -> Iterator[tuple[Any, str]]:
        yield [], "Fine."
        raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        vlm.batch(items(), on_error="keep", max_new_tokens=3)


def test_ctrl_c_ends_everything(vlm: behold.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    run, steps = Runner.run, []

    def interrupted(self: Any, *words: Any) -> Any:
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return run(self, *words)

    monkeypatch.setattr(Runner, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        vlm.batch(numbered(), max_new_tokens=400)
    assert vlm.engine.stats().running == vlm.engine.stats().waiting == 0
    assert vlm.ask([], "Still there?", max_new_tokens=2).usage.completion_tokens


def test_options_are_checked_before_anything_is_read(vlm: behold.VLM) -> None:
    with pytest.raises(OptionError, match="on_error='ignore'"):
        vlm.batch_iter(numbered(), on_error="ignore")  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="temprature"):
        vlm.batch_iter(numbered(), temprature=1)  # type: ignore[call-overload]


def test_samples_without_a_seed_follow_torchs(vlm: behold.VLM) -> None:
    def sampled() -> list[behold.Answer]:
        torch.manual_seed(5)
        return vlm.batch(itertools.islice(numbered(), 8), max_new_tokens=6, temperature=1.5)

    assert sampled() == sampled()


def test_progress_of_unknown_length(vlm: behold.VLM, capsys: pytest.CaptureFixture[str]) -> None:
    vlm.batch((item for item in [([], "One."), ([], "Two.")]), max_new_tokens=2, progress=True)
    assert "2/?" in capsys.readouterr().err
