"""Whatever is sent, the answer is an answer or a refusal that can be read: never a failure of the server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

import behold
from behold.api.server.refusals import CHAT, RESPONSES
from behold.api.server.schemas_chat import ChatRequest
from behold.api.server.schemas_responses import ResponsesRequest
from tests import toys
from tests.server.asking import client_of, data_uri, image_url

LIMITS = {"max_tokens": 2, "max_completion_tokens": 2, "max_output_tokens": 2}
NAMES = ("type", "text", "image_url", "url", "role", "content", "schema", "json_schema", "detail", "regex", "data")
PLAIN: list[Any] = [None, True, 0, -1, 2.5, 1e308, 10**30, "", "text", "user", "low", "\x00\u2028", "<image>", "data:,"]
PLAIN += ["http://127.0.0.1/x", "file:///etc/passwd", "json_schema", "choice", "a" * 3000, image_url(data_uri())]
PLAIN += [{"role": "user", "content": "hello"}, {"type": "text", "text": "hello"}]
values = st.recursive(
    st.sampled_from(PLAIN),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)


def bodies(kind: Any, rules: Any, **base: Any) -> st.SearchStrategy[dict[str, Any]]:
    names = sorted({*kind.model_fields, *rules} - LIMITS.keys())
    return st.dictionaries(st.sampled_from(names), values, max_size=3).map(lambda fields: {**LIMITS, **base, **fields})


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with client_of(behold.load(toys.checkpoint("llava-siglip-qwen2"), device="cpu", dtype="float32")) as client:
        yield client


def check(client: TestClient, path: str, body: dict[str, Any]) -> None:
    response = client.post(path, json=body)
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        (error,) = response.json().values()
        assert set(error) == {"message", "type", "param", "code"}
        assert error["param"] and len(error["message"]) < 1000
    elif body.get("stream") is True:
        events = [line for line in response.text.split("\n") if line.startswith("data: ")]
        assert len(events) > 2 and not any('"error":{' in line for line in events)
    else:
        json.dumps(response.json(), allow_nan=False)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies(ChatRequest, CHAT, messages=[{"role": "user", "content": "hello"}]))
def test_any_chat_completion(client: TestClient, body: dict[str, Any]) -> None:
    check(client, "/v1/chat/completions", body)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=bodies(ResponsesRequest, RESPONSES, input="hello"))
def test_any_response(client: TestClient, body: dict[str, Any]) -> None:
    check(client, "/v1/responses", body)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"messages":5,"seed":' + b"1" * 6000 + b"}",
        b"[" * 100_000,
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":[{"role":"user","content":' + b"[" * 150 + b"]" * 150 + b"}]}",
        b'{"temperature":NaN,"messages":[{"role":"user","content":"x"}]}',
        b'{"messages":[{"role":"user","content":"\xff"}]}',
    ],
)
def test_a_body_at_the_edge_of_json(client: TestClient, raw: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/responses"):
        response = client.post(path, content=raw, headers={"content-type": "application/json"})
        assert response.status_code == 400
        assert response.json()["error"]["message"]
