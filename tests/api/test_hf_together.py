"""Batches and lists of the Hugging Face surface run together in the engine: counted in its steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import behold
from tests import toys

NEW = 24
PICTURES = [toys.picture(40 + 3 * number, 30, number) for number in range(5)]


@pytest.fixture(scope="module")
def pipe() -> Any:
    folder = toys.checkpoint("llava-siglip-qwen2")
    return behold.pipeline("image-text-to-text", model=str(folder), device="cpu", dtype="float32")


def chats() -> list[list[dict[str, Any]]]:
    questions = ["What?", "What do we see in this image?", "Why?", "How many shapes are there?", "Where is it?"]
    parts = [
        [{"type": "image", "image": picture}, {"type": "text", "text": text}]
        for picture, text in zip(PICTURES, questions, strict=True)
    ]
    return [[{"role": "user", "content": content}] for content in parts]


def test_a_batch_of_generate_takes_hardly_more_steps_than_one_row(pipe: Any) -> None:
    texts = [pipe.processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats()]
    inputs = pipe.processor(text=texts, images=[[picture] for picture in PICTURES], padding=True, return_tensors="pt")
    before = pipe.model.engine.stats()
    ids = pipe.model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW)
    after = pipe.model.engine.stats()
    assert ids.shape == (5, inputs["input_ids"].shape[1] + NEW)
    assert after.new_tokens - before.new_tokens == 5 * NEW
    assert after.steps - before.steps < 2 * NEW
    assert after.running == after.waiting == 0


def test_a_list_in_a_pipeline_runs_together(pipe: Any) -> None:
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "return_full_text": False}
    alone = [pipe(text=chat, **options) for chat in chats()]
    before = pipe.model.engine.stats()
    together = pipe(text=chats(), **options)
    after = pipe.model.engine.stats()
    assert together == alone
    assert after.steps - before.steps < 2 * NEW
    assert after.new_tokens - before.new_tokens == 5 * NEW


def test_a_generator_streams_through_in_groups_of_the_batch_size(pipe: Any) -> None:
    read = []

    def items() -> Iterator[list[dict[str, Any]]]:
        for chat in chats():
            read.append(chat)
            yield chat

    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "return_full_text": False}
    before = pipe.model.engine.stats().steps
    results = pipe(text=items(), batch_size=2, **options)
    assert len(read) <= 1, "one tells what kind of input it is"
    first = next(results)
    assert len(read) == 2
    assert [first, *results] == pipe(text=chats(), **options)
    assert pipe.model.engine.stats().steps - before < 2 * NEW * 4
