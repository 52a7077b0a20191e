"""The `openai` package: chat completions, whole and streamed."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI, LengthFinishReasonError, OpenAI
from pydantic import BaseModel

from tests.clients.served import QUESTION, Running, data_uri, seen


class Scene(BaseModel):
    """What a structured answer is asked to be."""

    shape: Literal["circle", "square", "cross"]
    several: bool


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="anything", max_retries=0) as made:
        yield made


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def test_an_answer_about_a_picture(server: Running, client: OpenAI) -> None:
    answer = client.chat.completions.create(model=server.model, messages=seen(), temperature=0)
    assert text_of(answer) == server.alone("scene.png", QUESTION)
    assert (answer.object, answer.model) == ("chat.completion", server.model)
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.message.role, choice.logprobs) == (0, "stop", "assistant", None)
    alone = server.vlm.ask("examples/scene.png", QUESTION).usage
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == alone.prompt_tokens
    assert answer.usage.completion_tokens == alone.completion_tokens
    assert answer.usage.total_tokens == alone.prompt_tokens + alone.completion_tokens
    details = answer.usage.prompt_tokens_details
    assert details is not None and details.model_extra is not None
    assert details.model_extra["image_tokens"] == alone.image_tokens
    assert details.cached_tokens is not None


def test_a_second_question_finds_the_picture_in_the_cache(server: Running, client: OpenAI) -> None:
    turns: list[Any] = seen("number.png")
    first = client.chat.completions.create(model=server.model, messages=turns)
    turns += [{"role": "assistant", "content": text_of(first)}, {"role": "user", "content": "What colour is it?"}]
    usage = client.chat.completions.create(model=server.model, messages=turns).usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens is not None
    assert usage.prompt_tokens_details.cached_tokens >= usage.prompt_tokens_details.model_extra["image_tokens"]


def test_the_forms_that_content_may_have(server: Running, client: OpenAI) -> None:
    """A bare string for the address, a system message as a string, a list with text only: all mean the same."""
    text = {"type": "text", "text": QUESTION}
    forms: list[list[Any]] = [
        [{"role": "user", "content": [{"type": "image_url", "image_url": data_uri()}, text]}],
        [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": data_uri(), "detail": "auto"}}, text],
            }
        ],
    ]
    answers = {text_of(client.chat.completions.create(model=server.model, messages=form)) for form in forms}
    assert answers == {server.alone("scene.png", QUESTION)}
    plain: list[list[Any]] = [
        [{"role": "user", "content": "Hello!"}],
        [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}],
    ]
    answers = {text_of(client.chat.completions.create(model=server.model, messages=form)) for form in plain}
    assert answers == {server.alone(None, "Hello!")}


def test_several_pictures_keep_their_order(server: Running, client: OpenAI) -> None:
    question = "What changed?"
    answers = [
        text_of(client.chat.completions.create(model=server.model, messages=seen(*names, question=question)))
        for names in (("two_a.png", "two_b.png"), ("two_b.png", "two_a.png"))
    ]
    pictures = ["examples/two_a.png", "examples/two_b.png"]
    assert answers == [server.vlm.ask(pictures, question), server.vlm.ask(pictures[::-1], question)]
    assert answers[0] != answers[1]


def test_unknown_fields_are_ignored_and_both_limits_work(server: Running, client: OpenAI) -> None:
    common: dict[str, Any] = {"model": server.model, "messages": seen(), "user": "someone", "metadata": {"a": "b"}}
    for limit in ("max_tokens", "max_completion_tokens"):
        answer = client.chat.completions.create(**common, store=False, **{limit: 4})
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None and answer.usage.completion_tokens == 4
        assert server.alone("scene.png", QUESTION).startswith(text_of(answer))


def test_a_stream_joins_to_the_same_answer(server: Running, client: OpenAI) -> None:
    with client.chat.completions.create(model=server.model, messages=seen(), stream=True) as stream:
        chunks = list(stream)
    assert {(chunk.id, chunk.created, chunk.object) for chunk in chunks} == {
        (chunks[0].id, chunks[0].created, "chat.completion.chunk")
    }
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == server.alone("scene.png", QUESTION)
    assert len([piece for piece in pieces if piece]) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]


def test_a_stream_with_usage_ends_in_one_chunk_without_choices(server: Running, client: OpenAI) -> None:
    options: Any = {"include_usage": True}
    request: dict[str, Any] = {"model": server.model, "messages": seen()}
    with client.chat.completions.create(**request, stream=True, stream_options=options) as stream:
        *chunks, last = stream
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert last.choices == [] and last.usage is not None
    whole = client.chat.completions.create(**request).usage
    assert whole is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (whole.prompt_tokens, whole.completion_tokens)


def test_the_clients_own_stream_helper(server: Running, client: OpenAI) -> None:
    with client.chat.completions.stream(model=server.model, messages=seen()) as stream:
        kinds = {event.type for event in stream}
        answer = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert text_of(answer) == server.alone("scene.png", QUESTION)


def test_log_probabilities(server: Running, client: OpenAI) -> None:
    request: dict[str, Any] = {"model": server.model, "messages": seen(), "logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(**request)
    found = answer.choices[0].logprobs
    assert found is not None and found.content is not None
    assert "".join(token.token for token in found.content) == text_of(answer)
    assert bytes(byte for token in found.content for byte in token.bytes or ()) == text_of(answer).encode()
    for token in found.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == pytest.approx(max(top.logprob for top in token.top_logprobs))
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1 + 1e-4
    with client.chat.completions.create(**request, stream=True) as stream:
        streamed = [
            token.token
            for chunk in stream
            for choice in chunk.choices
            for token in (choice.logprobs.content if choice.logprobs and choice.logprobs.content else ())
        ]
    assert streamed == [token.token for token in found.content]


def test_several_choices_and_a_seed(server: Running, client: OpenAI) -> None:
    request: dict[str, Any] = {"model": server.model, "messages": seen(), "temperature": 1.5, "seed": 11}
    answer = client.chat.completions.create(**request, n=3)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    again = client.chat.completions.create(**request, n=3)
    assert [choice.message.content for choice in again.choices] == texts
    assert text_of(client.chat.completions.create(**request)) == texts[0]
    streamed = ["", "", ""]
    with client.chat.completions.create(**request, n=3, stream=True) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_stop_strings_are_not_part_of_the_answer(server: Running, client: OpenAI) -> None:
    whole = server.alone("scene.png", QUESTION)
    answer = client.chat.completions.create(model=server.model, messages=seen(), stop=[" green", "nowhere"])
    assert text_of(answer) == whole.partition(" green")[0]
    assert answer.choices[0].finish_reason == "stop"


def test_further_sampling_options_through_extra_body(server: Running, client: OpenAI) -> None:
    extra = {"ignore_eos": True, "loop_stop": False, "top_k": 1}
    answer = client.chat.completions.create(model=server.model, messages=seen(), max_tokens=60, extra_body=extra)
    assert answer.usage is not None and answer.usage.completion_tokens == 60


def test_an_answer_is_parsed_into_a_model(server: Running, client: OpenAI) -> None:
    parsed = client.chat.completions.parse(model=server.model, messages=seen(), response_format=Scene)
    assert isinstance(parsed.choices[0].message.parsed, Scene)
    with client.chat.completions.stream(model=server.model, messages=seen(), response_format=Scene) as stream:
        assert stream.get_final_completion().choices[0].message.parsed == parsed.choices[0].message.parsed


def test_an_answer_cut_short_is_no_instance(server: Running, client: OpenAI) -> None:
    with pytest.raises(LengthFinishReasonError):
        client.chat.completions.parse(model=server.model, messages=seen(), response_format=Scene, max_tokens=3)


def test_any_json_object(server: Running, client: OpenAI) -> None:
    kind: Any = {"type": "json_object"}
    request: dict[str, Any] = {"model": server.model, "messages": seen(), "response_format": kind, "max_tokens": 80}
    answer = client.chat.completions.create(**request)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text_of(answer)), dict)
    else:
        assert text_of(answer).lstrip().startswith("{")


def test_a_client_that_leaves_frees_its_place(server: Running, client: OpenAI) -> None:
    request: dict[str, Any] = {"model": server.model, "messages": seen(), "max_tokens": 1500}
    extra = {"ignore_eos": True, "loop_stop": False}
    with client.chat.completions.create(**request, stream=True, extra_body=extra) as stream:
        next(iter(stream))
    assert server.idle()


def test_many_at_once_get_the_answers_they_get_alone(server: Running) -> None:
    questions = [QUESTION, "How many shapes are there?", "Is there a circle?", "What colour is the cross?"]
    work = [(name, question) for name in ("scene.png", "two_a.png", "word.png") for question in questions]

    async def ask(client: AsyncOpenAI, name: str, question: str, *, stream: bool) -> str:
        messages: Any = seen(name, question=question)
        if not stream:
            return text_of(await client.chat.completions.create(model=server.model, messages=messages))
        pieces = []
        async with await client.chat.completions.create(model=server.model, messages=messages, stream=True) as chunks:
            async for chunk in chunks:
                pieces += [choice.delta.content or "" for choice in chunk.choices]
        return "".join(pieces)

    async def together() -> list[str]:
        async with AsyncOpenAI(base_url=server.url, api_key="anything", max_retries=0) as client:
            return await asyncio.gather(*(ask(client, *each, stream=i % 2 == 0) for i, each in enumerate(work)))

    assert asyncio.run(together()) == [server.alone(*each) for each in work]
