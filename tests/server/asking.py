"""What tests of the answering endpoints share: pictures as clients send them, bodies, and streams read back."""

from __future__ import annotations

import base64
import contextlib
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
from PIL import Image
from starlette.testclient import TestClient

from behold.api.server.app import create_app
from behold.api.server.service import Service
from behold.api.server.settings import ServerSettings
from behold.api.vlm import VLM
from tests import toys

QUESTION = "What do we see in this image?"
PICTURE = toys.picture()


def png(image: Image.Image = PICTURE) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def base64_of(image: Image.Image = PICTURE) -> str:
    return base64.b64encode(png(image)).decode()


def data_uri(image: Image.Image = PICTURE) -> str:
    return f"data:image/png;base64,{base64_of(image)}"


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image_url(url: str, **fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **fields}}


def asked(*parts: Any, **fields: Any) -> dict[str, Any]:
    """A body of /v1/chat/completions with one user turn; without parts, a question about the picture."""
    content = list(parts) or [image_url(data_uri()), text(QUESTION)]
    return {"model": None, "max_tokens": 8, "messages": [{"role": "user", "content": content}], **fields}


@contextlib.contextmanager
def client_of(vlm: VLM, **settings: Any) -> Iterator[TestClient]:
    with TestClient(create_app(vlm, ServerSettings(**settings))) as client:
        yield client


def service_of(client: TestClient) -> Service:
    service: Service = client.app.state.service  # type: ignore[attr-defined]
    return service


def chunks_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a chat completion, which must end with [DONE]."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line for line in response.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def content_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    """The text of one choice."""
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") for choice in choices)


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a response; each is named twice, and they are numbered from 0."""
    assert response.status_code == 200, response.text
    events = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The `error` of a refusal, whose shape never differs."""
    assert response.status_code == status, response.text
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    fields: dict[str, Any] = error
    return fields
