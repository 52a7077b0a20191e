"""`pipeline` beside transformers' own: the same inputs in, the very same records out."""

from __future__ import annotations

import copy
import functools
import types
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

import behold
from behold.errors import ChatError, OptionError
from tests import toys
from tests.naming import plainly

NAMES = ("llava-siglip-qwen2", "llava-clip-llama", "idefics2-split")


@functools.cache
def pipes(name: str) -> tuple[Any, Any]:
    """(behold's, transformers')."""
    import transformers

    folder = toys.checkpoint(name)
    toys._quiet()
    theirs = transformers.pipeline("image-text-to-text", model=str(folder), device="cpu", dtype="float32")
    theirs.tokenizer.padding_side = theirs.processor.tokenizer.padding_side = "left"
    return behold.pipeline("image-text-to-text", model=str(folder), device="cpu", dtype="float32"), theirs


def same(name: str, *args: Any, **options: Any) -> Any:
    ours, theirs = pipes(name)
    options = {"max_new_tokens": 6, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = theirs(*copy.copy(args), **copy.deepcopy(options))
    before = copy.deepcopy(options.get("text"))
    found = ours(*args, **options)
    assert found == expected
    assert options.get("text") == before, "the caller's messages are left alone"
    return found


def user(*pictures: Any, text: str = "What do we see in this image?") -> dict[str, Any]:
    places = [{"type": "image", "image": picture} for picture in pictures]
    return {"role": "user", "content": [*places, {"type": "text", "text": text}]}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


A, B = toys.picture(40, 30, 0), toys.picture(23, 51, 1)


# --- chats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_chat_gets_an_answer_appended(name: str) -> None:
    (record,) = same(name, text=[user(A, B)])
    assert record["generated_text"][-1]["role"] == "assistant"
    assert record["input_text"] == record["generated_text"][:-1]


@pytest.mark.parametrize("name", NAMES)
def test_a_started_answer_is_continued(name: str) -> None:
    chat = [user(A), assistant("There is a red")]
    (record,) = same(name, text=chat)
    assert len(record["generated_text"]) == 2
    assert record["generated_text"][-1]["content"][-1]["text"].startswith("There is a red")
    (record,) = same(name, text=chat, return_full_text=False)
    assert isinstance(record["generated_text"], str)


def test_a_started_answer_can_be_left_as_it_is() -> None:
    same(NAMES[0], text=[user(A), assistant("There.")], continue_final_message=False)


def test_lists_of_chats_give_lists_of_records() -> None:
    chats = [[user(A)], [user(B, A, text="Why?")], [user(text="Hello.")], [user(A), assistant("One")]]
    found = same(NAMES[0], text=chats)
    assert [len(records) for records in found] == [1, 1, 1, 1]
    assert same(NAMES[0], text=chats, return_full_text=False, batch_size=1) == pipes(NAMES[0])[0](
        text=chats, return_full_text=False, batch_size=3, max_new_tokens=6
    )


def test_the_first_argument_may_be_the_chat() -> None:
    ours, _ = pipes(NAMES[0])
    assert ours([user(A)], max_new_tokens=4) == ours(text=[user(A)], max_new_tokens=4)


def test_generators_are_read_as_results_are_asked_for() -> None:
    ours, theirs = pipes(NAMES[0])
    read: list[int] = []

    def chats() -> Iterator[Any]:
        for index in range(3):
            read.append(index)
            yield [user(A, text="?" * (index + 1))]

    found = ours(text=chats(), max_new_tokens=4)
    assert not isinstance(found, list)
    first = next(found)
    assert read[-1] == 0, "no more was read than was needed"
    expected = list(theirs(chats(), max_new_tokens=4))
    assert [first, *found] == expected


def test_data_sets_are_read_as_results_are_asked_for() -> None:
    class Chats:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> Any:
            return [user((A, B)[index])]

    ours, _ = pipes(NAMES[0])
    found = ours(Chats(), max_new_tokens=3)
    assert not isinstance(found, list)
    assert list(found) == ours([[user(A)], [user(B)]], max_new_tokens=3)


def test_a_generator_of_messages_is_one_chat() -> None:
    ours, _ = pipes(NAMES[0])
    messages = [user(A), assistant("There is"), user(text="And?")]
    assert ours(text=(message for message in messages), max_new_tokens=4) == ours(text=messages, max_new_tokens=4)


# --- texts -----------------------------------------------------------------------------------------------------------


def prompts(name: str) -> tuple[str, str]:
    return ("User:<image>How many?", "User:<image>What is <image>?") if "idefics" in name else (
        "USER: <image>\nHow many? ASSISTANT:", "USER: <image>\n<image>\nWhat changed? ASSISTANT:")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("full", [None, True, False])
def test_a_text_with_pictures(name: str, full: bool | None) -> None:
    one, two = prompts(name)
    same(name, images=A, text=one, **({} if full is None else {"return_full_text": full}))
    same(name, images=[A, B], text=two)
    same(name, images=[[A], [A, B]], text=[one, two])


def test_texts_without_pictures() -> None:
    same(NAMES[0], text="Hello there.")
    found = same(NAMES[0], text=["Hello there.", "What is a square?"])
    assert isinstance(found[0], list)


def test_several_answers() -> None:
    found = same(NAMES[0], text=[user(A)], generate_kwargs={"num_beams": 3, "num_return_sequences": 2})
    assert len(found) == 2


def test_tensors() -> None:
    ours, theirs = pipes(NAMES[0])
    (found,) = ours(images=A, text=prompts(NAMES[0])[0], return_tensors=True, max_new_tokens=4)
    (expected,) = theirs(images=A, text=prompts(NAMES[0])[0], return_tensors=True, max_new_tokens=4)
    assert found.keys() == expected.keys()
    assert found["generated_token_ids"].tolist() == expected["generated_token_ids"].tolist()


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"generate_kwargs": {"repetition_penalty": 1.4, "max_new_tokens": 4}, "max_new_tokens": None},
        {"skip_special_tokens": False},
        {"generate_kwargs": {"num_beams": 2}},
        {"generate_kwargs": {"min_new_tokens": None, "top_k": None}},
        {"generate_kwargs": {"max_length": 60}, "max_new_tokens": None},
    ],
    ids=str,
)
def test_options(options: dict[str, Any]) -> None:
    same(NAMES[0], text=[user(A)], **options)


def test_stop_sequence() -> None:
    ours, _ = pipes(NAMES[0])
    (record,) = ours(text=[user(A)], max_new_tokens=8, return_full_text=False)
    stop = record["generated_text"][2:4]
    (stopped,) = same(NAMES[0], text=[user(A)], max_new_tokens=8, return_full_text=False, stop_sequence=stop)
    assert stop in stopped["generated_text"] and len(stopped["generated_text"]) < len(record["generated_text"])


def test_options_of_the_pipeline_hold_for_every_call_until_overridden() -> None:
    ours, _ = pipes(NAMES[0])
    brief = behold.pipeline("image-text-to-text", model=ours.model, processor=ours.processor,
                            max_new_tokens=2, return_full_text=False)  # fmt: skip
    assert brief(text=[user(A)]) == ours(text=[user(A)], max_new_tokens=2, return_full_text=False)
    assert brief(text=[user(A)], max_new_tokens=5, return_full_text=True) == ours(text=[user(A)], max_new_tokens=5)


def test_the_default_is_256_new_tokens() -> None:
    ours, _ = pipes(NAMES[0])
    (record,) = ours(text="Hello", return_tensors=True, eos_token_id=None)
    assert len(record["generated_token_ids"]) == len(ours.tokenizer.encode("Hello")) + 256


def test_a_streamer_gets_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    ours, _ = pipes(NAMES[0])
    streamer = behold.TextStreamer(ours.tokenizer, skip_prompt=True, skip_special_tokens=True)
    (record,) = ours(text=[user(A)], max_new_tokens=6, generate_kwargs={"streamer": streamer}, return_full_text=False)
    assert capsys.readouterr().out == record["generated_text"] + "\n"


def test_the_timeout_reaches_the_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    from behold.api.hf import processor as hf_processor

    seen: list[float] = []

    def load(source: Any, *, policy: Any) -> Any:
        seen.append(policy.timeout_s)
        return A

    monkeypatch.setattr(hf_processor, "load_image", load)
    ours, _ = pipes(NAMES[0])
    ours(text=[user("https://example.org/a.png")], timeout=2.5, max_new_tokens=1)
    ours(images="https://example.org/a.png", text=prompts(NAMES[0])[0], timeout=3.5, max_new_tokens=1)
    ours(text=[user("https://example.org/a.png")], max_new_tokens=1)
    assert seen == [2.5, 3.5, 30.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "text and images are both missing"),
        ({"text": [user(A)], "images": A}, "place them in it"),
        ({"text": 5}, "int is no input"),
        ({"text": [{"role": "user"}]}, r"keys \['role'\]"),
        (
            {"text": "a", "max_new_tokens": 3, "generate_kwargs": {"max_new_tokens": 3}},
            "'max_new_tokens' is given twice",
        ),
        ({"text": "a", "return_full_text": True, "return_tensors": True}, "exclude each other"),
        ({"text": "a", "batch_size": 0}, "batch_size=0"),
        ({"text": "a", "num_workers": 2}, "num_workers"),
        ({"text": [user(A)], "colour": 1}, "'colour' is neither"),
        ({"text": "a", "colour": 1}, "'colour'"),
    ],
    ids=plainly,
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        pipes(NAMES[0])[0](**options)


def test_pictures_and_places_must_match() -> None:
    with pytest.raises(ChatError, match="2 pictures were given for 1 image tokens"):
        pipes(NAMES[0])[0](images=[A, B], text=prompts(NAMES[0])[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "text-generation"}, "task='text-generation'"),
        ({"model": None}, "give a hub id"),
        ({"tokenizer": "x"}, "tokenizer is not supported"),
        ({"device": "cpu", "device_map": "auto"}, "device and device_map"),
        ({"dtype": "float32", "model_kwargs": {"dtype": "float32"}}, "dtype is given twice"),
        ({"model_kwargs": {"max_memory": {0: "1GB"}}}, "max_memory"),
        ({"load_in_8bit": True}, "give model_kwargs="),
    ],
    ids=str,
)
def test_refused_when_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        behold.pipeline(**{"task": "image-text-to-text", "model": str(toys.checkpoint(NAMES[0])), **options})
    assert isinstance(behold.pipeline, types.FunctionType)
