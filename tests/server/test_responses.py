"""The responses endpoint: the same answers, as one object or as events that build it up."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

import behold
from behold.api.server.errors import ApiError
from behold.types import Delta
from tests import toys
from tests.server.asking import PICTURE, QUESTION, client_of, data_uri, events_of, refused, service_of

PATH = "/v1/responses"
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def toy() -> behold.VLM:
    return behold.load(toys.checkpoint("llava-siglip-qwen2"), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def client(toy: behold.VLM) -> Iterator[TestClient]:
    with client_of(toy) as client:
        yield client


def about_the_picture(**fields: Any) -> dict[str, Any]:
    content = [{"type": "input_image", "image_url": data_uri()}, {"type": "input_text", "text": QUESTION}]
    return {"input": [{"role": "user", "content": content}], "max_output_tokens": 8, **fields}


def test_the_answer_is_that_of_the_library(client: TestClient, toy: behold.VLM) -> None:
    response = client.post(PATH, json=about_the_picture(metadata={"a": "b"}, user="me")).json()
    expected = toy.ask(PICTURE, QUESTION, max_new_tokens=8)
    assert response["object"] == "response" and response["id"].startswith("resp_")
    (item,) = response["output"]
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "incomplete")
    assert item["content"] == [{"type": "output_text", "text": expected, "annotations": [], "logprobs": []}]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert response["ended_by"] == "length" and response["error"] is None
    usage = response["usage"]
    assert usage["input_tokens"] == expected.usage.prompt_tokens
    assert usage["input_tokens_details"]["image_tokens"] == 16
    assert (usage["output_tokens"], usage["total_tokens"]) == (8, usage["input_tokens"] + 8)
    echoed = {name: response[name] for name in ("metadata", "user", "store", "tools", "temperature", "top_p")}
    assert echoed == {"metadata": {"a": "b"}, "user": "me", "store": False, "tools": [], "temperature": 0, "top_p": 1}


def test_a_question_as_a_string_with_instructions(client: TestClient, toy: behold.VLM) -> None:
    body = {"input": "Hello", "instructions": "Be brief.", "max_output_tokens": 6}
    response = client.post(PATH, json=body).json()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    expected = toy.generate(messages, max_new_tokens=6)
    assert response["output"][0]["content"][0]["text"] == expected
    assert response["instructions"] == "Be brief."


def test_the_events_build_up_the_response(client: TestClient) -> None:
    whole = client.post(PATH, json=about_the_picture()).json()
    events = events_of(client.post(PATH, json=about_the_picture(stream=True)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    begun, last = events[0]["response"], events[-1]["response"]
    assert (begun["status"], begun["output"], begun["usage"]) == ("in_progress", [], None)
    assert begun["id"] == last["id"] and begun["created_at"] == last["created_at"]
    added, part = events[2]["item"], events[3]["part"]
    assert (added["content"], added["status"], part["text"]) == ([], "in_progress", "")
    content = last["output"][0]["content"][0]
    assert "".join(event["delta"] for event in events[4:-4]) == events[-4]["text"] == content["text"]
    assert content["text"] == whole["output"][0]["content"][0]["text"]
    assert events[-3]["part"] == content and events[-2]["item"] == last["output"][0]
    places = {(event["item_id"], event["output_index"], event["content_index"]) for event in events[3:-2]}
    assert places == {(added["id"], 0, 0)}
    assert last["usage"]["output_tokens"] == 8


def test_an_answer_that_comes_to_its_end_is_completed(client: TestClient) -> None:
    text = {"format": {"type": "json_schema", "name": "verdict", "schema": SCHEMA, "strict": True}}
    response = client.post(PATH, json=about_the_picture(text=text, max_output_tokens=40)).json()
    assert response["output"][0]["content"][0]["text"] in ('{"ok": true}', '{"ok": false}')
    assert (response["status"], response["incomplete_details"]) == ("completed", None)
    assert response["text"] == text
    events = events_of(client.post(PATH, json=about_the_picture(text=text, max_output_tokens=40, stream=True)))
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"]["output"][0]["status"] == "completed"
    half = client.post(PATH, json=about_the_picture(text=text, stop=":")).json()
    assert (half["status"], half["ended_by"]) == ("incomplete", "stop_string")


def test_logprobs_if_they_are_asked_for(client: TestClient) -> None:
    body = about_the_picture(top_logprobs=2, include=["message.output_text.logprobs"])
    content = client.post(PATH, json=body).json()["output"][0]["content"][0]
    assert b"".join(bytes(each["bytes"]) for each in content["logprobs"]).decode("utf-8", "replace") == content["text"]
    assert all(len(each["top_logprobs"]) == 2 for each in content["logprobs"])
    events = events_of(client.post(PATH, json={**body, "stream": True}))
    streamed = [each for event in events if event["type"].endswith(".delta") for each in event["logprobs"]]
    assert [each["bytes"] for each in streamed] == [each["bytes"] for each in content["logprobs"]]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"truncation": "auto"}, "truncation"),
        ({"reasoning": {"effort": "high"}}, "reasoning"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"n": 2}, "n"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,x"}]}]},
         "input[0].content[0].image_url"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(client: TestClient, fields: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        error = refused(client.post(PATH, json={**about_the_picture(stream=stream), **fields}))
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"


def test_what_changes_nothing_is_accepted(client: TestClient) -> None:
    fields = {
        "store": True, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "truncation": "disabled",
        "reasoning": {"effort": None}, "previous_response_id": None, "background": False, "service_tier": "auto",
        "include": ["reasoning.encrypted_content"], "text": {"verbosity": "medium"}, "prompt_cache_key": "x",
    }  # fmt: skip
    plain, with_all = (client.post(PATH, json=about_the_picture(**each)).json() for each in ({}, fields))
    assert with_all["output"][0]["content"] == plain["output"][0]["content"]


def test_a_conversation_that_cannot_be_is_named(client: TestClient) -> None:
    for stream in (False, True):
        long = refused(client.post(PATH, json={"input": "word " * 600, "stream": stream}))
        assert (long["param"], long["code"]) == ("input", "context_length_exceeded")
    picture_only = [{"role": "user", "content": "x"}, {"role": "assistant", "content": []}]
    body = {"input": picture_only, "continue_final_message": True}
    assert refused(client.post(PATH, json=body))["param"] == "input"


def test_an_unknown_model_is_404(client: TestClient) -> None:
    assert refused(client.post(PATH, json=about_the_picture(model="other")), 404)["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("error", "said"),
    [(ApiError(504, "too late", type="timeout", code="deadline_exceeded"), "too late"), (KeyError("x"), "internal")],
)
def test_a_stream_that_breaks_off_says_so(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    async def broken(*_: object) -> AsyncGenerator[Delta, None]:
        yield Delta(ids=(5,), text="half an ans")
        raise error

    monkeypatch.setattr(service_of(client), "run", broken)
    *_, spoken, last = events_of(client.post(PATH, json=about_the_picture(stream=True)))
    assert spoken["type"] == "error" and said in spoken["message"]
    assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
    assert last["response"]["error"]["code"] == "server_error" and said in last["response"]["error"]["message"]
