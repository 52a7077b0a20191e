"""LiteLLM's `completion` with an openai/… model and our address, in a process of its own.

Its import takes seconds, and it starts threads and connections that it never closes; so all it is asked is asked in
one process, which prints what came.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import Any

import pytest

from tests.clients.served import QUESTION, Running, seen

pytestmark = pytest.mark.skipif(importlib.util.find_spec("litellm") is None, reason="LiteLLM is not installed")

SCRIPT = """
import asyncio, json, sys
import litellm
from pydantic import BaseModel

class Scene(BaseModel):
    several: bool

url, model, messages = json.loads(sys.stdin.read())
common = dict(model=f"openai/{model}", api_base=url, api_key="anything", temperature=0, num_retries=0)
found = {}

answer = litellm.completion(messages=messages, **common)
found["text"] = answer.choices[0].message.content
found["finish_reason"] = answer.choices[0].finish_reason
found["usage"] = [answer.usage.prompt_tokens, answer.usage.completion_tokens]

chunks = list(litellm.completion(messages=messages, stream=True, stream_options={"include_usage": True}, **common))
found["streamed"] = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
found["streamed_usage"] = [getattr(chunks[-1], "usage").prompt_tokens, getattr(chunks[-1], "usage").completion_tokens]

structured = litellm.completion(messages=messages, response_format=Scene, **common)
found["structured"] = Scene.model_validate_json(structured.choices[0].message.content).model_dump()

async def together():
    calls = [litellm.acompletion(messages=messages, **common) for _ in range(4)]
    return [answer.choices[0].message.content for answer in await asyncio.gather(*calls)]

found["together"] = asyncio.run(together())

def refused(**change):
    try:
        litellm.completion(**{**common, "messages": messages, **change})
    except Exception as error:
        return type(error).__name__

broken = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]
found["refused"] = [refused(messages=broken), refused(model="openai/other")]
print("\\n" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(server: Running) -> dict[str, Any]:
    given = json.dumps([server.url, server.model, seen()])
    run = subprocess.run([sys.executable, "-c", SCRIPT], input=given, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    result: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return result


def test_an_answer_about_a_picture(server: Running, found: dict[str, Any]) -> None:
    assert found["text"] == server.alone("scene.png", QUESTION)
    assert found["finish_reason"] == "stop"
    usage = server.vlm.ask("examples/scene.png", QUESTION).usage
    assert found["usage"] == [usage.prompt_tokens, usage.completion_tokens]


def test_a_stream_joins_to_the_same_answer(found: dict[str, Any]) -> None:
    assert found["streamed"] == found["text"]
    assert found["streamed_usage"] == found["usage"]


def test_a_structured_answer(found: dict[str, Any]) -> None:
    assert set(found["structured"]) == {"several"}


def test_several_at_once(found: dict[str, Any]) -> None:
    assert found["together"] == [found["text"]] * 4


def test_refusals_are_its_own_classes(found: dict[str, Any]) -> None:
    assert found["refused"] == ["BadRequestError", "NotFoundError"]
