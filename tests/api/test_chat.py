"""A conversation: what the history holds after answers, failures and answers that were stopped."""

from __future__ import annotations

from typing import Any

import pytest

import behold
from behold.errors import CapacityError, ChatError, MediaError, OptionError
from behold.types import Message
from tests import toys

NAMES = ("llava-siglip-qwen2", "idefics2")
PICTURE = toys.picture()


@pytest.fixture(scope="module", params=NAMES)
def vlm(request: pytest.FixtureRequest) -> behold.VLM:
    return behold.load(toys.checkpoint(request.param))


def texts(chat: behold.Chat) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in chat.messages]


def test_the_history_is_what_the_model_reads(vlm: behold.VLM) -> None:
    chat = vlm.chat()
    first = chat.say(PICTURE, "What is this?", max_new_tokens=6)
    second = chat.say("And the colour?", max_new_tokens=6)
    assert texts(chat) == [
        ("user", "What is this?"),
        ("assistant", str(first)),
        ("user", "And the colour?"),
        ("assistant", str(second)),
    ]
    history = [
        {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": str(first)},
        {"role": "user", "content": "And the colour?"},
    ]
    assert second == vlm.generate(history, max_new_tokens=6)


def test_each_picture_is_encoded_once(vlm: behold.VLM, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    encode = type(vlm.model).encoding

    def counted(self: Any, images: Any) -> Any:
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(type(vlm.model), "encoding", counted)
    chat = vlm.chat()
    new = toys.picture(28, 28, seed=77)
    chat.say(new, "What is this?", max_new_tokens=2)
    chat.say("And the colour?", max_new_tokens=2)
    chat.say("Sure?", max_new_tokens=2)
    assert sum(encoded) == 1


def test_a_second_picture_joins_the_first(vlm: behold.VLM) -> None:
    chat = vlm.chat()
    first = chat.say(PICTURE, "This?", max_new_tokens=2)
    second = chat.say(toys.picture(seed=9), "And this?", max_new_tokens=2)
    assert second.usage.image_tokens == 2 * first.usage.image_tokens


def test_streaming_says_and_keeps_the_same(vlm: behold.VLM) -> None:
    said, streamed = vlm.chat(), vlm.chat()
    answer = said.say(PICTURE, "What is this?", max_new_tokens=9)
    stream = streamed.stream(PICTURE, "What is this?", max_new_tokens=9)
    assert streamed.messages == []
    assert "".join(stream) == answer == stream.answer
    assert texts(streamed) == texts(said)


def test_a_system_message_comes_first_and_survives_a_reset(vlm: behold.VLM) -> None:
    chat = vlm.chat(system="Be brief.")
    chat.say("Hello.", max_new_tokens=2)
    assert texts(chat)[0] == ("system", "Be brief.")
    chat.reset()
    assert texts(chat) == [("system", "Be brief.")]


def test_a_stopped_answer_stays_as_far_as_it_came(vlm: behold.VLM) -> None:
    chat = vlm.chat()
    stream = chat.stream("Tell a long story.", max_new_tokens=300, ignore_eos=True)
    begun = next(stream) + next(stream)
    stream.close()
    assert texts(chat) == [("user", "Tell a long story."), ("assistant", begun)]
    chat.say("Go on.", max_new_tokens=3)
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 2
    vlm.engine.check()


def test_stopped_before_anything_came_leaves_no_trace(vlm: behold.VLM) -> None:
    chat = vlm.chat()
    chat.stream("Tell a long story.").close()
    assert chat.messages == []


@pytest.mark.parametrize("interrupt", [RuntimeError, KeyboardInterrupt])
def test_a_failed_turn_leaves_no_trace_and_an_interrupted_one_what_was_said(
    vlm: behold.VLM, monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    chat = vlm.chat()
    chat.say("Hello.", max_new_tokens=2)
    before = list(chat.messages)
    stream = chat.stream("Tell a long story.", max_new_tokens=300, ignore_eos=True)
    begun = next(stream)

    def broken(*_: Any) -> Any:
        raise interrupt("enough")

    monkeypatch.setattr(type(vlm.model), "logits", broken)
    with pytest.raises(interrupt, match="enough"):
        list(stream)
    monkeypatch.undo()
    if interrupt is RuntimeError:
        assert chat.messages == before
    else:
        assert chat.messages[: len(before)] == before
        assert chat.messages[-1].text == begun
    chat.say("Still there?", max_new_tokens=2)
    vlm.engine.check()


def test_refused_turns_leave_no_trace(vlm: behold.VLM) -> None:
    chat = vlm.chat()
    with pytest.raises(MediaError):
        chat.say("no-such.png", "What is this?")
    with pytest.raises(OptionError):
        chat.say("Hello.", temprature=1)  # type: ignore[call-arg]
    with pytest.raises(CapacityError):
        chat.say("word " * 2000)
    with pytest.raises(ChatError, match="no words"):
        chat.say(PICTURE)
    assert chat.messages == []


def test_one_turn_at_a_time(vlm: behold.VLM) -> None:
    chat = vlm.chat()
    stream = chat.stream("Tell a long story.", max_new_tokens=300, ignore_eos=True)
    next(stream)
    for turn in (lambda: chat.say("Hello."), lambda: chat.stream("Hello."), chat.reset):
        with pytest.raises(ChatError, match="still being streamed"):
            turn()
    stream.close()
    chat.say("Hello.", max_new_tokens=2)
    assert [message.role for message in chat.messages] == ["user", "assistant"] * 2


def test_a_dropped_stream_does_not_block_the_conversation(vlm: behold.VLM) -> None:
    chat = vlm.chat()
    for _piece in chat.stream("Tell a long story.", max_new_tokens=300, ignore_eos=True):
        break
    chat.say("Hello.", max_new_tokens=2)
    assert all(isinstance(message, Message) for message in chat.messages)
    assert len(chat.messages) == 4
