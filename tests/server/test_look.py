"""POST /v1/behold/look: what the model sees, for the page and whoever else wants to know."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from behold.api.show import look
from behold.api.turns import user_message
from behold.api.vlm import VLM
from tests.server.running import running

SCENE = Path(__file__).parents[2] / "examples" / "scene.png"
QUESTION = "What do we see in this image?"


@pytest.fixture(scope="module")
def client(vlm: VLM) -> Iterator[httpx.Client]:
    with running(vlm) as (found, _):
        yield found


def asked(*uris: str, text: str = QUESTION, **fields: Any) -> dict[str, Any]:
    parts = [{"type": "image_url", "image_url": {"url": uri}} for uri in uris]
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}], **fields}


def uri_of(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def png(width: int, height: int) -> bytes:
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


def test_pictures_prompt_and_tokens(client: httpx.Client, vlm: VLM) -> None:
    sight = look(vlm.processor, [user_message(SCENE, QUESTION)])
    seen = client.post("/v1/behold/look", json=asked(uri_of(SCENE.read_bytes()))).json()
    assert seen["object"] == "behold.look" and seen["model"] == "demo"
    assert seen["prompt"] == sight.short_text and f"×{seen['image_tokens']}" in seen["prompt"]
    assert seen["prompt_tokens"] == sight.prompt_tokens == vlm.ask(SCENE, QUESTION).usage.prompt_tokens
    (image,), (picture,) = seen["images"], sight.pictures
    assert (image["width"], image["height"], image["tokens"]) == (640, 480, picture.tokens)
    (part,) = image["parts"]
    drawn = Image.open(io.BytesIO(base64.b64decode(part["url"].partition(",")[2])))
    assert drawn.format == "PNG" and drawn.size == (part["width"], part["height"])
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(picture.parts[0]))


def test_a_conversation_without_pictures(client: httpx.Client) -> None:
    seen = client.post("/v1/behold/look", json=asked(text="Hello")).json()
    assert seen["images"] == [] and seen["image_tokens"] == 0 and "Hello" in seen["prompt"]


@pytest.mark.parametrize("body", [b"no picture", png(20_000, 20_000)], ids=["broken", "too many pixels"])
def test_a_picture_that_cannot_be_is_named(client: httpx.Client, body: bytes) -> None:
    response = client.post("/v1/behold/look", json=asked(uri_of(SCENE.read_bytes()), uri_of(body)))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages[0].content[1].image_url"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"messages": []}, 400, "messages"),
        ({"model": "another"}, 404, "model"),
        ({"chat_template_kwargs": {"think": True}}, 400, "chat_template_kwargs"),
    ],
)
def test_what_it_refuses(client: httpx.Client, fields: dict[str, Any], status: int, param: str) -> None:
    response = client.post("/v1/behold/look", json={**asked(text="Hello"), **fields})
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_sampling_options_change_nothing(client: httpx.Client) -> None:
    plain, hot = (client.post("/v1/behold/look", json=asked(**more)) for more in ({}, {"temperature": 1.5}))
    assert plain.status_code == hot.status_code == 200 and plain.json() == hot.json()


def test_it_leaves_the_engine_alone(client: httpx.Client, vlm: VLM) -> None:
    before = vlm.engine.stats().steps
    client.post("/v1/behold/look", json=asked(uri_of(SCENE.read_bytes()))).raise_for_status()
    assert vlm.engine.stats().steps == before
