"""LangChain's ChatOpenAI: pictures, streams, usage, and structured answers."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field, SecretStr

from tests.clients.served import QUESTION, Running, data_uri, seen


class Scene(BaseModel):
    """What is in a picture."""

    shape: Literal["circle", "square", "cross"] = Field(description="the first shape")
    several: bool


@pytest.fixture
def chat(server: Running) -> ChatOpenAI:
    return model(server)


def model(server: Running, **options: Any) -> ChatOpenAI:
    # Its connections are shared by all instances and live as long as the process: closing them breaks the others.
    key = SecretStr("anything")
    return ChatOpenAI(model=server.model, base_url=server.url, api_key=key, temperature=0, max_retries=0, **options)


def question() -> list[Any]:
    return [HumanMessage(content=seen()[0]["content"])]


def test_invoke_with_a_picture(server: Running, chat: ChatOpenAI) -> None:
    answer = chat.invoke(question())
    assert answer.text == server.alone("scene.png", QUESTION)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_tokens"] > 81
    assert answer.usage_metadata["output_tokens"] > 5
    assert answer.response_metadata["finish_reason"] == "stop"


def test_its_own_form_of_a_picture(server: Running, chat: ChatOpenAI) -> None:
    """Version 1's standard content blocks, which the adapter turns into the API's."""
    block = {"type": "image", "base64": data_uri().partition(",")[2], "mime_type": "image/png"}
    answer = chat.invoke([HumanMessage(content=[block, {"type": "text", "text": QUESTION}])])
    assert answer.text == server.alone("scene.png", QUESTION)


def test_earlier_turns_are_read(server: Running, chat: ChatOpenAI) -> None:
    turns = question()
    turns += [chat.invoke(turns), HumanMessage(content="Is there a circle?")]
    assert isinstance(turns[1], AIMessage)
    expected = server.vlm.chat()
    expected.say("examples/scene.png", QUESTION)
    assert chat.invoke(turns).text == expected.say("Is there a circle?")
    system = chat.invoke([SystemMessage(content="Be brief."), HumanMessage(content="Hello!")])
    assert system.text


def test_a_stream_and_its_usage(server: Running, chat: ChatOpenAI) -> None:
    pieces = list(chat.stream(question()))
    assert "".join(piece.text for piece in pieces) == server.alone("scene.png", QUESTION)
    with_usage = list(chat.stream(question(), stream_usage=True))
    total = with_usage[0]
    for piece in with_usage[1:]:
        total += piece
    assert total.usage_metadata is not None and total.usage_metadata["input_tokens"] > 81
    assert total.text == server.alone("scene.png", QUESTION)


def test_a_batch(server: Running, chat: ChatOpenAI) -> None:
    answers = chat.batch([question(), [HumanMessage(content="Hello!")]])
    assert [answer.text for answer in answers] == [server.alone("scene.png", QUESTION), server.alone(None, "Hello!")]


def test_structured_output(chat: ChatOpenAI) -> None:
    assert isinstance(chat.with_structured_output(Scene, method="json_schema").invoke(question()), Scene)
    plain = {**Scene.model_json_schema(), "additionalProperties": False}
    found = chat.with_structured_output(plain, method="json_schema").invoke(question())
    assert Scene.model_validate(found)


def test_log_probabilities(server: Running) -> None:
    chat = model(server, logprobs=True, top_logprobs=2)
    tokens = chat.invoke(question()).response_metadata["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == server.alone("scene.png", QUESTION)


def test_through_the_responses_api(server: Running) -> None:
    chat = model(server, use_responses_api=True)
    assert chat.invoke(question()).text == server.alone("scene.png", QUESTION)
    assert "".join(piece.text for piece in chat.stream(question())) == server.alone("scene.png", QUESTION)
