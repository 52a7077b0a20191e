"""Chat completions: the same answers as the library's own, in the shapes that clients of the OpenAI API read."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

import behold
from behold.api.server.errors import ApiError
from behold.types import Delta
from tests import toys
from tests.server.asking import (
    PICTURE,
    QUESTION,
    asked,
    chunks_of,
    client_of,
    content_of,
    data_uri,
    image_url,
    refused,
    service_of,
    text,
)

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def toy() -> behold.VLM:
    """Its answers are noise, with characters that take several tokens, some of them broken off."""
    return behold.load(toys.checkpoint("llava-siglip-qwen2"), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def client(toy: behold.VLM) -> Iterator[TestClient]:
    with client_of(toy) as client:
        yield client


# --- whole answers -------------------------------------------------------------------------------------------------


def test_the_answer_is_that_of_the_library(client: TestClient, toy: behold.VLM) -> None:
    answer = client.post(PATH, json=asked()).json()
    expected = toy.ask(PICTURE, QUESTION, max_new_tokens=8)
    assert answer["object"] == "chat.completion" and answer["id"].startswith("chatcmpl-")
    assert isinstance(answer["created"], int) and answer["model"] == service_of(client).model_id
    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": str(expected), "refusal": None}
    assert (choice["index"], choice["logprobs"], choice["finish_reason"]) == (0, None, expected.finish_reason)
    assert choice["ended_by"] == expected.ended_by == "length"
    usage = answer["usage"]
    assert usage["prompt_tokens"] == expected.usage.prompt_tokens
    assert usage["prompt_tokens_details"]["image_tokens"] == expected.usage.image_tokens == 16
    assert 0 <= usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
    assert (usage["completion_tokens"], usage["total_tokens"]) == (8, usage["prompt_tokens"] + 8)
    assert 0 < answer["timings"]["first_token_s"] <= answer["timings"]["total_s"]


def test_a_conversation_with_pictures_in_several_turns(client: TestClient, toy: behold.VLM) -> None:
    other = toys.picture(30, 40, 7)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [image_url(data_uri()), text("And this: "), image_url(data_uri(other))]},
        {"role": "assistant", "content": "A square."},
        {"role": "user", "content": [text("Which one?")]},
    ]
    answer = client.post(PATH, json=asked(messages=messages)).json()
    expected = toy.generate(messages, max_new_tokens=8)
    assert answer["choices"][0]["message"]["content"] == expected
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 32


def test_a_final_assistant_message_is_continued_or_not(client: TestClient, toy: behold.VLM) -> None:
    messages = [{"role": "user", "content": "Say it"}, {"role": "assistant", "content": "The quick"}]
    n_tokens = {}
    for name, fields in {
        "continued": {},
        "said so": {"continue_final_message": True, "add_generation_prompt": False},
        "new turn": {"add_generation_prompt": True},
    }.items():
        answer = client.post(PATH, json=asked(messages=messages, **fields)).json()
        n_tokens[name] = answer["usage"]["prompt_tokens"]
    expected = toy.generate(messages, max_new_tokens=8).usage.prompt_tokens
    assert n_tokens["continued"] == n_tokens["said so"] == expected < n_tokens["new turn"]


def test_without_a_limit_there_is_one(client: TestClient, toy: behold.VLM) -> None:
    answer = client.post(PATH, json=asked(max_tokens=None, ignore_eos=True, loop_stop=False)).json()
    room = toy.model.config.text.max_position_embeddings - answer["usage"]["prompt_tokens"]
    assert answer["usage"]["completion_tokens"] == room < 1024


# --- several choices -----------------------------------------------------------------------------------------------


def test_choices_of_a_seed_are_those_of_the_seeds_that_follow(client: TestClient, toy: behold.VLM) -> None:
    body = asked(n=3, seed=11, temperature=1.3)
    expected = [toy.ask(PICTURE, QUESTION, max_new_tokens=8, seed=11 + i, temperature=1.3) for i in range(3)]
    answer = client.post(PATH, json=body).json()
    assert [choice["message"]["content"] for choice in answer["choices"]] == expected
    assert len(set(expected)) > 1
    assert answer["usage"]["prompt_tokens"] == expected[0].usage.prompt_tokens
    assert answer["usage"]["completion_tokens"] == sum(each.usage.completion_tokens for each in expected)
    chunks = chunks_of(client.post(PATH, json={**body, "stream": True}))
    assert [content_of(chunks, index) for index in range(3)] == expected


def test_greedy_choices_are_equal(client: TestClient) -> None:
    choices = client.post(PATH, json=asked(n=2, temperature=0)).json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    assert choices[0]["message"] == choices[1]["message"]


# --- streams -------------------------------------------------------------------------------------------------------


def test_a_stream_has_the_shape_that_clients_read(client: TestClient, toy: behold.VLM) -> None:
    chunks = chunks_of(client.post(PATH, json=asked(stream=True)))
    expected = toy.ask(PICTURE, QUESTION, max_new_tokens=8)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    first, *middle, last = [choice for chunk in chunks for choice in chunk["choices"]]
    assert first["delta"] == {"role": "assistant", "content": ""} and first["finish_reason"] is None
    assert all(set(choice["delta"]) == {"content"} and choice["finish_reason"] is None for choice in middle)
    assert (last["delta"], last["finish_reason"], last["ended_by"]) == ({}, "length", "length")
    assert content_of(chunks) == expected
    assert not any("usage" in chunk for chunk in chunks)
    assert chunks[-1]["timings"]["total_s"] > 0


def test_usage_comes_in_one_more_chunk_if_asked_for(client: TestClient) -> None:
    whole = client.post(PATH, json=asked()).json()
    chunks = chunks_of(client.post(PATH, json=asked(stream=True, stream_options={"include_usage": True})))
    *others, last = chunks
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in others)
    assert last["choices"] == [] and "timings" not in last
    cached = {"prompt_tokens_details"}
    assert {k: v for k, v in last["usage"].items() if k not in cached} == {
        k: v for k, v in whole["usage"].items() if k not in cached
    }


def test_the_end_of_the_answer_is_no_text(client: TestClient, toy: behold.VLM) -> None:
    whole = toy.ask(PICTURE, QUESTION, max_new_tokens=8)
    stop = str(whole)[2]
    for body in (asked(stop=stop), asked(stop=["never comes", stop])):
        answer = client.post(PATH, json=body).json()["choices"][0]
        assert answer["message"]["content"] == str(whole)[:2]
        assert (answer["finish_reason"], answer["ended_by"]) == ("stop", "stop_string")
        chunks = chunks_of(client.post(PATH, json={**body, "stream": True}))
        assert content_of(chunks) == str(whole)[:2]
    ended = client.post(PATH, json=asked(stop_token_ids=[whole.ids[2]], logprobs=True)).json()["choices"][0]
    assert ended["message"]["content"] == str(whole)[:2] and ended["ended_by"] == "end"
    assert len(ended["logprobs"]["content"]) == 2


# --- log probabilities ---------------------------------------------------------------------------------------------


def test_logprobs_are_given_with_the_bytes_of_each_token(client: TestClient, toy: behold.VLM) -> None:
    expected = toy.ask(PICTURE, QUESTION, max_new_tokens=8, logprobs=3)
    choice = client.post(PATH, json=asked(logprobs=True, top_logprobs=3)).json()["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert [token["logprob"] for token in tokens] == pytest.approx([each.logprob for each in expected.logprobs])
    assert all(len(token["top_logprobs"]) == 3 for token in tokens)
    assert all(token["top_logprobs"][0] == {k: token[k] for k in ("token", "logprob", "bytes")} for token in tokens)
    raw = b"".join(bytes(token["bytes"]) for token in tokens)
    assert raw.decode("utf-8", "replace") == choice["message"]["content"] == expected
    assert any(bytes(token["bytes"]).decode("utf-8", "replace") == "\ufffd" for token in tokens)
    chunks = chunks_of(client.post(PATH, json=asked(logprobs=True, top_logprobs=3, stream=True)))
    found = [c["logprobs"]["content"] for chunk in chunks for c in chunk["choices"] if c["logprobs"]]
    streamed = [token for content in found for token in content]
    assert [token["bytes"] for token in streamed] == [token["bytes"] for token in tokens]


def test_logprobs_alone_report_the_chosen_tokens(client: TestClient) -> None:
    content = client.post(PATH, json=asked(logprobs=True)).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 8 and all(token["top_logprobs"] == [] for token in content)


# --- structured answers --------------------------------------------------------------------------------------------


def test_an_answer_keeps_to_its_schema_or_says_that_it_was_cut_off(client: TestClient) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [1, 22]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "count", "schema": schema, "strict": True}}
    choice = client.post(PATH, json=asked(response_format=form, max_tokens=40)).json()["choices"][0]
    assert choice["message"]["content"] in ('{"n": 1}', '{"n": 22}') and choice["finish_reason"] == "stop"
    chunks = chunks_of(client.post(PATH, json=asked(response_format=form, max_tokens=40, stream=True)))
    assert content_of(chunks) == choice["message"]["content"]
    for fields, ended_by in (({"max_tokens": 2}, "length"), ({"stop": ":"}, "stop_string")):
        cut_off = client.post(PATH, json=asked(response_format=form) | fields).json()["choices"][0]
        assert (cut_off["finish_reason"], cut_off["ended_by"]) == ("length", ended_by)


def test_an_answer_keeps_to_a_pattern_or_a_choice(client: TestClient) -> None:
    for outputs, allowed in (({"choice": ["red", "blue"]}, ("red", "blue")), ({"regex": "(no){2}"}, ("nono",))):
        choices = client.post(PATH, json=asked(structured_outputs=outputs, n=2, temperature=1.5)).json()["choices"]
        assert all(choice["message"]["content"] in allowed for choice in choices)


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"chat_template": "{{ messages }}"}, "chat_template"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None, "max_completion_tokens": -1}, "max_completion_tokens"),
        ({"min_tokens": 9}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a", ""]}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"seed": "x"}, "seed"),
        ({"stream": "perhaps"}, "stream"),
        ({"stream_options": {"include_usage": 7}}, "stream_options.include_usage"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "hello"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x"}, "hello"]}, "messages[1]"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs"),
        ({"guided_regex": "[a-z]"}, "guided_regex"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(client: TestClient, fields: dict[str, Any], param: str) -> None:
    for stream in (False, True):
        error = refused(client.post(PATH, json=asked(stream=stream) | fields))
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"
        assert len(error["message"]) < 500


def test_what_changes_nothing_is_accepted(client: TestClient) -> None:
    fields = {
        "user": "someone", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "anything": [1],
        "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "logit_bias": {}, "modalities": ["text"],
        "reasoning_effort": None, "response_format": {"type": "text"}, "n": 1, "stop": None, "frequency_penalty": 0,
        "max_completion_tokens": 8, "top_p": 1, "top_k": -1, "min_p": 0, "stream_options": None, "seed": None,
    }  # fmt: skip
    plain = client.post(PATH, json=asked()).json()
    answer = client.post(PATH, json=asked(**fields)).json()
    assert answer["choices"] == plain["choices"]  # also: filters that are off do not switch sampling on


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"", "not valid JSON"), (b"{", "not valid JSON"), (b"[]", "object"), (b'"x"', "object"), (b"\xff", "JSON")],
)
def test_a_body_that_is_no_request(client: TestClient, body: bytes, said: str) -> None:
    response = client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert said in refused(response)["message"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_must_be_said_to_be_json(client: TestClient, kind: str) -> None:
    response = client.post(PATH, content=b"{}", headers={"content-type": kind})
    assert "application/json" in refused(response, 415)["message"]


def test_what_does_not_fit_is_refused_before_a_stream_begins(client: TestClient) -> None:
    error = refused(client.post(PATH, json=asked(text("word " * 600), stream=True)))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    assert "512" in error["message"]


def test_a_template_that_takes_no_picture_there_says_so(client: TestClient) -> None:
    messages = [{"role": "user", "content": [{"type": "image"}]}]
    assert refused(client.post(PATH, json=asked(messages=messages)))["param"] == "messages[0].content[0]"


def test_bad_requests_among_good_ones_disturb_none(client: TestClient, toy: behold.VLM) -> None:
    pictures = [toys.picture(40, 30, seed) for seed in range(4)]
    good = [asked(image_url(data_uri(each)), text(QUESTION), stream=i % 2 == 1) for i, each in enumerate(pictures)]
    bad = [
        asked(image_url("data:image/png;base64,AAAA")),
        asked(text("word " * 600)),
        asked(tools=[{}]),
        asked(messages=[{"role": "user", "content": [image_url(data_uri())] * 2, "images": 3}], seed=[]),
    ]
    bodies = [body for pair in zip(good, bad, strict=True) for body in pair]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: client.post(PATH, json=body), bodies))
    assert [answer.status_code for answer in answers] == [200, 400] * 4
    for index, picture in enumerate(pictures):
        expected = toy.ask(picture, QUESTION, max_new_tokens=8)
        answer = answers[2 * index]
        found = content_of(chunks_of(answer)) if index % 2 == 1 else answer.json()["choices"][0]["message"]["content"]
        assert found == expected


# --- what goes wrong later -----------------------------------------------------------------------------------------


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
    response = client.post(PATH, json=asked(stream=True))
    assert response.status_code == 200
    *_, last = [line for line in response.text.split("\n") if line]
    assert "[DONE]" not in response.text and "half an ans" in response.text
    assert last.startswith('data: {"error":{"message":') and said in last
    status = error.status if isinstance(error, ApiError) else 500
    assert said in refused(client.post(PATH, json=asked()), status)["message"]


def test_an_answer_that_the_server_cuts_off_is_an_error(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def cut_off(*_: object) -> AsyncGenerator[Delta, None]:
        yield Delta(ids=(5,), text="half")
        yield Delta(finish_reason="cancelled", ended_by="cancelled")

    monkeypatch.setattr(service_of(client), "run", cut_off)
    assert refused(client.post(PATH, json=asked()), 503)["code"] == "stopping"
    assert '"code":"stopping"' in client.post(PATH, json=asked(stream=True)).text


def test_a_refusal_at_the_queue_is_a_status_also_for_a_stream(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    async def full_for_the_second(_: object, params: Any) -> AsyncGenerator[Delta, None]:
        if params.seed == 4:
            raise ApiError(429, "the queue is full", headers={"retry-after": "2"})
        try:
            yield Delta(ids=(5,), text="x")
        finally:
            closed.append(params.seed)

    monkeypatch.setattr(service_of(client), "run", full_for_the_second)
    response = client.post(PATH, json=asked(stream=True, n=2, seed=3))
    assert refused(response, 429)["message"] == "the queue is full"
    assert response.headers["retry-after"] == "2"
    assert closed == [3]
