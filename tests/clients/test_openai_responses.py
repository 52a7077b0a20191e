"""The `openai` package: the Responses API, whole and streamed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from tests.clients.served import QUESTION, Running, data_uri


class Count(BaseModel):
    """What a structured answer is asked to be."""

    several: bool


@pytest.fixture
def client(server: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url, api_key="anything", max_retries=0) as made:
        yield made


def shown(question: str = QUESTION, url: str | None = None) -> list[Any]:
    picture = {"type": "input_image", "image_url": url or data_uri(), "detail": "auto"}
    return [{"role": "user", "content": [picture, {"type": "input_text", "text": question}]}]


def test_a_question_as_a_string(server: Running, client: OpenAI) -> None:
    answer = client.responses.create(model=server.model, input="Hello!")
    assert answer.output_text == server.alone(None, "Hello!")
    assert (answer.object, answer.status, answer.model) == ("response", "completed", server.model)


def test_an_answer_about_a_picture(server: Running, client: OpenAI) -> None:
    answer = client.responses.create(model=server.model, input=shown(), temperature=0)
    assert answer.output_text == server.alone("scene.png", QUESTION)
    assert answer.usage is not None and answer.usage.input_tokens > 81
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens


def test_a_conversation_is_sent_whole(server: Running, client: OpenAI) -> None:
    turns: list[Any] = shown()
    first = client.responses.create(model=server.model, input=turns)
    turns += [*first.output, {"role": "user", "content": "Is there a circle?"}]
    second = client.responses.create(model=server.model, input=turns)
    chat = server.vlm.chat()
    chat.say("examples/scene.png", QUESTION)
    assert second.output_text == chat.say("Is there a circle?")
    assert second.usage is not None and second.usage.input_tokens_details.cached_tokens >= 81


def test_an_answer_that_is_cut_short_says_so(server: Running, client: OpenAI) -> None:
    answer = client.responses.create(model=server.model, input=shown(), max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"


def test_events_come_in_order_and_join_to_the_answer(server: Running, client: OpenAI) -> None:
    with client.responses.create(model=server.model, input=shown(), stream=True) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == server.alone("scene.png", QUESTION)
    last = events[-1]
    assert last.type == "response.completed" and last.response.output_text == text
    done = [event.text for event in events if event.type == "response.output_text.done"]
    assert done == [text]


def test_the_clients_own_stream_helper(server: Running, client: OpenAI) -> None:
    with client.responses.stream(model=server.model, input=shown()) as stream:
        answer = stream.get_final_response()
    assert answer.output_text == server.alone("scene.png", QUESTION)


def test_an_answer_is_parsed_into_a_model(server: Running, client: OpenAI) -> None:
    answer = client.responses.parse(model=server.model, input=shown(), text_format=Count)
    assert isinstance(answer.output_parsed, Count)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": shown(url="data:image/png;base64,AAAA")}, "input[0].content[0].image_url"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"temperature": -3}, "temperature"),
    ],
)
def test_what_cannot_be_honoured_names_the_field(
    server: Running, client: OpenAI, change: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": server.model, "input": "Hello!", **change})
    assert caught.value.param == param
