"""The short surface on tiny checkpoints: ask, stream, batch, generate, and what is refused."""

from __future__ import annotations

import gc
import io
import re
import threading
from pathlib import Path
from typing import Any

import pytest

import behold
from behold.errors import (
    BeholdError,
    CapacityError,
    ChatError,
    CheckpointNotFoundError,
    MediaError,
    OptionError,
)
from tests import toys

NAMES = ("llava-siglip-qwen2", "idefics2-split")
QUESTION = "What do we see in this image?"
PICTURE = toys.picture()


@pytest.fixture(scope="module", params=NAMES)
def vlm(request: pytest.FixtureRequest) -> behold.VLM:
    return behold.load(toys.checkpoint(request.param))


@pytest.fixture
def encoded(vlm: behold.VLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of the vision tower was given."""
    calls: list[int] = []
    encode = type(vlm.model).encoding

    def counted(self: Any, images: Any) -> Any:
        calls.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(type(vlm.model), "encoding", counted)
    return calls


def test_ask_gives_a_string_that_knows_how_it_came_to_be(vlm: behold.VLM) -> None:
    answer = vlm.ask(PICTURE, QUESTION, max_new_tokens=6, logprobs=2)
    assert isinstance(answer, str) and isinstance(answer, behold.Answer)
    prompt = vlm.processor.chat([behold.api.turns.user_message(PICTURE, QUESTION)])
    assert answer.usage.prompt_tokens == len(prompt.ids)
    assert answer.usage.image_tokens == prompt.image_tokens > 0
    assert answer.usage.completion_tokens == len(answer.ids) == len(answer.logprobs)
    assert answer.finish_reason in ("stop", "length")
    assert all(len(item.top) == 2 for item in answer.logprobs)
    assert 0 < answer.timings.first_token_s <= answer.timings.total_s


@pytest.mark.parametrize("none", [[], None, ()])
def test_without_pictures_it_is_text_only(vlm: behold.VLM, none: Any) -> None:
    assert vlm.ask(none, QUESTION, max_new_tokens=2).usage.image_tokens == 0


def test_one_picture_or_a_list_of_one_and_any_form_of_it(vlm: behold.VLM, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    PICTURE.save(path)
    data = path.read_bytes()
    answers = {
        vlm.ask(form, QUESTION, max_new_tokens=5)
        for form in (PICTURE, [PICTURE], (path,), str(path), data, io.BytesIO(data))
    }
    assert len(answers) == 1


def test_greedy_is_the_default_and_repeats(vlm: behold.VLM) -> None:
    assert vlm.ask(PICTURE, QUESTION, max_new_tokens=9) == vlm.ask(PICTURE, QUESTION, max_new_tokens=9)


def test_a_seed_repeats_a_sampled_answer(vlm: behold.VLM) -> None:
    sampled = [vlm.ask(PICTURE, QUESTION, max_new_tokens=9, temperature=2.0, seed=seed) for seed in (1, 2, 1)]
    assert sampled[0] == sampled[2] != sampled[1]


def test_streamed_is_the_same_as_not_streamed(vlm: behold.VLM) -> None:
    stream = vlm.stream([PICTURE, toys.picture(31, 22, seed=1)], QUESTION, max_new_tokens=40)
    assert not stream.done
    pieces = list(stream)
    whole = vlm.ask([PICTURE, toys.picture(31, 22, seed=1)], QUESTION, max_new_tokens=40)
    assert stream.done
    assert "".join(pieces) == stream.answer == whole
    assert len(pieces) > 1
    assert (stream.answer.usage, stream.answer.finish_reason) == (whole.usage, whole.finish_reason)


def close(stream: behold.AnswerStream) -> None:
    stream.close()


def leave(stream: behold.AnswerStream) -> None:
    with stream:
        pass


@pytest.mark.parametrize("end", [close, leave])
def test_closing_a_stream_stops_the_work(vlm: behold.VLM, end: Any) -> None:
    stream = vlm.stream(PICTURE, QUESTION, max_new_tokens=400)
    first = next(stream)
    end(stream)
    steps = vlm.engine.stats().steps
    assert stream.done and list(stream) == []
    assert stream.answer == first and stream.answer.finish_reason == "cancelled"
    assert stream.answer.usage.completion_tokens == len(stream.answer.ids) >= 1
    assert vlm.engine.stats().running == vlm.engine.stats().waiting == 0
    assert not vlm.engine.step() and vlm.engine.stats().steps == steps
    vlm.engine.check()


def test_dropping_a_stream_stops_the_work(vlm: behold.VLM) -> None:
    for _piece in vlm.stream(PICTURE, QUESTION, max_new_tokens=400):
        break
    gc.collect()
    assert vlm.engine.stats().running == vlm.engine.stats().waiting == 0


def test_a_stream_that_was_never_read_leaves_nothing(vlm: behold.VLM) -> None:
    vlm.stream(PICTURE, QUESTION).close()
    assert vlm.engine.stats().running == vlm.engine.stats().waiting == 0


def test_an_error_while_generating_reaches_the_reader(vlm: behold.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = vlm.stream(PICTURE, QUESTION, max_new_tokens=40)
    next(stream)

    def broken(*_: Any) -> Any:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(type(vlm.model), "logits", broken)
    with pytest.raises(RuntimeError, match="no such luck"):
        list(stream)
    assert stream.done
    monkeypatch.undo()
    assert vlm.ask(PICTURE, QUESTION, max_new_tokens=2).usage.completion_tokens


def test_a_batch_keeps_its_order_and_gives_what_each_gives_alone(vlm: behold.VLM) -> None:
    other = toys.picture(57, 19, seed=4)
    items: list[Any] = [
        (PICTURE, QUESTION),
        ([], "And without?"),
        [PICTURE, "A list is a pair too."],
        ((other, PICTURE), "Two?"),
        [{"role": "user", "content": [{"type": "image", "image": other}, {"type": "text", "text": "Which?"}]}],
    ]
    together = vlm.batch(items, max_new_tokens=7)
    alone = [vlm.batch([item], max_new_tokens=7)[0] for item in items]
    assert together == alone
    assert len(set(together)) > 1
    assert together[0] == vlm.ask(PICTURE, QUESTION, max_new_tokens=7)


def test_threads_share_one_model(vlm: behold.VLM) -> None:
    questions = [f"Question {number}?" for number in range(4)]
    wanted = [vlm.ask(PICTURE, question, max_new_tokens=12) for question in questions]
    answers: dict[str, str] = {}
    threads = [
        threading.Thread(target=lambda q=question: answers.update({q: vlm.ask(PICTURE, q, max_new_tokens=12)}))
        for question in questions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[question] for question in questions] == wanted


def test_generate_takes_both_conventions(vlm: behold.VLM) -> None:
    wanted = vlm.ask(PICTURE, QUESTION, max_new_tokens=7)
    text = {"type": "text", "text": QUESTION}
    inside = [{"role": "user", "content": [{"type": "image", "image": PICTURE}, text]}]
    beside = [{"role": "user", "content": [{"type": "image"}, text]}]
    assert vlm.generate(inside, max_new_tokens=7) == wanted
    assert vlm.generate(beside, images=[PICTURE], max_new_tokens=7) == wanted


def test_places_and_pictures_must_match(vlm: behold.VLM) -> None:
    message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    with pytest.raises(ChatError, match=r"0 pictures .* 1 place"):
        vlm.generate([message])
    with pytest.raises(ChatError, match=r"2 pictures .* 1 place"):
        vlm.generate([message], images=[PICTURE, PICTURE])


def test_a_final_assistant_message_is_continued(vlm: behold.VLM) -> None:
    user = {"role": "user", "content": "Count."}
    whole = vlm.generate([user], max_new_tokens=8, ignore_eos=True)
    started = vlm.generate([user, {"role": "assistant", "content": "One, two,"}], max_new_tokens=2)
    asked = vlm.generate([user, {"role": "assistant", "content": "One, two,"}, user], max_new_tokens=2)
    assert started.usage.prompt_tokens < asked.usage.prompt_tokens
    last = vlm.processor.render(behold.api.turns.conversation([user, {"role": "assistant", "content": "One, two,"}]))
    assert last.endswith("One, two,")
    assert whole.usage.prompt_tokens < started.usage.prompt_tokens


def test_what_looks_like_a_picture_in_the_question_stays_text(vlm: behold.VLM) -> None:
    assert vlm.ask([], "What is <image>?", max_new_tokens=2).usage.image_tokens == 0


def test_a_stop_string_ends_the_answer_before_it(vlm: behold.VLM) -> None:
    whole = vlm.ask(PICTURE, QUESTION, max_new_tokens=12, ignore_eos=True)
    middle = whole[len(whole) // 2 : len(whole) // 2 + 2]
    answer = vlm.ask(PICTURE, QUESTION, max_new_tokens=12, ignore_eos=True, stop=middle)
    assert answer == whole[: whole.index(middle)]
    assert answer.finish_reason == "stop"


def test_beams_answer_but_do_not_stream(vlm: behold.VLM) -> None:
    assert vlm.ask(PICTURE, QUESTION, max_new_tokens=5, num_beams=3).usage.completion_tokens
    with pytest.raises(OptionError, match="num_beams=3"):
        vlm.stream(PICTURE, QUESTION, num_beams=3)


def test_unknown_and_impossible_options_are_refused_at_once(vlm: behold.VLM) -> None:
    with pytest.raises(OptionError, match="did you mean 'temperature'"):
        vlm.stream(PICTURE, QUESTION, temprature=1)  # type: ignore[call-arg]
    with pytest.raises(OptionError, match="max_new_tokens"):
        vlm.ask(PICTURE, QUESTION, max_new_tokens=0)
    with pytest.raises(OptionError, match="top_p"):
        vlm.stream(PICTURE, QUESTION, top_p=7.0)


def test_what_cannot_be_asked_is_refused(vlm: behold.VLM) -> None:
    with pytest.raises(ChatError, match="question is a list"):
        vlm.ask(QUESTION, [PICTURE])  # type: ignore[arg-type]
    with pytest.raises(MediaError, match="no-such"):
        vlm.ask("no-such.png", QUESTION)
    with pytest.raises(CapacityError, match="tokens"):
        vlm.ask([], "word " * 2000)


def test_an_answer_ends_where_the_context_does(vlm: behold.VLM) -> None:
    answer = vlm.ask([], "Hm.", max_new_tokens=100_000, ignore_eos=True)
    assert answer.finish_reason == "length"
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == vlm.model.config.text.max_position_embeddings


def test_forbidden_words_of_generation_config_are_never_said() -> None:
    """idefics2 forbids its image tokens; the engine is told so by this door as well."""
    vlm = behold.load(toys.checkpoint("idefics2"))
    forbidden = vlm.params({}).bad_words_ids
    assert set(forbidden) == {
        (vlm.processor.tokenizer.token_to_id(t),) for t in ("<fake_token_around_image>", "<image>")
    }
    first = vlm.ask([], QUESTION, max_new_tokens=1, logprobs=0, ignore_eos=True).ids[0]
    vlm._defaults["bad_words_ids"] = ((first,),)
    assert vlm.ask([], QUESTION, max_new_tokens=1, ignore_eos=True).ids[0] != first


def test_quantized_is_smaller_and_answers() -> None:
    plain = behold.load(toys.checkpoint("llava-clip-llama"))
    small = behold.load(toys.checkpoint("llava-clip-llama"), quantize="int8")
    assert small.ask(PICTURE, QUESTION, max_new_tokens=3).usage == plain.ask(PICTURE, QUESTION, max_new_tokens=3).usage

    def size(vlm: behold.VLM) -> int:
        tensors = (*vlm.model.parameters(), *vlm.model.buffers())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    assert size(small) < 0.7 * size(plain)


def test_loading_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match="no-such"):
        behold.load(tmp_path / "no-such")
    with pytest.raises(BeholdError, match=r"config\.json"):
        behold.load(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="behold-tests/none"):
        behold.load("behold-tests/none", offline=True)
    folder = toys.checkpoint("llava-clip-llama")
    for wrong in ("int9", ["int8"]):
        with pytest.raises(OptionError, match=re.escape(f"quantize={wrong!r}")):
            behold.load(folder, quantize=wrong)  # type: ignore[arg-type]
    with pytest.raises(BeholdError, match="warp"):
        behold.load(folder, device="warp")
    with pytest.raises(OptionError, match="telepathy"):
        behold.load(folder, attention="telepathy")


def test_repr_says_what_it_is() -> None:
    folder = toys.checkpoint("llava-clip-llama")
    assert repr(behold.load(folder)) == f"<behold.VLM {str(folder)!r} (llava, float32, cpu)>"
    small = behold.load(folder, quantize="int4", cache_limit=0)
    assert repr(small).endswith("(llava, float32, int4 and int8 weights, cpu)>")
