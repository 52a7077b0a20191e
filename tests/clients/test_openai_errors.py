"""The `openai` package: models, and every refusal as the class and the field that its users catch."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.clients.served import EXAMPLES, KEY, Running, data_uri, seen


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="anything", max_retries=0) as made:
        yield made


def with_image(image_url: Any) -> list[Any]:
    text = {"type": "text", "text": "What is it?"}
    return [{"role": "user", "content": [text, {"type": "image_url", "image_url": image_url}]}]


def test_the_model_is_listed_and_says_that_it_sees(server: Running, client: OpenAI) -> None:
    (listed,) = client.models.list().data
    assert (listed.id, listed.object) == (server.model, "model")
    assert client.models.retrieve(server.model) == listed
    assert listed.model_extra is not None and "image" in listed.model_extra["modalities"]["input"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 7}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"5": 3}}, "logit_bias"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}}, "response"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
        ({"messages": with_image({"url": "data:image/png;base64,AAAA"})}, "messages[0].content[1].image_url"),
        ({"messages": with_image({"url": "data:image/png;base64,!!!"})}, "messages[0].content[1].image_url"),
        ({"messages": with_image({"url": "file:///etc/passwd"})}, "messages[0].content[1].image_url"),
        ({"messages": with_image({"url": "http://127.0.0.1/a.png"})}, "messages[0].content[1].image_url"),
        ({"messages": with_image({"url": data_uri(), "detail": "most"})}, "messages[0].content[1].image_url.detail"),
    ],
)
def test_what_cannot_be_honoured_is_a_bad_request_that_names_the_field(
    server: Running, client: OpenAI, change: dict[str, Any], param: str
) -> None:
    request: dict[str, Any] = {"model": server.model, "messages": seen(), **change}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**request)
    error = caught.value
    assert error.param is not None and error.param.startswith(param)
    assert error.type == "invalid_request_error"
    assert error.request_id
    assert " object at " not in error.message and str(EXAMPLES.parent) not in error.message


def test_a_refusal_of_a_stream_is_raised_before_it_begins(server: Running, client: OpenAI) -> None:
    messages = with_image({"url": "data:image/png;base64,AAAA"})
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model=server.model, messages=messages, stream=True)


def test_a_prompt_that_can_never_fit(server: Running, client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=server.model, messages=[{"role": "user", "content": "word " * 5000}])
    assert caught.value.code == "context_length_exceeded"


def test_an_unknown_model_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=[{"role": "user", "content": "Hello!"}])
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_a_bad_request_disturbs_no_other(server: Running) -> None:
    good: dict[str, Any] = {"model": server.model, "messages": seen()}
    bad: dict[str, Any] = {"model": server.model, "messages": with_image({"url": "data:image/png;base64,AAAA"})}

    async def together() -> list[Any]:
        async with AsyncOpenAI(base_url=server.url, api_key="anything", max_retries=0) as client:
            calls = [client.chat.completions.create(**(bad if i % 3 == 0 else good)) for i in range(9)]
            return await asyncio.gather(*calls, return_exceptions=True)

    results = asyncio.run(together())
    assert all(isinstance(result, openai.BadRequestError) for result in results[::3])
    texts = {result.choices[0].message.content for i, result in enumerate(results) if i % 3}
    assert texts == {server.alone("scene.png", seen()[0]["content"][-1]["text"])}


def test_a_wrong_key_is_an_authentication_error(guarded: Running) -> None:
    for key in ("wrong", KEY + "x"):
        with OpenAI(base_url=guarded.url, api_key=key, max_retries=0) as client:
            with pytest.raises(openai.AuthenticationError) as caught:
                client.models.list()
            assert KEY not in caught.value.message
    with OpenAI(base_url=guarded.url, api_key=KEY, max_retries=0) as client:
        assert client.models.list().data[0].id == guarded.model


def test_a_full_queue_is_a_rate_limit_error_with_a_time_to_wait(guarded: Running) -> None:
    request: dict[str, Any] = {"model": guarded.model, "messages": seen(), "max_tokens": 64}
    request["extra_body"] = {"ignore_eos": True, "loop_stop": False}

    async def together() -> list[Any]:
        async with AsyncOpenAI(base_url=guarded.url, api_key=KEY, max_retries=0) as client:
            calls = [client.chat.completions.create(**request) for _ in range(40)]
            return await asyncio.gather(*calls, return_exceptions=True)

    results = asyncio.run(together())
    refused = [result for result in results if isinstance(result, openai.RateLimitError)]
    answered = [result for result in results if not isinstance(result, BaseException)]
    assert refused and answered and len(refused) + len(answered) == 40
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    assert len({answer.choices[0].message.content for answer in answered}) == 1


def test_a_body_over_the_limit(guarded: Running) -> None:
    with OpenAI(base_url=guarded.url, api_key=KEY, max_retries=0) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model=guarded.model, messages=[{"role": "user", "content": "x" * 200_000}])
        assert caught.value.status_code == 413
