"""The engine as its callers use it: whole answers, streams, cancelling, failing, several threads."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from behold.engine import admission
from behold.engine.engine import Engine
from behold.engine.options import EngineOptions
from behold.errors import BusyError, CapacityError, OptionError
from behold.types import Prompt, SamplingParams
from tests.engine.fake import FakeDetokenizer, FakeModel, FakeTokenizer, greedy, picture, prompt


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


def make(model: FakeModel, **options: int | str) -> Engine:
    return Engine(model, tokenizer=None, eos_token_ids=frozenset({1}), options=EngineOptions(**options))


@pytest.fixture
def text_engine(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(admission, "Detokenizer", FakeDetokenizer)
    return Engine(model, tokenizer=FakeTokenizer(), eos_token_ids=frozenset({1}))  # type: ignore[arg-type]


def test_greedy_equals_one_pass_over_everything(model: FakeModel) -> None:
    asked = prompt(0, 20, [picture(1)])
    done = make(model).complete([(asked, SamplingParams(max_new_tokens=12))])[0]
    assert done.ids == greedy(model, asked, 12, frozenset({1}))
    assert len(set(done.ids)) > 3, "a constant answer would prove little"
    assert done.usage.prompt_tokens == len(asked.ids)
    assert done.usage.image_tokens == 5
    assert done.timings.vision_s > 0 and done.timings.total_s >= done.timings.first_token_s > 0


def test_a_batch_equals_its_requests_alone(model: FakeModel) -> None:
    asked = [prompt(i, 4 + 7 * i, [picture(i)] if i % 2 else []) for i in range(5)]
    lengths = [3, 9, 5, 1, 14]
    both = [(p, SamplingParams(max_new_tokens=n)) for p, n in zip(asked, lengths, strict=True)]
    engine = make(model, max_rows=3)
    done = engine.complete(both)
    assert [c.ids for c in done] == [greedy(model, p, n, frozenset({1})) for p, n in zip(asked, lengths, strict=True)]
    engine.check()
    assert engine.stats().rows_free == 3


@pytest.mark.parametrize("budget", [1, 2, 5, 7])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_chunked_equals_whole(model: FakeModel, budget: int, bidirectional: bool) -> None:
    asked = prompt(3, 30, [picture(1), picture(2, 6)], bidirectional=bidirectional)
    engine = make(model, max_step_tokens=budget, image_cache_bytes=1)
    done = engine.complete([(asked, SamplingParams(max_new_tokens=6))])[0]
    assert done.ids == greedy(model, asked, 6, frozenset({1}))
    assert max(model.passes) <= max(budget, 6 if bidirectional else 0)
    assert model.encoded == [["picture-1-5"], ["picture-2-6"]], "each picture once, whatever the budget"
    engine.check()
    assert engine.stats().image_cache_bytes <= 1


def test_sliding_window_in_chunks_and_batches() -> None:
    model = FakeModel(window=6)
    asked = [prompt(i, 9 + 4 * i) for i in range(3)]
    engine = make(model, max_step_tokens=5)
    done = engine.complete([(p, SamplingParams(max_new_tokens=8)) for p in asked])
    assert [c.ids for c in done] == [greedy(model, p, 8, frozenset({1})) for p in asked]


def test_end_of_sequence_is_in_the_ids(model: FakeModel) -> None:
    asked = prompt(0, 20)
    free = greedy(model, asked, 10)
    params = SamplingParams(max_new_tokens=10, stop_token_ids=frozenset({free[4]}))
    done = make(model).complete([(asked, params)])[0]
    assert done.ids == free[: free.index(free[4]) + 1]
    assert done.finish_reason == "stop"


def test_stream_equals_complete(text_engine: Engine) -> None:
    asked, params = prompt(4, 15), SamplingParams(max_new_tokens=9)
    deltas = list(text_engine.stream(asked, params))
    done = text_engine.complete([(asked, params)])[0]
    assert "".join(delta.text for delta in deltas) == done.text == FakeTokenizer().text(done.ids)
    assert sum((delta.ids for delta in deltas), ()) == done.ids
    assert [delta.finish_reason for delta in deltas] == [None] * 8 + ["length"]
    assert deltas[-1].usage == done.usage
    assert done.usage.cached_tokens == len(asked.ids) - 1, "all but the last token is kept"
    silent = text_engine.complete([(asked, replace(params, ids_only=True))])[0]
    assert (silent.ids, silent.text) == (done.ids, "")


def test_stop_string_is_cut_and_never_shown_in_part(text_engine: Engine, model: FakeModel) -> None:
    asked = prompt(4, 15)
    text = FakeTokenizer().text(greedy(model, asked, 9))
    stop = text[4:7]
    at = text.index(stop)
    deltas = list(text_engine.stream(asked, SamplingParams(max_new_tokens=9, stop=(stop,))))
    assert "".join(delta.text for delta in deltas) == text[:at]
    assert deltas[-1].finish_reason == "stop"
    assert stop in FakeTokenizer().text(sum((delta.ids for delta in deltas), ()))


def test_a_stop_string_found_in_the_last_held_back_letter(text_engine: Engine, model: FakeModel) -> None:
    asked = prompt(4, 15)
    text = FakeTokenizer().text(greedy(model, asked, 9))
    done = text_engine.complete([(asked, SamplingParams(max_new_tokens=9, stop=(text[6:],)))])[0]
    assert (done.text, done.finish_reason, len(done.ids)) == (text[:6], "stop", 9)


def test_closing_a_stream_frees_its_row(model: FakeModel) -> None:
    engine = make(model)
    stream = engine.stream(prompt(0), SamplingParams(max_new_tokens=50))
    next(stream), next(stream)
    assert engine.stats().running == 1
    stream.close()
    assert engine.stats().running == 0
    assert not engine.step()
    engine.check()


def test_closing_an_unstarted_stream_leaves_nothing(model: FakeModel) -> None:
    engine = make(model)
    engine.stream(prompt(0), SamplingParams()).close()
    assert not engine.step()
    engine.check()


def test_a_failing_step_ends_running_requests_only(model: FakeModel) -> None:
    engine = make(model, max_rows=2)
    requests = [engine.submit(prompt(i), SamplingParams(max_new_tokens=5)) for i in range(3)]
    engine.step()
    model.fail_next = RuntimeError("broken")
    engine.step()
    for request in requests[:2]:
        with pytest.raises(RuntimeError, match="broken"):
            list(engine.deltas(request))
    engine.wait(requests[2:])
    assert requests[2].completions[0].ids == greedy(model, prompt(2), 5, frozenset({1}))
    engine.check()


def test_interrupt_cancels_only_the_drivers_requests(model: FakeModel) -> None:
    engine = make(model)
    others = engine.submit(prompt(7), SamplingParams(max_new_tokens=9, temperature=1.0, seed=5))
    for _ in range(3):
        engine.step()
    model.fail_next = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        engine.complete([(prompt(1), SamplingParams(max_new_tokens=9))])
    assert engine.stats().running == 1
    engine.wait([others])
    undisturbed = make(model).complete([(prompt(7), others.sequence.params)])[0]
    assert others.completions[0].ids == undisturbed.ids
    engine.check()


def test_cancel_in_every_stage(model: FakeModel) -> None:
    engine = make(model, max_rows=1, max_step_tokens=4)
    asked = [prompt(i, 10, [picture(i)]) for i in range(2)]
    first, second = (engine.submit(p, SamplingParams(max_new_tokens=4)) for p in asked)
    engine.step()  # the first in the middle of its picture, the second waiting
    assert model.encoded == [["picture-0-5"]]
    engine.cancel(second)
    engine.cancel(first)
    assert [r.completions[0].finish_reason for r in (first, second)] == ["cancelled", "cancelled"]
    assert not engine.step()
    engine.check()


def test_threads_share_one_engine(model: FakeModel) -> None:
    engine = make(model)
    answers: dict[int, tuple[int, ...]] = {}

    def ask(i: int) -> None:
        deltas = engine.stream(prompt(i, 5 + i), SamplingParams(max_new_tokens=20))
        answers[i] = sum((delta.ids for delta in deltas), ())

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert answers == {i: greedy(model, prompt(i, 5 + i), 20, frozenset({1})) for i in range(6)}
    engine.check()


def test_cancel_from_another_thread_during_a_step(model: FakeModel) -> None:
    engine = make(model)
    victim = engine.submit(prompt(1), SamplingParams(max_new_tokens=30))
    other = engine.submit(prompt(2), SamplingParams(max_new_tokens=6))
    engine.step()
    inside, go_on = threading.Event(), threading.Event()
    hidden = FakeModel.hidden

    def slow(*args: object) -> torch.Tensor:
        inside.set()
        go_on.wait(10)
        return hidden(model, *args)  # type: ignore[arg-type]

    model.hidden = slow  # type: ignore[method-assign,assignment]
    driver = threading.Thread(target=engine.step)
    driver.start()
    assert inside.wait(10)
    engine.cancel(victim)
    assert victim.done and engine.stats().running == 2, "the step under way still owns the row"
    go_on.set()
    driver.join(10)
    assert engine.stats().running == 1
    assert [delta.finish_reason for delta in victim.take()] == [None, "cancelled"], "nothing comes after the end"
    engine.wait([other])
    assert other.completions[0].ids == greedy(FakeModel(), prompt(2), 6, frozenset({1}))
    engine.check()


def test_cancel_from_within_the_step_itself(model: FakeModel) -> None:
    """As when the garbage collector closes a forgotten stream while its thread drives."""
    engine = make(model)
    victim = engine.submit(prompt(1), SamplingParams(max_new_tokens=30))
    hidden = model.hidden

    def cancelling(*args: object) -> torch.Tensor:
        engine.cancel(victim)
        return hidden(*args)  # type: ignore[arg-type]

    model.hidden = cancelling  # type: ignore[method-assign,assignment]
    assert engine.step() and victim.done and not engine.step()
    engine.check()


def test_a_request_refused_among_others_queues_none_of_them(model: FakeModel) -> None:
    engine = make(model)
    with pytest.raises(OptionError):
        engine.complete([(prompt(1), SamplingParams()), (prompt(2), SamplingParams(max_new_tokens=0))])
    assert not engine.step()


def test_an_error_in_on_done_cancels_the_rest(model: FakeModel) -> None:
    def broken(index: int, completion: object) -> None:
        raise ZeroDivisionError

    engine = make(model)
    with pytest.raises(ZeroDivisionError):
        engine.complete([(prompt(i), SamplingParams(max_new_tokens=1 + 20 * i)) for i in range(2)], on_done=broken)
    assert not engine.step()
    engine.check()


def test_an_error_in_one_requests_text_ends_that_request_only(
    text_engine: Engine, model: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (text_engine.submit(prompt(i), SamplingParams(max_new_tokens=4)) for i in range(2))
    monkeypatch.setattr(first, "_transcript", None)
    text_engine.wait([second])
    with pytest.raises(AttributeError):
        text_engine.wait([first])
    assert second.completions[0].ids == greedy(model, prompt(1), 4, frozenset({1}))
    text_engine.check()


def test_on_done_comes_in_the_order_of_ending(model: FakeModel) -> None:
    seen: list[int] = []
    lengths = [9, 2, 5]
    requests = [(prompt(i), SamplingParams(max_new_tokens=n)) for i, n in enumerate(lengths)]
    done = make(model).complete(requests, on_done=lambda i, _: seen.append(i))
    assert seen == [1, 2, 0]
    assert [len(c.ids) for c in done] == lengths


def test_pictures_of_waiting_requests_are_encoded_together_and_once(model: FakeModel) -> None:
    engine = make(model)
    asked = [prompt(i, 15, [picture(i % 2)]) for i in range(4)]
    engine.complete([(p, SamplingParams(max_new_tokens=2)) for p in asked])
    engine.complete([(asked[0], SamplingParams(max_new_tokens=2))])
    assert model.encoded == [["picture-0-5", "picture-1-5"]]
    stats = engine.stats()
    assert stats.image_cache_hits >= 1 and stats.image_cache_bytes == 2 * 5 * 32 * 4


def test_too_long_is_refused_with_numbers(model: FakeModel) -> None:
    engine = make(model)
    with pytest.raises(CapacityError, match=r"256 tokens.*context is 256"):
        engine.submit(prompt(0, 256), SamplingParams())
    done = engine.complete([(prompt(0, 250), SamplingParams(max_new_tokens=50))])[0]
    assert len(done.ids) <= 6 and done.finish_reason in {"length", "stop"}
    with pytest.raises(CapacityError, match="no tokens"):
        engine.submit(Prompt(()), SamplingParams())
    with pytest.raises(CapacityError, match=r"cache.*kv_cache_bytes"):
        make(model, kv_cache_bytes=20 * 2 * 2 * 2 * 8 * 4).submit(prompt(0, 20), SamplingParams(max_new_tokens=20))


def test_what_cannot_be_honoured_is_refused(model: FakeModel) -> None:
    engine = make(model)
    with pytest.raises(OptionError, match="needs a tokenizer"):
        engine.submit(prompt(0), SamplingParams(stop=("x",)))
    with pytest.raises(OptionError, match="cannot be streamed"):
        engine.stream(prompt(0), SamplingParams(num_beams=2))
    with pytest.raises(OptionError, match="spread"):
        engine.submit(prompt(0), SamplingParams(temperature=1.0, num_return_sequences=2))
    with pytest.raises(OptionError, match="below the vocabulary's size 61"):
        engine.submit(prompt(0), SamplingParams(bad_words_ids=((99,),)))


def test_memory_holds_requests_back(model: FakeModel) -> None:
    a_token = 2 * 2 * 2 * 8 * 4
    engine = make(model, max_rows=8, kv_cache_bytes=a_token * 64)
    requests = [engine.submit(prompt(i, 12), SamplingParams(max_new_tokens=10)) for i in range(6)]
    engine.step()
    assert engine.stats().running == 3, "3 rows of 21 places fit into 64"
    engine.wait(requests)
    assert [r.completions[0].ids for r in requests] == [
        greedy(model, prompt(i, 12), 10, frozenset({1})) for i in range(6)
    ]
    assert engine.stats().kv_cache_bytes <= a_token * 64


@pytest.mark.parametrize(("kind", "bytes_a_head"), [("float16", 16), ("int8", 12)])
def test_narrow_rows_hold_more(model: FakeModel, kind: str, bytes_a_head: int) -> None:
    options = {"kv_cache_bytes": 2 * 2 * 2 * bytes_a_head * 128, "kv_dtype": kind}
    engine = make(model, max_rows=8, **options)
    asked = [(prompt(i, 12), SamplingParams(max_new_tokens=10)) for i in range(6)]
    requests = [engine.submit(*each) for each in asked]
    engine.step()
    assert engine.stats().running == 6, "6 rows of 21 places fit into 128"
    engine.wait(requests)
    alone = [make(model, max_rows=1, **options).complete([each])[0] for each in asked]
    assert [r.completions[0].ids for r in requests] == [done.ids for done in alone]


def test_a_full_queue_refuses_and_goes_on(model: FakeModel) -> None:
    engine = make(model, max_rows=1, max_waiting=2)
    params = SamplingParams(max_new_tokens=4)
    taken = []
    for i in range(3):
        taken.append(engine.submit(prompt(i), params))
        engine.step()
    with pytest.raises(BusyError, match="2 requests wait already, and 2 may") as error:
        engine.submit(prompt(9), params)
    assert error.value.retry_after_s > 0
    engine.wait(taken)
    assert engine.complete([(prompt(9), params)])[0].ids == greedy(model, prompt(9), 4, frozenset({1}))
    engine.check()


def test_an_estimate_is_what_it_then_costs(model: FakeModel) -> None:
    engine, asked, params = make(model), prompt(0, 20, [picture(1)]), SamplingParams(max_new_tokens=4)
    before = engine.estimate(asked, params)
    assert (before.prompt_tokens, before.image_tokens, before.cached_tokens, before.max_new_tokens) == (20, 5, 0, 4)
    assert before.kv_bytes == 23 * engine._bytes_a_token and before.image_bytes == 5 * 32 * 4 and before.fits
    done = engine.complete([(asked, params)])[0]
    after = engine.estimate(asked, params)
    assert after.cached_tokens == 19 and after.image_bytes == 0
    assert engine.complete([(asked, params)])[0].usage.cached_tokens == 19
    assert done.usage.cached_tokens == 0
    assert engine.stats().new_tokens == 8 and engine.stats().prefix_hits == engine.stats().prefix_misses == 1
    with pytest.raises(CapacityError):
        engine.estimate(prompt(0, 400), params)
