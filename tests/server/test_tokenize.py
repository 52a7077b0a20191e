"""/tokenize: what it says is what the same request then costs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from behold.api.vlm import VLM
from tests.server.running import chat, running, wait_for


@pytest.fixture(scope="module")
def client(vlm: VLM) -> Iterator[httpx.Client]:
    with running(vlm) as (client, service):
        wait_for(lambda: service.health == "ok")
        yield client


def about(colour: str, **fields: object) -> dict[str, object]:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"messages": [{"role": "user", "content": parts}], **fields}


def test_it_says_what_the_request_then_costs(client: httpx.Client, vlm: VLM) -> None:
    body = about("teal", max_tokens=4)
    before = vlm.engine.stats()
    said = client.post("/tokenize", json=body).json()
    assert vlm.engine.stats().steps == before.steps, "nothing is run"
    usage = client.post("/v1/chat/completions", json=body).json()["usage"]
    assert said["count"] == len(said["tokens"]) == usage["prompt_tokens"]
    assert said["image_tokens"] == usage["prompt_tokens_details"]["image_tokens"] > 0
    assert said["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
    assert said["max_new_tokens"] == 4
    assert said["max_model_len"] == vlm.model.config.text.max_position_embeddings
    assert said["estimated_memory_bytes"] > 0 and said["fits_now"] is True


def test_what_was_seen_is_cheaper(client: httpx.Client) -> None:
    body = about("olive", max_tokens=4)
    new = client.post("/tokenize", json=body).json()
    client.post("/v1/chat/completions", json=body)
    seen = client.post("/tokenize", json=body).json()
    assert seen["tokens"] == new["tokens"]
    assert seen["cached_tokens"] > new["cached_tokens"]
    assert seen["estimated_memory_bytes"] < new["estimated_memory_bytes"]


def test_several_choices_need_several_rows(client: httpx.Client) -> None:
    one, three = (client.post("/tokenize", json=chat(max_tokens=4, n=n)).json() for n in (1, 3))
    assert three["estimated_memory_bytes"] == 3 * one["estimated_memory_bytes"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (chat(model="other"), "model"),
        (chat(tools=[{"type": "function"}]), "tools"),
        (chat(temperature=-1), "temperature"),
        (chat("long " * 5000), "messages"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "data:,x"}]}]},
            "messages[0].content[0].image_url",
        ),
    ],
    ids=["model", "tools", "temperature", "length", "picture"],
)
def test_it_refuses_what_the_request_would(client: httpx.Client, body: dict[str, object], param: str) -> None:
    answers = [client.post(path, json=body) for path in ("/tokenize", "/v1/chat/completions")]
    assert [answer.status_code in (400, 404) for answer in answers] == [True, True]
    assert answers[0].json()["error"]["code"] == answers[1].json()["error"]["code"]
    assert answers[0].json()["error"]["param"] == param
